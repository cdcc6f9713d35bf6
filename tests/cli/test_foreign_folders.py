"""Folders of runs that somebody else has made: checksums right, contents chosen to do harm."""

import hashlib
import json
import os
import shutil

import pytest
from cli_cases import people, refused

from senn import atomic_files
from senn.cli.main import main
from senn.errors import SennError
from senn.runs import FitOptions, RunFolder, read

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b2J\u202egnp"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of a table with columns of every kind."""
    folder = tmp_path_factory.mktemp("foreign")
    people().to_csv(folder / "people.csv", index=False)
    argv = ["fit", str(folder / "people.csv"), "--target", "kind", "--epochs", "2", "--quiet"]
    assert main([*argv, "--out", str(folder / "run")]) == 0
    return folder / "run"


def seal(path, change):
    """Change a document and repair its checksum."""
    document = json.loads(path.read_text())
    change(document)
    document["checksum"] = atomic_files.checksum(document)
    path.write_text(json.dumps(document))


def forged(run, tmp_path, *, results=None, encoder=None):
    """A copy of a run with other contents and right checksums."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    if encoder is not None:
        seal(folder / "model.json", lambda model: encoder(model["extra"]["encoder"]))
        data = (folder / "model.json").read_bytes()
        told = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        seal(folder / "results.json", lambda record: record["files"].update({"model.json": told}))
    if results is not None:
        seal(folder / "results.json", results)
    return folder


RESULTS = {
    "scores that are a list": {"test": [1]},
    "a score that is text": {"test": {"accuracy": "x"}},
    "no data": {"data": None},
    "rows that are text": {"data": {"name": "x", "train_rows": 3, "test_rows": "x"}},
    "widths that are a number": {"architecture": 3},
    "a task of two lines": {"task": "classification\nlicense: evil"},
    "truth for a number": {"parameters": True},
    "a frontier without points": {"frontier": {"points": 3}},
    "versions in a list": {"versions": ["torch"]},
    "files in a list": {"files": ["model.json"]},
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_checked_by_every_command(run, tmp_path, capsys, name):
    folder = forged(run, tmp_path, results=lambda record: record.update(RESULTS[name]))
    commands = (
        ["show", folder],
        ["predict", folder, run.parent / "people.csv"],
        ["report", folder, "--out", tmp_path / "page.html"],
        *(["export", folder, "--to", to, "--out", tmp_path / to] for to in ("python", "hub")),
    )
    for argv in commands:
        assert "is damaged" in refused(capsys, argv)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def _fewer(encoder):
    encoder["target"]["labels"].append("huge")


def _twice(encoder):
    encoder["target"]["labels"] = ["big", "big"]


def _column(kind, **values):
    def change(encoder):
        column = next(one for one in encoder["columns"] if one["kind"] == kind)
        column.update(values)

    return change


ENCODERS = {
    "a label too many": _fewer,
    "one label for two classes": _twice,
    "a median beyond all floats": _column("number", median=10**400),
    "a median date in a far year": _column("date", median=1e15),
    "a scale below nothing": _column("number", scale=-1.0),
    "a column twice": lambda encoder: encoder["columns"].append(encoder["columns"][0]),
    "a column too few": lambda encoder: encoder["columns"].pop(0),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_encodings_are_held_against_the_network(run, tmp_path, capsys, name):
    folder = forged(run, tmp_path, encoder=ENCODERS[name])
    refused(capsys, ["predict", folder, run.parent / "people.csv"])
    refused(capsys, ["export", folder, "--to", "python", "--out", tmp_path / "out"])
    assert not (tmp_path / "out").exists()


def test_text_of_others_is_shown_and_not_obeyed(run, tmp_path, capsys):
    def change(record):
        record["data"]["name"] = ESCAPES
        record["test"]["<script>alert(1)</script>"] = 0.5

    folder = forged(run, tmp_path, results=change)
    assert main(["show", str(folder)]) == 0
    assert main(["export", str(folder), "--to", "hub", "--out", str(tmp_path / "hub")]) == 0
    shown = capsys.readouterr().out
    assert not set(ESCAPES) & set(shown) - set("]0;owned[2Jgnp")
    assert "\\x1b[2J\\u009b2J\\u202egnp" in shown
    head, _, body = (tmp_path / "hub" / "README.md").read_text().partition("\n---\n")
    assert "<script>" not in body
    assert "\x9b" not in head


def test_a_refusal_doesnt_quote_thousands_of_characters(run, tmp_path, capsys):
    folder = forged(
        run, tmp_path, encoder=lambda encoder: encoder["columns"][0].update(kind="x" * 9999)
    )
    assert len(refused(capsys, ["predict", folder, run.parent / "people.csv"])) < 2000


def test_the_hub_gets_no_file_that_the_run_doesnt_vouch_for(run, tmp_path, capsys):
    (tmp_path / "private.txt").write_text("private")
    folder = forged(run, tmp_path, results=lambda record: record["files"].pop("growth.png"))
    (folder / "growth.png").unlink()
    (folder / "growth.png").symlink_to(tmp_path / "private.txt")
    assert main(["export", str(folder), "--to", "hub", "--out", str(tmp_path / "hub")]) == 0
    assert not (tmp_path / "hub" / "growth.png").exists()


@pytest.fixture
def broken_off(run, tmp_path):
    """A run whose files are on their way into its folder."""
    folder = tmp_path / "broken"
    with RunFolder(folder) as writing:
        writing.begin(FitOptions(data="wine"))
        writing.has_checkpoint = True
    shutil.copytree(run, folder / "unfinished" / "finished")
    return folder


class TestUnfinished:
    """What lies in `unfinished/` may lead anywhere."""

    @pytest.mark.parametrize("kind", ["link", "pipe", "folder elsewhere"])
    @pytest.mark.parametrize("name", ["finished/notes.txt", "history.jsonl", "checkpoint-001"])
    def test_links_and_pipes_are_never_followed(self, broken_off, tmp_path, capsys, kind, name):
        private = tmp_path / "private"
        private.mkdir()
        (private / "private.txt").write_text("private")
        path = broken_off / "unfinished" / name
        path.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(private / "private.txt" if kind == "link" else private)
        for argv in (["show", broken_off], ["fit", "--resume", broken_off, "--quiet"]):
            assert "which no unfinished run holds" in refused(capsys, argv)
        assert sorted(path.name for path in private.iterdir()) == ["private.txt"]
        assert {path.name for path in broken_off.iterdir()} == {"unfinished"}

    def test_the_folder_itself_is_no_link(self, broken_off, tmp_path, capsys):
        (broken_off / "unfinished").rename(tmp_path / "elsewhere")
        (broken_off / "unfinished").symlink_to(tmp_path / "elsewhere")
        assert "is a link" in refused(capsys, ["fit", "--resume", broken_off])

    def test_only_what_the_results_vouch_for_is_delivered(self, broken_off, capsys):
        (broken_off / "unfinished" / "finished" / "notes.txt").write_text("more")
        with RunFolder(broken_off, resume=True):
            pass
        assert read(broken_off).results is not None
        assert not (broken_off / "notes.txt").exists()

    @pytest.mark.parametrize(
        "name", ["../notes.txt", "/tmp/notes.txt", ".bashrc", "", "results.json"]
    )
    def test_names_that_lead_elsewhere_are_refused(self, broken_off, capsys, name):
        seal(
            broken_off / "unfinished" / "finished" / "results.json",
            lambda record: record["files"].update({name: record["files"]["model.json"]}),
        )
        with pytest.raises(SennError, match="lists no files"):
            RunFolder(broken_off, resume=True)
        assert {path.name for path in broken_off.iterdir()} == {"unfinished"}


def test_a_run_at_work_is_told_from_one_that_was_broken_off(tmp_path, capsys):
    with RunFolder(tmp_path / "run") as folder:
        folder.begin(FitOptions(data="wine"))
        for argv in (
            ["fit", "wine", "--out", tmp_path / "run"],
            ["fit", "--resume", tmp_path / "run"],
            ["fit", "wine", "--overwrite", "--out", tmp_path / "run"],
        ):
            assert "another process is at work" in refused(capsys, argv)
        assert "still at work" in refused(capsys, ["predict", tmp_path / "run", "wine"])
        assert main(["show", str(tmp_path / "run")]) == 0
        assert "it is unfinished; another process is at work on it" in capsys.readouterr().out
        folder.has_checkpoint = True
    assert "resume it: senn fit --resume" in refused(
        capsys, ["fit", "wine", "--out", tmp_path / "run"]
    )
