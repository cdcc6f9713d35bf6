"""`senn fit` in several processes, as torchrun starts them: the first one speaks and writes, the others follow."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from senn.checkpoint.model_state import State, packed, unpacked
from senn.cli.signals import Signals
from senn.collectives import Communicator, default_communicator
from senn.collectives.process_group import TIMEOUT
from senn.training.round_records import Record


@contextmanager
def processes() -> Iterator[Communicator]:
    """The processes that torchrun has started, of which this is one; else this process alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        yield Communicator()
        return
    distributed.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT))
    try:
        yield default_communicator()
    finally:
        distributed.destroy_process_group()


def shared_state(communicator: Communicator, state: Mapping[str, Any] | None, home: Path) -> Mapping[str, Any] | None:
    """The state that the first process goes on with, for all of them."""
    if communicator.is_single:
        return state
    document, numbers = packed(state) if communicator.rank == 0 else (None, b"")
    document, size = communicator.broadcast_object("go on with a run", [document, len(numbers)])
    data = torch.zeros(size, dtype=torch.uint8)
    if numbers:
        data = torch.frombuffer(bytearray(numbers), dtype=torch.uint8)
    communicator.broadcast("go on with a run", [data])
    found: Mapping[str, Any] | None = unpacked(document, data.numpy().tobytes(), home)
    return found


class WorkerCheckpointer:
    """Keeps nothing; a `Checkpointer` of the processes after the first.

    Args:
        communicator: the processes.
        signals: that ask this one to end.
        state: where the run goes on.
    """

    def __init__(self, communicator: Communicator, signals: Signals, state: Mapping[str, Any] | None) -> None:
        self.communicator, self.signals, self.state = communicator, signals, state

    def record(self, record: Record) -> None:
        """The first process records it."""

    def restart(self, history: list[Record]) -> None:
        """The first process does."""

    def is_due(self) -> bool:
        """Whether to hear a signal: all end together, after the next step."""
        return self.signals.stopping

    @property
    def stopping(self) -> bool:
        """Whether a signal has come."""
        return self.signals.stopping

    def save(self, state: State) -> None:
        """The first process does; a signal that has come has been heard."""
        if self.stopping:
            self.signals.ignore_further()

    def end(self) -> None:
        """What is left takes a moment only."""
        self.signals.ignore_further()
