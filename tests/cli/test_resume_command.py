"""`senn fit --resume` and signals, in this process: what is said, refused, kept, and that the end is the same."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_cases import refused
from filelock import FileLock
from test_resume_kill import content

from senn import atomic_files
from senn.cli import signals
from senn.cli.fit import _damage_in_one_sentence
from senn.cli.fit_arguments import FitArguments
from senn.cli.main import main, parser
from senn.cli.watch import Watch
from senn.collectives import Communicator
from senn.errors import SennError
from senn.runs import FitOptions, RunFolder, read
from senn.runs.run_folder import LOCK
from senn.scoring.scoring_session import ScoringSession
from senn.training.progress import LinesCallback

close = Watch.close
ARGV = ["fit", "wine", "--epochs", "8", "--seed", "3", "--quiet"]


@pytest.fixture(autouse=True)
def _every_step(monkeypatch):
    monkeypatch.setenv("SENN_CHECKPOINT_SECONDS", "0")
    monkeypatch.setattr(
        "senn.cli.fit.growth_figure", lambda *_: None
    )  # it takes most of the time, and no part in this


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run says that nothing has disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("senn.cli.fit.growth_figure", lambda *_: None)
        assert main([*ARGV, "--out", str(tmp_path_factory.getbasetemp() / "whole")]) == 0
    return content(tmp_path_factory.getbasetemp() / "whole")


def arguments_of(argv):
    parsed = vars(parser()[0].parse_args(["fit", *argv]))
    return FitArguments.from_parsed(
        {name: value for name, value in parsed.items() if name != "command"}
    )


def interrupted_at(epoch, number=signal.SIGINT):
    """A callback's method that has a signal come once."""
    came = []

    def on_epoch(self, record):
        if record["epoch"] == epoch and not came:
            came.append(1)
            signal.raise_signal(number)

    return on_epoch


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that was interrupted in its fifth epoch."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENN_CHECKPOINT_SECONDS", "0")
        patch.setattr("senn.cli.fit.growth_figure", lambda *_: None)
        patch.setattr(LinesCallback, "on_epoch", interrupted_at(4))
        assert main([*ARGV, "--out", str(folder)]) == 130
    return folder


@pytest.fixture
def cut(tmp_path, interrupted):
    """A copy of it, and the arguments that go on with it."""
    shutil.copytree(interrupted, tmp_path / "run")
    return ["fit", "--resume", str(tmp_path / "run")]


def test_an_interrupted_run_is_usable_and_goes_on_to_the_same_end(cut, tmp_path, whole, capsys):
    saved = read(tmp_path / "run")
    assert saved.unfinished
    assert saved.results["interrupted"]
    assert saved.history[-1]["reason"] == "interrupted"
    assert main(["predict", str(tmp_path / "run"), str(wine(tmp_path))]) == 0
    assert main(["show", str(tmp_path / "run")]) == 0
    assert (
        f"it is unfinished; to resume: senn fit --resume {tmp_path / 'run'}\n"
        in capsys.readouterr().out
    )
    assert main(cut) == 0
    assert "note: resumed after step 9" in capsys.readouterr().out
    assert content(tmp_path / "run") == whole
    assert main(cut) == 0
    assert capsys.readouterr().out == f"the run in {tmp_path / 'run'} is complete\n"
    assert main([*cut, "--epochs", "40"]) == 2
    assert "is complete, so --epochs can't change it" in capsys.readouterr().err


def test_who_watches_a_run_that_goes_on_sees_it_from_its_beginning(cut, tmp_path, monkeypatch):
    pytest.importorskip("vl_convert")
    pages = []
    monkeypatch.setattr(
        Watch, "close", lambda watch, how="": pages.append(watch.page()) or close(watch, how)
    )
    before = read(tmp_path / "run").history
    assert main([*cut, "--watch"]) == 0
    (text,) = pages
    told = json.loads(re.search(r'id="records">(.*?)</script>', text, re.S)[1])["runs"][0][
        "records"
    ]
    after = read(tmp_path / "run").history
    assert [(one["event"], one.get("step")) for one in told] == [
        (one["event"], one.get("step")) for one in after
    ]
    assert sum(one["event"] == "epoch" for one in before) > 1


def wine(folder):
    from sklearn.datasets import load_wine

    load_wine(as_frame=True).frame.to_csv(folder / "wine.csv", index=False)
    return folder / "wine.csv"


