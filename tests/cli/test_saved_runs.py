"""Folders written by senn 0.1.0 (record files of version 1) can be shown, predicted with, reported on and resumed."""

import json
import re
import shutil
from pathlib import Path

import pytest
from sklearn.datasets import load_wine

from senn.cli.main import main
from senn.runs import read

SAVED = Path(__file__).parents[1] / "saved"
ARGUMENTS = ["wine", "--column=ash=dropped", "--max-params=110", "--epochs=6", "--seed=3"]
"""What the interrupted run was begun with."""


@pytest.fixture
def finished(tmp_path):
    return shutil.copytree(SAVED / "run_version_1_finished", tmp_path / "finished")


@pytest.fixture
def interrupted(tmp_path):
    return shutil.copytree(SAVED / "run_version_1_interrupted", tmp_path / "interrupted")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def decreases(record):
    """Expected and realized decrease of a growth record, by the names of today or of version 1."""
    old = "promised" in record
    return (
        (record["promised"], record["realised"])
        if old
        else (record["expected_decrease"], record["realized_decrease"])
    )


def test_old_folders_are_shown(finished, interrupted, capsys):
    assert main(["show", str(finished)]) == 0
    assert "widen body.0: 2 -> 5" in capsys.readouterr().out
    assert main(["show", str(interrupted)]) == 0
    shown = capsys.readouterr().out
    assert "prune body.0: 4 -> 3" in shown
    assert f"it is unfinished; to resume: senn fit --resume {interrupted}\n" in shown
    shutil.copytree(
        interrupted / "unfinished", killed := interrupted.with_name("killed") / "unfinished"
    )
    assert main(["show", str(killed.parent)]) == 0
    assert capsys.readouterr().out.startswith(
        f"unfinished: senn fit {' '.join(ARGUMENTS)}\nepoch 2 of 6, "
    )


def test_old_networks_predict(finished, interrupted, tmp_path, capsys):
    load_wine(as_frame=True).frame.to_csv(tmp_path / "wine.csv", index=False)
    for folder in (finished, interrupted):
        assert main(["predict", str(folder), str(tmp_path / "wine.csv"), "--proba"]) == 0
        assert capsys.readouterr().out.count("\n") == 179


def test_old_folders_make_a_report_with_all_their_figures(finished, interrupted, tmp_path):
    pytest.importorskip("vl_convert")
    assert (
        main(["report", str(finished), str(interrupted), "--out", str(tmp_path / "page.html")]) == 0
    )
    text = (tmp_path / "page.html").read_text()
    runs = json.loads(re.search(r'id="records">(.*?)</script>', text, re.S)[1])["runs"]
    for run, folder in zip(runs, (finished, interrupted), strict=True):
        told = [x for one in run["records"] if one["event"] == "growth" for x in decreases(one)]
        kept = [
            x
            for one in lines(folder / "history.jsonl")
            if one["event"] == "growth"
            for x in decreases(one)
        ]
        assert told == [x if x is None else pytest.approx(x, rel=1e-4) for x in kept]


def test_an_old_interrupted_run_goes_on_to_the_end_that_it_would_have_had(
    interrupted, tmp_path, capsys
):
    *before, end = read(interrupted).history
    assert end["event"] == "end"
    again = shutil.copytree(interrupted, tmp_path / "again")
    assert main(["fit", "--resume", str(interrupted)]) == 0
    assert "note: resumed after step 5" in capsys.readouterr().out
    assert main(["fit", *ARGUMENTS, "--out", str(tmp_path / "whole"), "--quiet"]) == 0
    resumed, whole = read(interrupted), read(tmp_path / "whole")
    assert not resumed.unfinished
    assert not resumed.results["interrupted"]
    assert len(resumed.history) > len(before)
    # What came of the last changes is known by now.
    for kept, now in zip(before, resumed.history, strict=False):
        assert now == {**kept, **{key: now[key] for key in ("realized_decrease",) if key in kept}}
    # It began with two units, and its first rounds were those of a version whose units were born without a step: what
    # a whole run of today does is something else. But its records are of the same kind.
    keys = {one["event"]: one.keys() for one in whole.history}
    for one in resumed.history[len(before) :]:
        assert one.keys() == keys.get(one["event"], one.keys())
    assert resumed.history[0]["architecture"] == [2]
    assert main(["fit", "--resume", str(again), "--quiet"]) == 0
    for one, other in zip(resumed.history, read(again).history, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_the_options_of_an_old_run_cannot_be_changed(interrupted, capsys):
    assert main(["fit", "--resume", str(interrupted), "--epochs", "7"]) == 2
    assert "--epochs contradicts the run" in capsys.readouterr().err
