"""Signals: the limit of the work that comes after one."""

from __future__ import annotations

import signal
import time
from contextlib import suppress

import pytest

from senn.cli import main as command_line
from senn.cli.signals import Interrupted, Signals
from senn.errors import SennError


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


@pytest.mark.parametrize(
    ("number", "error", "said"),
    [
        (signal.SIGINT, RecursionError("a module is half there"), "senn: interrupted\n"),
        (signal.SIGINT, SennError("it can't be read"), "senn: interrupted; it can't be read\n"),
        (None, RecursionError("a fault"), None),
    ],
)
def test_what_fails_after_an_interrupt_is_no_fault(
    number: int | None,
    error: Exception,
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def importing(name: str) -> None:
        if number is not None:
            with suppress(KeyboardInterrupt):  # as modules do while they are imported
                signal.raise_signal(number)
        raise error

    monkeypatch.setattr(command_line.importlib, "import_module", importing)
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if said is None:
            with pytest.raises(RecursionError):
                command_line.main(["show", "anywhere"])
        else:
            assert command_line.main(["show", "anywhere"]) == 130
            assert capsys.readouterr().err == said
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, former)
