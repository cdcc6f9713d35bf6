"""A run's checkpoints: when they are due, and where they go."""

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
"""Environment variable: time between two checkpoints; 0 for one at every step."""

DEFAULT = "20"
SHARE = 0.01
"""Of a run's time that checkpoints may take."""


class FolderCheckpointer:
    """Keeps a run's state in its folder; a `Checkpointer`.

    Args:
        folder: of the run.
        signals: that ask it to end.
        resume: go on with the newest state that is intact there.

    Attributes:
        notes: on states that aren't, one sentence each.
        communicator: the processes that make the run, of which this one keeps it.
    """

    def __init__(self, folder: RunFolder, signals: Signals, resume: bool = False) -> None:
        self.folder, self.signals = folder, signals
        self.communicator = Communicator()
        self.notes: list[str] = []
        self.state: Mapping[str, Any] | None = self._found() if resume else None
        self.seconds = _seconds()
        self._due = time.monotonic() + self.seconds

    def _found(self) -> Mapping[str, Any] | None:
        checkpoint, self.notes = self.folder.newest()
        if checkpoint is None:
            self.notes.append("there is no checkpoint to go on from: the run starts over")
            return None
        document, numbers = checkpoint
        state = unpacked(document, numbers, self.folder.home)
        if not isinstance(state, dict):
            raise SennError(f"the checkpoint in {str(self.folder.home)!r} is damaged: it holds no state")
        self.notes.append(f"goes on after step {state.get('step')}")
        return state

    def record(self, record: Record) -> None:
        """Append it to the history that others can watch; that of record is in the checkpoints."""
        if record["event"] != "end":
            with suppress(OSError):
                self.folder.record(record)

    def restart(self, history: list[Record]) -> None:
        """The history as it is where the run goes on."""
        with suppress(OSError):
            self.folder.restart(history)

    def is_due(self) -> bool:
        """Whether it is time, or the end."""
        return self.signals.stopping or time.monotonic() >= self._due

    @property
    def stopping(self) -> bool:
        """Whether a signal has come."""
        return self.signals.stopping

    def save(self, state: State) -> None:
        """One more checkpoint."""
        began = time.monotonic()
        try:
            with self.signals.deferred():
                document, numbers = packed(state)
                self.folder.save(document, numbers)
        finally:
            now = time.monotonic()
            self._due = now + (max(self.seconds, (now - began) / SHARE) if self.seconds else 0.0)
            if self.stopping:
                self.signals.ignore_further()

    def end(self) -> None:
        """What is left takes a moment only."""
        self.signals.ignore_further()


def _seconds() -> float:
    text = os.environ.get(SECONDS, DEFAULT)
    try:
        return max(float(text), 0.0)
    except ValueError:
        raise SennError(f"{SECONDS} must be a number of seconds, and is {text!r}") from None
