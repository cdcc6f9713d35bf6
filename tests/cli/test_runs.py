"""A run's folder: whole or not at all, whatever stops the writing; believed only if intact."""

import importlib.util
import json
import os
from pathlib import Path

import pytest
from cli_cases import RESULTS

from senn import atomic_files
from senn.errors import SennError
from senn.runs import FitOptions, RunFolder, complete, read
from senn.runs import run_folder as writing

START = {"event": "start", "step": 0, "parameters": 9}
EPOCH = {"event": "epoch", "epoch": 1, "step": 5, "parameters": 9, "loss": float("inf")}


def begun(path, **options):
    folder = RunFolder(path, **options)
    folder.begin(FitOptions(data="wine"), data="x")
    for record in (START, EPOCH):
        folder.record(record)
    return folder


def finished(folder, text="one", **options):
    folder.write_history([START, EPOCH])
    (folder.draft / "model.json").write_text(text)
    folder.write_results({**RESULTS, "loss": float("nan")})
    folder.publish(**options)


def test_a_run_from_its_start_to_its_end(tmp_path):
    path = tmp_path / "deep" / "run"
    with begun(path) as folder:
        folder.save({"a": 1}, b"first")
        saved = read(path)
        assert (saved.results, saved.unfinished, saved.options) == (
            None,
            True,
            FitOptions(data="wine"),
        )
        assert saved.history == [START, {**EPOCH, "loss": None}]
        finished(folder)
    saved = read(path)
    assert not saved.unfinished
    assert saved.results["seed"] == 1
    assert saved.results["loss"] is None
    assert set(saved.results["files"]) == {"model.json", "history.jsonl"}
    assert sorted(os.listdir(path)) == ["history.jsonl", "model.json", "results.json"]


def test_no_picture_of_another_run_stays_beside_a_new_one(tmp_path):
    made, own = (
        '<!DOCTYPE html>\n<meta name="generator" content="senn">',
        "<!DOCTYPE html>\n<p>my own</p>",
    )
    for page in (made, own):
        path = tmp_path / str(len(page))
        with begun(path) as folder:
            finished(folder)
        (path / "report.html").write_text(page)
        (path / "growth.png").write_bytes(b"old")
        (path / "notes.txt").write_text("mine")
        with begun(path, overwrite=True) as folder:
            assert (
                path / "report.html"
            ).exists()  # the old run stays until the new one is complete
            finished(folder, "two")
        left = {"report.html"} if page == own else set()
        assert (
            set(os.listdir(path))
            == {"history.jsonl", "model.json", "notes.txt", "results.json"} | left
        )


def test_an_unfinished_run_with_a_report_can_be_replaced(tmp_path):
    with begun(tmp_path) as folder:
        folder.save({}, b"")
    (tmp_path / "report.html").write_text("<!DOCTYPE html>")
    with begun(tmp_path, overwrite=True) as folder:
        finished(folder)
    assert read(tmp_path).results["seed"] == 1


def test_what_came_of_a_change_is_known_of_unfinished_runs_too(tmp_path):
    change = {"event": "growth", "step": 5, "parameters": 1, "realized_decrease": None}
    change |= {"text": "", "kind": "widen", "place": "0", "width_before": 1, "width_after": 2}
    changes = [{**change, "round": one} for one in (1, 1, 3)]
    considered = {"event": "growth_round", "step": 5, "accepted": [], "refused": []}
    rounds = [
        {**considered, "realized_decreases": values} for values in ([], [0.5, None], [], [0.25])
    ]
    with begun(tmp_path) as folder:
        for record in (rounds[0], *changes[:2], rounds[1], rounds[2], changes[2]):
            folder.record(record)
        folder.save({}, b"")
    assert [
        one["realized_decrease"] for one in read(tmp_path).history if one["event"] == "growth"
    ] == [0.5, None, None]
    with RunFolder(tmp_path, resume=True) as folder:
        folder.record(rounds[3])
    assert [
        one["realized_decrease"] for one in read(tmp_path).history if one["event"] == "growth"
    ] == [0.5, None, 0.25]


