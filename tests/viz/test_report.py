"""The report: what it reads and writes, without a browser."""

import copy
import json
import math
import re
import sys
import textwrap
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_cases import refused
from report_cases import HOSTILE, PICTURE_DETAILS, folder_of, long_run, waves

import senn
from senn import SennError
from senn.cli.main import main
from senn.training import GrowthSession, TrainConfig
from senn.viz.report import RunReport, downsample_record, page
from senn.viz.report.downsample import CANDIDATE, MOST_NAMES, select_details, select_results
from senn.viz.report.page import SCRIPTS, asset, charting_library, script_json

pytest.importorskip("vl_convert")


def test_images_of_a_test_are_images_and_nothing_else():
    for image in (
        "https://example.com/a.png",
        "data:image/svg+xml;base64,AAAA",
        "data:image/png;base64,AA AA",
        "data:image/png;base64," + "A" * 50_000,
    ):
        run, results = waves()
        details = {
            **PICTURE_DETAILS,
            "wrongest": [{**PICTURE_DETAILS["wrongest"][0], "image": image}],
        }
        with pytest.raises(SennError, match="an image of the test isn't one"):
            RunReport("run", run.history, results, None, details).document()
    assert len(select_details(PICTURE_DETAILS)["wrongest"]) == 1


def records_of(text):
    return json.loads(
        re.search(r'<script type="application/json" id="records">(.*?)</script>', text, re.S)[1]
    )


class Links(HTMLParser):
    """What a page refers to, and how many scripts it has."""

    def __init__(self, text):
        super().__init__()
        self.found, self.scripts = [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        self.found += [value for name, value in attrs if name in ("src", "href", "action", "data")]


def test_a_growth_round_keeps_all_candidates_and_their_figures():
    run, _ = waves()
    record = next(one for one in run.history if one["event"] == "growth_round")
    told = downsample_record(record)
    every = [(1, one) for one in record["accepted"]] + [(0, one) for one in record["refused"]]
    assert len(told["rows"]) == len(every) > 0
    for row, (accepted, one) in zip(told["rows"], every, strict=True):
        assert row[0] == accepted
        for column, cell in zip(CANDIDATE, row[1:], strict=True):
            if isinstance(one[column], str):
                assert told["names"][cell] == one[column]
            else:
                assert cell == pytest.approx(one[column], rel=1e-4)


@pytest.mark.parametrize(
    "damage",
    [
        lambda end: end.update(frontier=[]),
        lambda end: end["frontier"].pop("units"),
        lambda end: end["frontier"].update(units="many"),
        lambda end: end["frontier"]["points"][1].update(parameters="many"),
        lambda end: end["frontier"]["points"][1].update(widths={"0": 1.5}),
        lambda end: end["frontier"]["points"][1]["figures"].pop("loss"),
        lambda end: end["frontier"]["points"][1].update(figures=None),
    ],
)
def test_a_damaged_frontier_is_refused(damage):
    run, results = waves()
    history = copy.deepcopy(run.history)
    RunReport("run", history, results).document()
    damage(history[-1])
    with pytest.raises(SennError, match="the run 'run' is damaged"):
        RunReport("run", history, results).document()


def test_numbers_that_json_has_not_become_null():
    end = {"event": "end", "validation": {"loss": math.nan}, "seconds": math.inf, "epochs": 3}
    assert downsample_record(end) == {
        "event": "end",
        "validation": {"loss": None},
        "seconds": None,
        "epochs": 3,
    }


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"event": 3, "step": 0},
        {"event": "epoch"},
        {"event": "epoch", "step": "one"},
        {"event": "epoch", "step": 1, "architecture": ["a"], "parameters": 1},
        {"event": "growth", "step": 1, "architecture": [1], "parameters": None},
        {"event": "growth_round", "step": 1, "accepted": [{}], "refused": []},
        {"event": "growth_round", "step": 1, "accepted": 5, "refused": []},
    ],
)
def test_a_record_that_is_none_is_refused_in_one_sentence(record):
    with pytest.raises(SennError, match=r"^the run 'spoilt' is damaged: [^\n]+$"):
        page([RunReport("spoilt", [record])])


def test_long_lists_of_names_are_cut_and_say_so():
    data = {
        "classes": list(range(1000)),
        "columns": {f"c{n}": "number" for n in range(MOST_NAMES + 1)},
    }
    shown = select_results({"data": data, "test": {}})["data"]
    assert shown["classes"][-1] == "and 800 more"
    assert shown["columns"][-1] == ["and 1 more", ""]


def test_the_page_refers_to_nothing_outside_and_holds_what_it_is_given():
    run, results = waves()
    text = page([RunReport("waves", run.history, results, "class Net: pass")])
    links = Links(text)
    assert links.scripts == 3
    assert all(link.startswith(("#", "data:")) for link in links.found)
    assert "default-src 'none'" in text
    document = records_of(text)
    assert len(document["runs"][0]["records"]) == len(run.history)
    assert document["runs"][0]["code"] == "class Net: pass"
    assert document["columns"] == list(CANDIDATE)


