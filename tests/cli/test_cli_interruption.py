"""The command line, interrupted: by signals, and by an output that takes no more."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from cli_cases import FILES, fit
from worlds import command

from senn.checkpoint import load
from senn.cli import fit as fit_command
from senn.cli.main import main
from senn.training import kept_frontier
from senn.training.progress import LinesCallback

SAVED = pathlib.Path(__file__).parents[1] / "saved" / "run_version_1_finished"


class TestInterruption:
    def test_the_best_net_so_far_is_kept(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("senn.cli.fit_results.SCORED", 60.0)  # however busy the machine is

        def interrupt(self, record):
            if record["epoch"] == 3:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(LinesCallback, "on_epoch", interrupt)
        assert main([*fit(tmp_path, "wine"), "--epochs", "50", "--quiet"]) == 130
        assert "interrupted; the best network so far is saved" in capsys.readouterr().err
        results = json.loads((tmp_path / "run" / "results.json").read_text())
        assert results["interrupted"]
        assert results["best_epoch"] <= 3
        assert {path.name for path in (tmp_path / "run").iterdir()} - {"growth.png"} == {
            *FILES[1:],
            "unfinished",
        }

    def test_after_the_last_step_it_counts_as_well(self, tmp_path, capsys, monkeypatch):
        # What follows, as the test does, is cut short: a run without it isn't complete.
        def interrupted(*args, **keywords):
            signal.raise_signal(signal.SIGTERM)

        argv = [*fit(tmp_path, "wine"), "--epochs", "2", "--max-params", "20000", "--quiet"]
        with monkeypatch.context() as patched:
            patched.setattr(kept_frontier, "frontier", interrupted)
            assert main(argv) == 143
        results = json.loads((tmp_path / "run" / "results.json").read_text())
        assert results["interrupted"]
        assert results["frontier"] is None
        assert main(["fit", "--resume", str(tmp_path / "run"), "--quiet"]) == 0
        results = json.loads((tmp_path / "run" / "results.json").read_text())
        assert not results["interrupted"]
        assert results["frontier"] is not None
        assert results["test"]

    def test_scores_that_there_was_no_time_for_are_told(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("senn.cli.fit_results.SCORED", 0.0)

        def interrupt(self, record):
            signal.raise_signal(signal.SIGINT)

        with monkeypatch.context() as patched:
            patched.setattr(LinesCallback, "on_epoch", interrupt)
            assert main([*fit(tmp_path, "wine"), "--epochs", "2"]) == 130
        told = "note: the run was asked to end, which left time for no scores of the test"
        assert told in capsys.readouterr().out
        assert not (tmp_path / "run" / "test.json").exists()
        assert main(["fit", "--resume", str(tmp_path / "run")]) == 0
        assert told not in capsys.readouterr().out
        assert (tmp_path / "run" / "test.json").exists()

    def test_before_training_nothing_is_written(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(
            fit_command, "_prepare", lambda *args: signal.raise_signal(signal.SIGINT)
        )
        # a shell starts what runs in its background with this signal ignored
        former = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            assert main([*fit(tmp_path, "wine"), "--quiet"]) == 130
        finally:
            signal.signal(signal.SIGINT, former)
        assert capsys.readouterr().err == "senn: interrupted\n"
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(("number", "times"), [(signal.SIGINT, 2), (signal.SIGTERM, 1)])
    def test_signals_to_a_process(self, tmp_path, number, times):
        process, out, errors = command([*fit(tmp_path, "wine"), "--epochs", "5000"])
        with out, errors:
            assert any(line.startswith("step ") for line in out)
            os.kill(process.pid, number)
            if times == 2:  # an impatient user, while the network is being written
                assert any(line.startswith("training ended") for line in out)
                os.kill(process.pid, number)
            out.read()
            said = errors.read()
        process.join(60)
        assert process.exitcode == 128 + number
        on = f"to resume: senn fit --resume {tmp_path / 'run'}"
        assert said == f"senn: interrupted; the best network so far is saved; {on}\n"
        assert load(tmp_path / "run").hidden
        assert [path.name for path in tmp_path.iterdir()] == ["run"]

    def test_full_standard_output(self, tmp_path):
        full = pathlib.Path("/dev/full")
        if not full.exists():
            pytest.skip("there is no /dev/full here")
        with full.open("w") as nowhere:
            argv = [sys.executable, "-m", "senn.cli.main", "show", str(SAVED)]
            done = subprocess.run(
                argv, stdout=nowhere, stderr=subprocess.PIPE, text=True, check=False
            )
        assert done.returncode == 2
        assert done.stderr == "senn: the output can't be written or read: No space left on device\n"