def test_a_run_that_ends_before_its_first_checkpoint_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), begun(tmp_path / "deep" / "run"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_names_of_files_that_are_no_text_come_back(tmp_path):
    name = os.fsdecode(b"bad\xff.csv")
    with RunFolder(tmp_path) as folder:
        folder.begin(FitOptions(data=name), data="x")
        folder.record({**START, "name": name})
        folder.save({"name": name}, b"")
        assert folder.newest()[0][0] == {"name": name}
        assert read(tmp_path).options == FitOptions(data=name)
        assert read(tmp_path).history[0]["name"] == name


def test_what_others_have_put_there_stays(tmp_path):
    (tmp_path / "a" / ".gone.photos").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "unfinished").write_text("mine")
    for folder in (tmp_path / "a", tmp_path / "b"):
        with pytest.raises(SennError, match="isn't empty and holds no run"):
            RunFolder(folder, overwrite=True)
    assert (tmp_path / "a" / ".gone.photos").is_dir()
    assert (tmp_path / "b" / "unfinished").read_text() == "mine"


def test_a_long_history_leaves_a_checkpoint_readable(tmp_path):
    with begun(tmp_path) as folder:
        folder.save({"history": "x" * atomic_files.MOST}, b"")
        assert len(folder.newest()[0][0]["history"]) == atomic_files.MOST


def test_a_run_that_comes_in_between_is_not_replaced(tmp_path, monkeypatch):
    """Another process completes its run after this one has looked at the folder, and before it has it for itself."""
    lock = writing._lock

    def late(path):
        monkeypatch.setattr(writing, "_lock", lock)
        with begun(path) as folder:
            finished(folder)
        return lock(path)

    monkeypatch.setattr(writing, "_lock", late)
    with pytest.raises(SennError, match="holds a run already"):
        RunFolder(tmp_path / "run")
    assert read(tmp_path / "run").results["seed"] == 1


def test_the_last_two_checkpoints_are_kept_and_taken_up(tmp_path):
    with begun(tmp_path) as folder:
        for number in range(5):
            folder.save({"number": number}, bytes([number]))
    home = tmp_path / "unfinished"
    assert sorted(os.listdir(home)) == [
        "checkpoint-004",
        "checkpoint-005",
        "history.jsonl",
        "run.json",
    ]
    (home / ".checkpoint-006.partial").mkdir()
    with RunFolder(tmp_path, resume=True) as folder:
        (state, numbers), reasons = folder.newest()
        with numbers:
            assert (state, numbers.read(), reasons) == ({"number": 4}, b"\4", [])
        assert not (home / ".checkpoint-006.partial").exists()
        folder.restart([START])
        folder.save({"number": 9}, b"")
        assert read(tmp_path).history == [START]
        os.rename(home / "checkpoint-005", home / "checkpoint-007")
        os.rename(home / "checkpoint-006", home / "checkpoint-005")
        found, reasons = folder.newest()
        assert found is None
        assert [reason.rpartition(": ")[2] for reason in reasons] == [
            "it is another checkpoint"
        ] * 2
        about = json.loads((home / "run.json").read_text())
        (home / "run.json").write_bytes(atomic_files.to_checksummed_json({**about, "data": "y"}))
    os.rename(home / "checkpoint-007", home / "checkpoint-006")
    os.rename(home / "checkpoint-005", home / "checkpoint-007")
    os.rename(home / "checkpoint-006", home / "checkpoint-005")
    with pytest.raises(SennError, match="belong to different runs"):
        read(tmp_path)


class Killed(BaseException):
    """Nothing more is done: not even what stands in a `finally`."""


def _kill_at(monkeypatch, count):
    """The system fails at its `count`th renaming, and at all that follows, as after a kill."""
    done = []

    def counting(name):
        original = getattr(os, name)

        def call(*args, **kwargs):
            done.append(name)
            if len(done) >= count:
                raise Killed
            return original(*args, **kwargs)

        return call

    for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
        monkeypatch.setattr(os, name, counting(name))