def test_names_cannot_break_out_of_the_page():
    run, results = waves()
    results = {
        **results,
        "data": {**results["data"], "target": HOSTILE, "classes": [HOSTILE, "\ud800"]},
    }
    text = page([RunReport(HOSTILE, run.history, results, HOSTILE)])
    assert Links(text).scripts == 3
    document = records_of(text)["runs"][0]
    assert document["name"] == document["code"] == document["results"]["data"]["target"] == HOSTILE
    assert "<script>window" not in text
    text.encode("utf-8")


def test_json_in_a_script_says_the_same_and_has_no_markup():
    value = {"a": ["</SCRIPT>", "<!--", "]]>", "&", "\u2028", 1.5, None, True]}
    text = script_json(value)
    assert not set("<>&") & set(text)
    assert json.loads(text) == value


def test_runs_of_one_name_are_told_apart():
    run, results = waves()
    names = [
        one["name"]
        for one in records_of(page([RunReport("same", run.history, results)] * 3))["runs"]
    ]
    assert names == ["same", "same (2)", "same (3)"]


def test_the_example_of_a_loop_of_ones_own_makes_a_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] * x[:, 1] > 0).long()
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    names = {
        "senn": senn,
        "Any": Any,
        "Path": Path,
        "page": page,
        "RunReport": RunReport,
        "x": x,
        "y": y,
        "model": model,
        "optimizer": optimizer,
        "loss": torch.nn.functional.cross_entropy,
        "GrowthSession": GrowthSession,
        "TrainConfig": TrainConfig,
    }
    code = re.search(r"::\n\n(.*?)\n\n    with `GrowthSession`", page.__doc__, re.S)[1]
    exec(textwrap.dedent(code), names)
    records = records_of(Path("own.html").read_text("utf-8"))["runs"][0]["records"]
    assert [one["event"] for one in (records[0], records[-1])] == ["start", "end"]
    assert sum(one["event"] == "growth_round" for one in records) == 4
    assert (
        sum(one["event"] == "growth" for one in records) == len(names["session"].grower.events) > 0
    )


def test_five_hundred_changes_are_less_than_three_megabytes():
    history = long_run(500)
    assert sum(one["event"] == "growth" for one in history) == 500
    size = len(page([RunReport("long", history)]).encode())
    print(f"{size / 1e6:.2f} MB")
    assert size < 3e6


def test_every_script_of_the_page_is_a_file_and_every_file_is_on_the_page():
    for name in SCRIPTS:
        assert asset(f"{name}.js").startswith('"use strict";\n//')
    assert asset("page.html").count("<!--@") == 5


# -- the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folder_of(*waves(), tmp_path_factory.mktemp("runs") / "waves")


def test_the_command_writes_a_page_with_the_network_as_code(folder, capsys):
    assert main(["report", str(folder)]) == 0
    assert "opens in any browser" in capsys.readouterr().out
    document = records_of((folder / "report.html").read_text("utf-8"))
    assert document["runs"][0]["name"] == "waves"
    assert "class Net(nn.Module):" in document["runs"][0]["code"]
    assert document["live"] is False
    assert main(["report", str(folder)]) == 0  # again, in place of the page


def test_several_runs_are_one_page(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(folder), str(folder)]) == 0
    assert len(records_of((tmp_path / "comparison.html").read_text("utf-8"))["runs"]) == 2


def test_an_unfinished_run_is_shown_as_far_as_it_has_come(folder, tmp_path):
    home = tmp_path / "half" / "unfinished"
    home.mkdir(parents=True)
    from senn import atomic_files

    atomic_files.write(
        home / "run.json",
        atomic_files.to_checksummed_json(
            {"format": "senn-run", "version": 1, "arguments": ["waves"]}
        ),
    )
    lines = (folder / "history.jsonl").read_bytes().splitlines(keepends=True)
    (home / "history.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:20])
    assert main(["report", str(tmp_path / "half"), "--out", str(tmp_path / "half.html")]) == 0
    document = records_of((tmp_path / "half.html").read_text("utf-8"))["runs"][0]
    assert len(document["records"]) == 5
    assert document["results"] is document["code"] is None


def test_what_is_no_run_or_a_damaged_one_is_one_sentence(folder, tmp_path, capsys):
    assert "holds no run" in refused(capsys, ["report", tmp_path])
    copy = folder_of(*waves(), tmp_path / "spoilt")
    (copy / "history.jsonl").write_text('{"event": "epoch"}\n')
    assert "damaged" in refused(capsys, ["report", copy])


def test_a_report_replaces_nothing_but_a_page(folder, tmp_path, capsys):
    table = tmp_path / "table.csv"
    table.write_text("a,b\n")
    assert "isn't an HTML page" in refused(capsys, ["report", folder, "--out", table])
    assert table.read_text() == "a,b\n"
    assert "is a folder" in refused(capsys, ["report", folder, "--out", tmp_path])


def test_the_missing_charting_library_is_one_sentence(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    charting_library.cache_clear()
    assert "pip install 'senn[cli]'" in refused(capsys, ["report", folder])
    charting_library.cache_clear()
