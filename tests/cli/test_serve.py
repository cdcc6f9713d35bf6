"""`senn serve`: what it answers over HTTP on this machine, and what it refuses."""

import base64
import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from http.client import HTTPConnection

import numpy as np
import pandas as pd
import pytest
from cli_cases import refused
from PIL import Image

import senn
from senn.cli.main import main

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from senn.cli import prediction_service  # noqa: E402
from senn.cli.prediction_service import ImpatientProtocol, Limits, application  # noqa: E402

TOKEN = "a-token"


@contextlib.contextmanager
def served(folder, **limits):
    """The port of a server in a thread."""
    app = application(senn.load_run(folder), TOKEN, Limits(**limits))
    settings = uvicorn.Config(app, http=ImpatientProtocol, lifespan="off", log_level="error")
    server = uvicorn.Server(settings)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(10)


def ask(port, path="/predict", body=None, token=TOKEN, kind="application/json", method=None):
    """The status and the document of an answer."""
    asked = HTTPConnection("127.0.0.1", port, timeout=20)
    headers = {"Authorization": f"Bearer {token}"} | ({"Content-Type": kind} if kind else {})
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    asked.request(method or ("GET" if body is None else "POST"), path, content, headers)
    answer = asked.getresponse()
    return answer.status, json.loads(answer.read())


@pytest.fixture(scope="module")
def port(home):
    with served(home / "classes", rows=50, body_bytes=20_000) as port:
        yield port


@pytest.fixture(scope="module")
def rows(home):
    frame = pd.read_csv(home / "people.csv").drop(columns="kind").head(5)
    return json.loads(frame.to_json(orient="records"))


def test_it_answers_as_senn_predict_does(home, port, rows):
    status, found = ask(port, body={"rows": rows, "proba": True})
    run = senn.load_run(home / "classes")
    frame = pd.read_csv(home / "people.csv").head(5)
    assert (status, found["notes"]) == (200, [])
    assert found["predictions"] == run.predict(frame).tolist()
    chances = [[row[name] for name in ("big", "small")] for row in found["probabilities"]]
    np.testing.assert_allclose(chances, run.predict_proba(frame), rtol=1e-5)
    assert set(ask(port, body={"rows": rows})[1]) == {"predictions", "notes"}


def test_what_training_never_saw_is_noted(port, rows):
    _, found = ask(port, body={"rows": [{**rows[0], "color": "mauve"}]})
    (note,) = found["notes"]
    assert (
        note == "column 'color': 1 of 1 cells were never seen in training, the first being 'mauve'"
    )


def test_only_the_token_is_admitted_but_health_is_told_to_all(port, rows):
    for token in ("", "b-token", TOKEN + "x"):
        assert ask(port, body={"rows": rows}, token=token)[0] == 401
        assert ask(port, "/model", token=token)[0] == 401
    assert ask(port, "/health", token="") == (200, {"status": "ok"})
    about = ask(port, "/model")[1]
    assert (about["target"], about["classes"], about["most_rows"]) == ("kind", ["big", "small"], 50)


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"{", 400, "the body isn't JSON"),
        (b'{"rows": [{"color": NaN}]}', 400, "the body isn't JSON: NaN"),
        (b"[" * 9000, 400, "the body isn't JSON: it is nested too deeply"),
        ([], 400, "the body must be an object with a list of 'rows'"),
        ({"rows": {}}, 400, "the body must be an object with a list of 'rows'"),
        ({"rows": [], "proba": True}, 400, "a request has 1 to 50 rows, not 0"),
        ({"rows": [{}] * 51}, 400, "a request has 1 to 50 rows, not 51"),
        ({"rows": [{}], "threshold": 1}, 400, "'threshold' isn't known"),
        ({"rows": [{}], "proba": 1}, 400, "'proba' is true or false"),
        ({"rows": [3]}, 400, "row 1 isn't an object"),
        ({"rows": [{"color": []}]}, 400, "row 1: column 'color' holds a list or an object"),
        ({"rows": [{"color": "red"}]}, 400, "the rows lack the column 'größe'"),
        (b" " * 20_001, 413, "the body has more than 20,000 bytes"),
    ],
)  # fmt: skip
def test_bodies_that_are_refused_in_a_sentence(port, body, status, sentence):
    found = ask(port, body=body)
    assert found[0] == status
    assert found[1]["error"].startswith(sentence)


