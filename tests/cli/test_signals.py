"""Signals: the limit of the work that comes after one."""

from __future__ import annotations

import signal
import time

import pytest

from senn.cli import main as command_line
from senn.cli.signals import Interrupted, Signals


@pytest.mark.parametrize("ends", ["by itself", "as another error", "with an error of its own"])
def test_work_after_a_signal_is_given_up_however_it_ends(ends: str) -> None:
    if not hasattr(signal, "SIGALRM"):
        pytest.skip("nothing can interrupt work here")

    def work() -> str:
        if ends == "with an error of its own":
            raise ImportError(ends)
        try:
            while True:
                time.sleep(0.01)
        except BaseException as error:
            if ends == "as another error":  # so do modules in C while they are imported
                raise ImportError("initialization failed") from error
            raise

    with Signals() as signals:
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)
        if ends == "with an error of its own":
            with pytest.raises(ImportError, match=ends):
                signals.run_interruptible(5.0, work, "given up")
        else:
            assert signals.run_interruptible(0.1, work, "given up") == "given up"


@pytest.mark.parametrize(("cause", "code"), [(Interrupted(15), 143), (KeyboardInterrupt(), 130)])
def test_an_interrupt_during_an_import_is_no_fault(
    cause: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    def importing(name: str) -> None:
        raise ImportError("initialization failed") from cause

    monkeypatch.setattr(command_line.importlib, "import_module", importing)
    assert command_line.main(["show", "anywhere"]) == code
    assert capsys.readouterr().err == "senn: interrupted\n"
