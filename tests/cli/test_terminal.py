"""Standard output that takes no more, has gone, or is a terminal that obeys what is written to it."""

import io
import os
import pathlib
import sys

import pytest

from senn._text import one_line, printable, shortened
from senn.cli.main import main
from senn.cli.terminal import GuardedStream, guarded_streams, outliving_readers, write_data


class TestText:
    def test_control_characters_are_escapes(self):
        assert printable("a\tb\nc") == "a\tb\nc"
        assert printable("\x1b[31m\r\x7f") == "\\x1b[31m\\x0d\\x7f"
        assert printable("caf\udce9\u202e\x9b") == "caf\\udce9\\u202e\\u009b"
        assert printable("größe ☂ 👩‍🚀") == "größe ☂ 👩‍🚀"
        assert one_line("two\r\n lines\x07") == "two lines\\x07"

    def test_long_sentences_lose_their_middle(self):
        text = shortened("begin" + "x" * 5000 + "end", 100)
        assert (text[:5], text[-3:]) == ("begin", "end")
        assert len(text) < 120


class Failing(io.StringIO):
    """A stream that takes so many texts."""

    def __init__(self, most):
        super().__init__()
        self.most = most

    def write(self, text):
        self.most -= 1
        if self.most < 0:
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)


def test_a_run_outlives_its_reader_and_says_so_once(monkeypatch):
    out, err = GuardedStream(Failing(2), "standard output"), GuardedStream(io.StringIO(), "err")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with outliving_readers():
        for line in "abc":
            print(line)
    assert out.stream.getvalue() == "a\n"
    assert err.stream.getvalue() == (
        "senn: standard output takes no more (Broken pipe), so the run goes on in silence\n"
    )


def test_what_only_prints_fails(monkeypatch):
    monkeypatch.setattr(sys, "stdout", GuardedStream(Failing(0), "standard output"))
    with pytest.raises(BrokenPipeError):
        print("a")


def test_data_for_a_closed_output_are_not_lost_in_silence(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with guarded_streams():
        print("a word")
        with pytest.raises(OSError, match="Bad file descriptor"):
            write_data("a,b")


def test_a_full_disk_behind_standard_output_ends_no_training(tmp_path, monkeypatch, capsys):
    """What a process says of such a disk as it ends is tested with `senn show`."""
    full = pathlib.Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full here")
    with full.open("wb", buffering=0) as nowhere:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(nowhere, write_through=True))
        assert main(["fit", "wine", "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
        monkeypatch.undo()
    said = capsys.readouterr().err
    assert "No space left on device), so the run goes on in silence" in said
    assert (tmp_path / "run" / "results.json").exists()


def test_a_plan_whose_reader_has_gone_ends_like_any_listing(monkeypatch):
    """Rich would end it with another exit code."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb", buffering=0) as nobody:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(nobody, write_through=True))
        assert main(["fit", "wine", "--dry-run"]) == 0
        monkeypatch.undo()
