"""`senn fit --watch`: what it serves, and that it changes nothing."""

import json
import re
import socket
import threading
from http.client import HTTPConnection

import pytest
from cli_cases import refused
from report_cases import waves

from senn.cli import watch as serving
from senn.cli.main import main
from senn.cli.watch import LOOPBACK, Watch
from senn.viz.report import downsample_record

pytest.importorskip("vl_convert")


def silent(line):
    """Whoever doesn't want to hear."""


def tell(watch, records):
    for record in records:
        getattr(watch, f"on_{record['event']}")(record)


def connection(watch):
    return HTTPConnection(LOOPBACK, int(re.search(r":(\d+)/", watch.url)[1]), timeout=10)


def get(watch, path, secret=None, **headers):
    asked = connection(watch)
    begin = f"/{watch.secret}" if secret is None else secret
    asked.request("GET", begin + path, headers=headers)
    return asked.getresponse()


def events(stream):
    """Server-sent events as (name, data)."""
    while line := stream.readline().decode():
        if line.startswith("event: "):
            name = line.removeprefix("event: ").strip()
            yield name, json.loads(stream.readline().decode().removeprefix("data: "))


def test_the_page_is_there_while_the_run_goes_on_and_then_no_more():
    with Watch("waves", 0, silent) as watch:
        answer = get(watch, "/")
        text = answer.read().decode()
        assert answer.status == 200
        assert '"live":true' in text
        assert get(watch, "/else").status == 404
    with pytest.raises(ConnectionRefusedError):
        get(watch, "/")


def test_only_this_machine_is_answered():
    with Watch("waves", 0, silent) as watch:
        assert watch.url.startswith("http://127.0.0.1:")
        assert get(watch, "/", Host="evil.example").status == 403
        assert get(watch, "/events", Host="evil.example").status == 403


def test_only_the_address_that_was_printed_is_answered():
    lines = []
    with Watch("private", 0, lines.append) as watch, Watch("other", 0, silent) as other:
        assert lines == [f"watch it at {watch.url}"]
        assert watch.url.endswith(f"/{watch.secret}/")
        assert watch.secret != other.secret
        for secret in (
            "",
            "/",
            "/x",
            f"/{other.secret}",
            f"/{watch.secret}x",
            f"/{watch.secret}/..",
        ):
            for path in ("/", "/events"):
                answer = get(watch, path, secret)
                assert answer.status == 404
                assert b"private" not in answer.read()
        page = get(watch, "/", Host=f"LOCALHOST:{connection(watch).port}")
        assert page.status == 200
        told = {name.lower(): value for name, value in page.getheaders()}
        assert told["referrer-policy"] == "no-referrer"
        assert told["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in told["content-security-policy"]
        assert "python" not in told["server"].lower()


def test_connections_are_limited_and_idle_ones_closed(monkeypatch):
    monkeypatch.setattr(serving, "MOST_CONNECTIONS", 2)
    monkeypatch.setattr(serving._Handler, "timeout", 0.2)
    with Watch("waves", 0, silent) as watch:
        port = connection(watch).port
        idle = [socket.create_connection((LOOPBACK, port)) for _ in range(6)]
        assert all(one.recv(1) == b"" for one in idle)  # hung up, or closed after a while
        assert get(watch, "/").status == 200


def test_a_listener_hears_every_record_once_in_order():
    records = waves()[0].history
    heard, ready = [], threading.Event()

    def listen():
        for name, data in events(get(watch, "/events")):
            heard.append((name, data))
            if name == "more":
                ready.set()

    with Watch("waves", 0, silent) as watch:
        tell(watch, records[:3])
        listener = threading.Thread(target=listen)
        listener.start()
        ready.wait(10)
        tell(watch, records[3:])
    listener.join(10)
    names = [name for name, _ in heard]
    assert (names[0], names[1], names[-1]) == ("start", "more", "over")
    told = [record for name, data in heard if name == "more" for record in data]
    assert told == json.loads(json.dumps([downsample_record(one) for one in records]))


def test_a_listener_that_goes_away_is_no_matter():
    with Watch("waves", 0, silent) as watch:
        for _ in range(3):
            asked = connection(watch)
            asked.request("GET", f"/{watch.secret}/events")
            asked.getresponse()
            asked.close()
        tell(watch, waves()[0].history)
        assert get(watch, "/").status == 200


def test_a_run_that_goes_on_shows_what_was_before():
    run, _ = waves()
    with Watch("waves", 0, silent, run.history[:5]) as watch:
        tell(watch, [run.history[0], *run.history[5:]])  # a run that goes on begins once more
        text = get(watch, "/").read().decode()
    told = json.loads(re.search(r'id="records">(.*?)</script>', text, re.S)[1])
    assert [one["event"] for one in told["runs"][0]["records"]] == [
        one["event"] for one in run.history
    ]


def test_an_error_of_the_run_is_told():
    heard = []
    watch = Watch("waves", 0, silent)
    stream = get(watch, "/events")
    listener = threading.Thread(target=lambda: heard.extend(events(stream)))
    listener.start()
    with pytest.raises(RuntimeError, match="gone"), watch:
        raise RuntimeError("gone")
    listener.join(10)
    assert heard[-1] == ("over", " by an error")


def test_a_port_that_is_taken_is_one_sentence_and_the_run_goes_on():
    lines = []
    with socket.socket() as other:
        other.bind((LOOPBACK, 0))
        other.listen()
        port = other.getsockname()[1]
        with Watch("waves", port, lines.append) as watch:
            tell(watch, waves()[0].history)
    assert watch.url is None
    assert len(lines) == 1
    assert f"port {port}" in lines[0]
    assert "continues unwatched" in lines[0]


def test_a_watched_run_is_the_same_run(tmp_path, capsys):
    kept = []
    for name, more in (("plain", []), ("watched", ["--watch"])):
        out = tmp_path / name
        assert main(["fit", "wine", "--epochs", "4", "--out", str(out), *more]) == 0
        said = capsys.readouterr().out
        assert ("watch it at http://127.0.0.1:" in said) == bool(more)
        results = json.loads((out / "results.json").read_text())
        kept.append(
            ((out / "model.safetensors").read_bytes(), results["test"], results["architecture"])
        )
    assert kept[0] == kept[1]


def test_where_it_is_is_said_even_by_a_quiet_run(tmp_path, capsys):
    assert (
        main(["fit", "wine", "--epochs", "1", "--out", str(tmp_path / "run"), "--watch", "--quiet"])
        == 0
    )
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "watch it at" in captured.err


def test_a_port_that_is_none_is_refused(capsys):
    assert "is not a port" in refused(capsys, ["fit", "wine", "--watch", "--port", "70000"])