def test_a_publication_that_is_broken_off_is_finished_later(tmp_path):
    """At every call of the system: before the draft is complete the old run is there, afterwards the new one."""
    seen = set()
    for count in range(1, 99):
        path = tmp_path / str(count)
        with RunFolder(path) as folder:
            folder.begin(FitOptions(data="wine"))
            finished(folder, "old")
        with pytest.MonkeyPatch.context() as patch:
            folder = begun(path, overwrite=True)
            folder.save({}, b"")
            _kill_at(patch, count)
            try:
                finished(folder, "new")
                return_ = True
            except Killed:
                return_ = False
            folder._lock.release()
        place = complete(path)
        text = (place / "model.json").read_text()
        seen.add(text)
        assert read(path).history == [START, {**EPOCH, "loss": None}]
        assert atomic_files.read_checksummed_json(place / "results.json", "senn-run", 2)["files"][
            "model.json"
        ]["sha256"] == atomic_files.bytes_digest(text.encode())
        if return_:
            break
        if read(path).unfinished:
            with RunFolder(path, resume=True):
                pass
            assert not any(name.startswith(".") for name in os.listdir(path))
        assert (path / "model.json").read_text() == text
    assert seen == {"old", "new"}
    assert 8 < count < 98


def test_a_first_run_on_its_way_stays_until_another_is_complete(tmp_path, monkeypatch):
    """Killed when all of its files but the results are in their place: it is told of as what it is, and not lost."""
    folder, write = begun(tmp_path), atomic_files.write

    def killed(path, data):
        if path.name == "results.json":
            raise Killed
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(atomic_files, "write", killed)
        with pytest.raises(Killed):
            finished(folder)
    folder._lock.release()
    assert (tmp_path / "history.jsonl").exists()
    assert not (tmp_path / "results.json").exists()
    (tmp_path / ".results.json.1.tmp").touch()  # of the process that was killed
    with pytest.raises(SennError, match="resume it: senn fit --resume"):
        RunFolder(tmp_path)
    with pytest.raises(ZeroDivisionError), RunFolder(tmp_path, overwrite=True):
        raise ZeroDivisionError
    assert read(tmp_path).results["seed"] == 1
    assert (tmp_path / "model.json").read_text() == "one"
    assert not any(name.startswith(".") for name in os.listdir(tmp_path))


def test_a_disk_that_fills_up_at_any_write_costs_one_checkpoint(tmp_path):
    with begun(tmp_path) as folder:
        folder.save({"number": 0}, b"0")
        fsync, refused, last = os.fsync, 0, 0
        for count in range(1, 9):
            left = [count]

            def full(number, left=left):
                left[0] -= 1
                if left[0] == 0:
                    raise OSError(28, "No space left on device")
                fsync(number)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "fsync", full)
                try:
                    folder.save({"number": count}, b"1")
                    last = count
                except OSError:
                    refused += 1
            assert folder.newest()[0][0] == {"number": last}
            assert not list((tmp_path / "unfinished").glob(".checkpoint*"))
        assert (
            refused == 3
        )  # the history, the numbers and the state; not every system can be asked for a folder's names


@pytest.mark.parametrize(
    "name", ["thesis.tex", "unfinished/thesis.tex", "results.json", "unfinished/run.json"]
)
def test_what_is_not_to_be_replaced(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(SennError, match=r"choose another|resume it"):
        RunFolder(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["model.json", "results.json", "growth.png"])
def test_a_folder_where_a_file_belongs_is_refused_before_any_work(tmp_path, name):
    with begun(tmp_path) as folder:
        folder.save({"a": 1}, b"first")
    (tmp_path / name).mkdir()
    before = sorted(path.name for path in tmp_path.rglob("*"))
    for options in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(SennError, match=f"{name}' is a folder, where a file belongs"):
            RunFolder(tmp_path, **options)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_damaged_folders(tmp_path, monkeypatch):
    path = Path(__file__).parents[2] / "benchmarks" / "damaged_folders.py"
    monkeypatch.syspath_prepend(path.parent)
    spec = importlib.util.spec_from_file_location("damaged_folders", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.measure(30, 2, tmp_path, sparing=2)
    assert found["bad"] == []
    assert found["peak_mb"] < 4000
    for use, counts in found["counts"].items():
        assert set(counts) <= {"no harm", "refused", "its own answer"}
        assert counts["refused"] > 2, use
        assert counts["no harm"] > 2
