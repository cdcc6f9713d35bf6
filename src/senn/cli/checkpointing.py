"""Checkpoints of a run: when one is due, and where it is written."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from senn.checkpoint.model_state import State, packed, unpacked
from senn.cli.signals import Signals
from senn.collectives import Communicator
from senn.errors import SennError
from senn.runs import RunFolder
from senn.training.round_records import Record

SECONDS = "SENN_CHECKPOINT_SECONDS"
"""Environment variable: seconds between two checkpoints; 0 for one after every step."""

# About the most work that a killed run repeats: twice would be noticed, half only writes more
# often.
DEFAULT = "20"
# A save of one second then comes every 100 seconds: at half a kill would cost up to 200, at twice
# 2% of the time goes to saving.
SHARE = 0.01
"""Share of a run's time that checkpoints may take: a large model is saved less often."""


class FolderCheckpointer:
    """Save a run's state in its folder; a `Checkpointer`.

    Args:
        folder: folder of the run.
        signals: signals that ask the run to end.
        resume: start from the newest intact checkpoint in the folder.

    Attributes:
        notes: remarks for the user, such as on damaged checkpoints, one sentence each.
        communicator: the processes that make the run, of which this one keeps it.
    """

    def __init__(self, folder: RunFolder, signals: Signals, resume: bool = False) -> None:
        self.folder, self.signals = folder, signals
        self.communicator = Communicator()
        self.notes: list[str] = []
        # The state is read before training begins, so that damage is found before anything is written.
        self.state: Mapping[str, Any] | None = self._found() if resume else None
        self.seconds = _seconds()
        # Monotonic: a system clock that is set back would put off the next checkpoint.
        self._due = time.monotonic() + self.seconds

    def _found(self) -> Mapping[str, Any] | None:
        checkpoint, self.notes = self.folder.newest()
        if checkpoint is None and self.folder.folds():
            return None  # it was interrupted between two folds, which the run comes after
        if checkpoint is None:
            self.notes.append("there is no checkpoint to resume from: the run starts over")
            return None
        document, numbers = checkpoint
        with numbers:
            state = unpacked(document, numbers, self.folder.home)
        if not isinstance(state, dict):
            raise SennError(
                f"the checkpoint in {str(self.folder.home)!r} is damaged: it holds no state"
            )
        self.notes.append(f"resumed after step {state.get('step')}")
        return state

    def record(self, record: Record) -> None:
        """Append a record to the history that others can watch.

        A full disk must not end the run here: the history that counts is in the checkpoints.
        """
        # An interrupted run can be resumed, so its history has no end yet.
        if record["event"] != "end":
            with suppress(OSError):
                self.folder.record(record)

    def restart(self, history: list[Record]) -> None:
        """Replace the history by that of the state from which the run is resumed."""
        with suppress(OSError):
            self.folder.restart(history)

    def is_due(self) -> bool:
        """Return True if a checkpoint is due, or the run is to end."""
        return self.signals.stopping or time.monotonic() >= self._due

    @property
    def stopping(self) -> bool:
        """True once a stop signal has arrived."""
        return self.signals.stopping

    def save(self, state: State) -> None:
        """Write one more checkpoint, and set the time of the next."""
        began = time.monotonic()
        try:
            # An interruption inside would leave a checkpoint half-written, and the alarm would come again.
            with self.signals.deferred():
                document, numbers = packed(state)
                self.folder.save(document, numbers)
        finally:
            now = time.monotonic()
            # A checkpoint that took t seconds is followed by a pause of at least t / SHARE.
            self._due = now + (max(self.seconds, (now - began) / SHARE) if self.seconds else 0.0)
            if self.stopping:
                self.signals.ignore_further()

    def end(self) -> None:
        """Called when training ends; ignore further signals."""
        self.signals.ignore_further()


def _seconds() -> float:
    text = os.environ.get(SECONDS, DEFAULT)
    try:
        return max(float(text), 0.0)
    except ValueError:
        raise SennError(f"{SECONDS} must be a number of seconds, not {text!r}") from None