def test_a_round_that_takes_long_is_given_up(tmp_path, whole, monkeypatch, capsys):
    """Nothing half-done is kept: the run goes on from before the round."""
    monkeypatch.setattr(signals, "GRACE_SECONDS", 0.01)
    add, came = ScoringSession.add_batch, []

    def slow(self, *args):
        came.append(1)
        if len(came) == 3:
            signal.raise_signal(signal.SIGTERM)
            for _ in range(100):
                time.sleep(0.01)
        return add(self, *args)

    monkeypatch.setattr(ScoringSession, "add_batch", slow)
    assert main([*ARGV, "--out", str(tmp_path / "run")]) == 143
    assert len(came) == 3
    assert main(["fit", "--resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert content(tmp_path / "run") == whole


def test_a_run_that_is_to_be_replaced_stays_until_the_new_one_is_complete(
    tmp_path, whole, monkeypatch, capsys
):
    run = tmp_path / "run"
    assert main([*ARGV[:-3], "--seed", "4", "--quiet", "--out", str(run)]) == 0
    before = content(run)
    monkeypatch.setattr(LinesCallback, "on_epoch", interrupted_at(3))
    assert main([*ARGV, "--out", str(run), "--overwrite"]) == 130
    assert f"interrupted; {run} still holds the earlier run; to resume" in capsys.readouterr().err
    assert content(run)[:3] == before[:3]
    assert main(["show", str(run)]) == 0
    assert "a run that is to replace it is unfinished" in capsys.readouterr().out
    assert main(["fit", "--resume", str(run), "--quiet"]) == 0
    assert content(run) == whole


@pytest.mark.parametrize("count", [1, 2])
def test_damaged_checkpoints_are_passed_over_and_that_is_said(cut, tmp_path, whole, capsys, count):
    checkpoints = sorted((tmp_path / "run" / "unfinished").glob("checkpoint-*"))
    assert len(checkpoints) == 2
    for checkpoint in checkpoints[-count:]:
        file = checkpoint / "state.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
    assert main(cut) == 0
    out = capsys.readouterr().out
    assert (
        out.count(
            "state.safetensors' is damaged: it isn't the file that was written with state.json"
        )
        == count
    )
    assert ("resumed after step 8" if count == 1 else "the run starts over") in out
    assert content(tmp_path / "run") == whole


def test_a_run_without_a_checkpoint_starts_over(cut, tmp_path, whole, capsys):
    for checkpoint in (tmp_path / "run" / "unfinished").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    (tmp_path / "run" / "results.json").unlink()
    with (tmp_path / "run" / "unfinished" / "history.jsonl").open("a") as file:
        file.write('{"event": "epo')
    assert main(["show", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(
        "unfinished: senn fit wine --epochs=8 --seed=3\nepoch 4 of 8, hidden layers "
    )
    assert main(["show", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["last"]["epoch"] == 4
    assert main(cut) == 0
    assert (
        "note: there is no checkpoint to resume from: the run starts over"
        in capsys.readouterr().out
    )
    assert content(tmp_path / "run") == whole


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--epochs", "9"], "--epochs contradicts the run"),
        (["--seed", "0"], "--seed contradicts the run"),
        (["--max-params", "900"], "--max-params contradicts the run"),
        (["--column", "hue=dropped"], "--column contradicts the run"),
        (["digits"], "DATA contradicts the run"),
        (["--out", "elsewhere"], "--out can't be combined with --resume"),
        (["--overwrite"], "--overwrite can't be combined"),
        (["--dry-run"], "--dry-run can't be combined"),
        (["--epochs", "x"], "argument --epochs"),
    ],
)
def test_a_run_stays_what_it_was(cut, capsys, more, message):
    assert message in refused(capsys, [*cut, *more])


def test_options_called_like_files_stay_what_they_are(tmp_path, monkeypatch):
    """Only paths are kept as paths: a folder may be called like a column."""
    monkeypatch.chdir(tmp_path)
    for name in ("label", "adamw", "price", "t.csv", "images"):
        (tmp_path / name).touch()
    argv = ["t.csv", "--target=label", "--data-dir=images", "--optimizer=adamw", "--policy=price"]
    options, _ = arguments_of(argv).options()
    place = os.getcwd()
    kept = options.with_absolute_paths()
    assert kept.arguments() == [
        f"{place}/t.csv",
        "--target=label",
        f"--data-dir={place}/images",
        "--optimizer=adamw",
    ]
    assert FitOptions.from_dict(json.loads(json.dumps(kept.to_dict()))) == kept
    RunFolder(Path("run")).begin(kept)
    assert arguments_of(["--resume", "run", *argv]).options()[0] == kept


def test_options_that_agree_do_no_harm(cut, tmp_path, whole):
    assert main([*cut, "wine", "--epochs", "8", "--quiet"]) == 0
    assert content(tmp_path / "run") == whole


def test_other_data_are_refused(tmp_path, monkeypatch, capsys):
    table = wine(tmp_path)
    monkeypatch.setattr(LinesCallback, "on_epoch", interrupted_at(1))
    argv = [
        "fit",
        str(table),
        "--target",
        "target",
        "--epochs",
        "3",
        "--quiet",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(argv) == 130
    text = table.read_text()
    table.write_text(text.replace("14.23", "14.24", 1))
    resume = ["fit", "--resume", str(tmp_path / "run")]
    assert "the data of the run" in (message := refused(capsys, resume))
    assert "have changed since" in message
    table.write_text(text)
    assert main([*resume, "--json"]) == 0
    assert not json.loads(capsys.readouterr().out)["interrupted"]


def test_what_holds_no_unfinished_run(cut, tmp_path, capsys):
    assert "the following arguments are required: DATA" in refused(capsys, ["fit"])
    assert "holds no run" in refused(capsys, ["fit", "--resume", tmp_path / "nowhere"])
    assert not (tmp_path / "nowhere").exists()
    message = refused(capsys, [*ARGV, "--out", tmp_path / "run"])
    assert "holds an unfinished run; resume it: senn fit --resume" in message
    about = json.loads((tmp_path / "run" / "unfinished" / "run.json").read_text())
    (tmp_path / "run" / "unfinished" / "run.json").write_bytes(
        atomic_files.to_checksummed_json({**about, "version": 3})
    )
    assert "has format version 3; this senn reads 1 and 2" in refused(capsys, cut)
    old = [
        {"version": 1, "arguments": one}
        for one in (["--resume=x"], ["wine", "--epochs=x"], [], [3], None)
    ]
    for change in (
        {"resume": "x"},
        {"epochs": "x"},
        {"seed": True},
        {"data": None},
        {"column": [["a"]]},
        {"task": "x"},
    ):
        old.append({"options": {**about["options"], **change}})
    for change in [*old, {"options": {}}, {"options": None}]:
        (tmp_path / "run" / "unfinished" / "run.json").write_bytes(
            atomic_files.to_checksummed_json({**about, **change})
        )
        assert "run.json' is damaged: " in refused(capsys, cut)


def test_two_at_a_time_are_refused(cut, tmp_path, capsys):
    with FileLock(tmp_path / "run" / LOCK):
        assert "another process is at work in" in refused(capsys, cut)


def test_a_full_disk_costs_no_more_than_the_time_since_the_last_checkpoint(
    tmp_path, whole, monkeypatch, capsys
):
    """The system refuses longer files from the fourth epoch on: the run says so, and can be gone on with later."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    told = []

    def on_epoch(self, record):
        if record["epoch"] == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))

    monkeypatch.setattr(LinesCallback, "on_epoch", on_epoch)
    monkeypatch.setattr(LinesCallback, "on_fault", lambda self, record: told.append(record))
    try:
        message = refused(capsys, [*ARGV, "--out", tmp_path / "run"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        monkeypatch.setattr(LinesCallback, "on_epoch", lambda self, record: None)
    assert f"File too large; resume it later: senn fit --resume {tmp_path / 'run'}" in message
    assert len(told) == 8
    assert {"no checkpoint was written: [Errno 27] File too large"} == {
        record["text"] for record in told
    }
    assert main(["fit", "--resume", str(tmp_path / "run")]) == 0
    assert "resumed after step 8" in capsys.readouterr().out
    assert content(tmp_path / "run") == whole


def test_a_folder_that_can_only_be_read(cut, tmp_path, whole, capsys):
    run = tmp_path / "run"
    if subprocess.run(["mount", "--bind", run, run], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", run], check=True)
        assert f"'{run}' can't be written: Read-only file system; resume it later" in refused(
            capsys, cut
        )
        assert main(["show", str(run)]) == 0
    finally:
        subprocess.run(["umount", run], check=True)
    assert main(cut) == 0
    assert content(run) == whole


def test_a_table_whose_name_is_no_text(tmp_path, monkeypatch, capsys):
    table, run = tmp_path / os.fsdecode(b"bad\xff.csv"), str(tmp_path / "run")
    wine(tmp_path).rename(table)
    monkeypatch.setattr(LinesCallback, "on_epoch", interrupted_at(1))
    assert main(["fit", str(table), "--target", "target", "--epochs", "2", "--out", run]) == 130
    assert main(["fit", "--resume", run]) == 0
    assert main(["show", run]) == 0
    assert main(["export", run, "--to", "hub", "--out", str(tmp_path / "hub")]) == 0
    assert "bad\\udcff: classification" in capsys.readouterr().out


def test_a_disk_that_is_really_full(tmp_path, whole, capsys):
    """A file system of its own, as large as a few checkpoints."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160k", "none", place], capture_output=True
    ).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        (place / "filler").write_bytes(bytes(20_000))
        message = refused(capsys, [*ARGV, "--out", place / "run"])
        assert "No space left on device" in message
        (place / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,size=2m", place], check=True)
        saved = read(place / "run") if (place / "run").exists() else None
        argv = (
            ["fit", "--resume", str(place / "run"), "--quiet"]
            if saved
            else [*ARGV, "--out", str(place / "run")]
        )
        assert main(argv) == 0
        assert content(place / "run") == whole
    finally:
        subprocess.run(["umount", place], check=True)


def test_what_a_forged_checkpoint_brings_about_is_one_sentence():
    """Wherever it shows, in training or when the network is scored; a fault without a checkpoint stays what it is."""
    checkpointer = SimpleNamespace(state={"step": 1}, communicator=Communicator())
    said = "can't be resumed from its checkpoint: IndexError: out of range"
    with pytest.raises(SennError, match=said), _damage_in_one_sentence(checkpointer):
        raise IndexError("out of range")
    checkpointer.state = None
    with pytest.raises(IndexError), _damage_in_one_sentence(checkpointer):
        raise IndexError("out of range")