def test_cells_of_any_kind_are_answered_or_refused(port, rows):
    for cell in (None, True, "", "x", 1e308, 10**40, "9" * 400, "\udce9", "2020-99-99", -3):
        for name in rows[0]:
            status, found = ask(port, body={"rows": [{**rows[0], name: cell}]})
            assert status in (200, 400), (name, cell, found)
            assert set(found) in ({"error"}, {"predictions", "notes"})


def test_other_paths_methods_and_kinds(port, rows):
    assert ask(port, "/else")[0] == 404
    assert ask(port, "/predict")[0] == 405
    assert ask(port, body={"rows": rows}, kind="text/plain")[0] == 415
    assert ask(port, body={"rows": rows}, kind=None)[0] == 415


def test_too_many_requests_are_told_to_come_later(home, rows):
    with served(home / "classes", waiting=0) as port:
        assert ask(port, body={"rows": rows}) == (
            503,
            {"error": "too many requests are waiting; try again"},
        )


def test_a_body_that_does_not_arrive_is_given_up(home):
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    rest = "Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    with served(home / "classes", seconds=0.2) as port:  # noqa: SIM117
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(f"{head}{rest}".encode())
            assert slow.recv(1000).startswith(b"HTTP/1.1 408")


def test_connections_without_a_request_are_closed(home, rows, monkeypatch):
    monkeypatch.setattr(prediction_service, "SILENCE", 0.3)
    with served(home / "classes") as port:
        silent, slow = (socket.create_connection(("127.0.0.1", port), 20) for _ in range(2))
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        assert silent.recv(1) == b""
        assert slow.recv(1) == b""
        assert ask(port, body={"rows": rows})[0] == 200


def test_numbers_have_no_probabilities(home):
    with served(home / "numbers") as port:
        assert ask(port, body={"rows": [{}], "proba": True})[1]["error"].startswith("probabilities")
        assert ask(port, "/model")[1]["classes"] is None


def test_images_in_base64(tmp_path):
    draw = np.random.default_rng(0)
    for label, name in enumerate(("dark", "bright")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for at in range(6):
            pixels = draw.integers(0, 90, (8, 8, 3)) + 150 * label
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "set" / name / f"{at}.png")
    run = tmp_path / "run"
    argv = ["fit", str(tmp_path / "set"), "--out", str(run), "--epochs", "1", "--quiet"]
    assert main(argv) == 0
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), "white").save(buffer, "PNG")
    picture = base64.b64encode(buffer.getvalue()).decode()
    with served(run) as port:
        status, found = ask(port, body={"images": [picture] * 2, "proba": True})
        assert (status, len(found["predictions"])) == (200, 2)
        assert sum(found["probabilities"][0].values()) == pytest.approx(1)
        for wrong, sentence in (
            ("%", "image 1 isn't a text in base64"),
            (3, "image 1 isn't a text in base64"),
            ("eA==", "image 1 can't be decoded as an image"),
        ):
            status, found = ask(port, body={"images": [wrong]})
            assert status == 400
            assert found["error"].startswith(sentence)


def test_the_command_prints_its_address_and_ends_by_a_signal(home):
    environment = {name: value for name, value in os.environ.items() if name != "SENN_TOKEN"}
    with subprocess.Popen(
        [sys.executable, "-m", "senn", "serve", str(home / "classes"), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        port = int(re.search(r"127\.0\.0\.1:(\d+)/predict", process.stdout.readline())[1])
        token = process.stdout.readline().split()[-1]
        assert ask(port, "/model", token=token)[0] == 200
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode in (-signal.SIGTERM, 143)


def test_what_cannot_be_served(home, capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(capsys, ["serve", home / "classes", "--port", port])
    assert f"'127.0.0.1' can't be listened to at port {port}" in said
    assert "holds no saved model" in refused(capsys, ["serve", home])
    for token in ("", "a b", "caf\xe9", "a\n"):
        monkeypatch.setenv("SENN_TOKEN", token)
        said = refused(capsys, ["serve", home / "classes"])
        assert "the token must be printable ASCII without blanks" in said


def test_the_missing_package_is_named_with_its_extra(home, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    said = refused(capsys, ["serve", home / "classes"])
    assert "needs the package 'uvicorn', which isn't installed: pip install 'senn[serve]'" in said
