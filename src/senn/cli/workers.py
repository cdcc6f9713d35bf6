"""Run `senn fit` in several processes started by torchrun: the first prints and writes, the others only train."""

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
    """Context with a communicator of the processes that torchrun started, or of this process alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        yield Communicator()
        return
    # gloo, since `senn fit` trains on CPUs; the timeout turns a lost process into an error rather than a hang.
    distributed.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT))
    try:
        yield default_communicator()
    finally:
        distributed.destroy_process_group()


def shared_state(
    communicator: Communicator, state: Mapping[str, Any] | None, home: Path
) -> Mapping[str, Any] | None:
    """Send the state that the first process resumes from to all processes.

    Args:
        communicator: of all processes; each of them calls this.
        state: state of the first process, None for a run that begins; ignored on the others.
        home: folder named in errors.

    Returns:
        The state of the first process.
    """
    if communicator.is_single:
        return state
    document, numbers = packed(state) if communicator.rank == 0 else (None, b"")
    # The size first: all ranks must hold a tensor of the same size for the broadcast.
    document, size = communicator.broadcast_object("resume a run", [document, len(numbers)])
    data = torch.zeros(size, dtype=torch.uint8)
    # frombuffer refuses an empty buffer, and warns about a read-only one, such as bytes.
    if numbers:
        data = torch.frombuffer(bytearray(numbers), dtype=torch.uint8)
    communicator.broadcast("resume a run", [data])
    found: Mapping[str, Any] | None = unpacked(document, data.numpy().tobytes(), home)
    return found


class WorkerCheckpointer:
    """Save nothing; the `Checkpointer` of the processes after the first.

    Args:
        communicator: communicator of all processes.
        signals: signals that ask this process to end.
        state: state to resume from; None for a run that begins.
    """

    def __init__(
        self, communicator: Communicator, signals: Signals, state: Mapping[str, Any] | None
    ) -> None:
        self.communicator, self.signals, self.state = communicator, signals, state

    def record(self, record: Record) -> None:
        """Do nothing: the first process records it."""

    def restart(self, history: list[Record]) -> None:
        """Do nothing: the first process does it."""

    def is_due(self) -> bool:
        """Return True once a signal has arrived: all processes end together, after the next step."""
        return self.signals.stopping

    @property
    def stopping(self) -> bool:
        """True once a stop signal has arrived."""
        return self.signals.stopping

    def save(self, state: State) -> None:
        """Save nothing: the first process does. A signal that has arrived is dealt with by now."""
        # All processes end after this step: the alarm must not interrupt one of them before.
        if self.stopping:
            self.signals.ignore_further()

    def end(self) -> None:
        """Called when training ends; ignore further signals."""
        self.signals.ignore_further()
