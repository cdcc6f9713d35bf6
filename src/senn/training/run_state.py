"""State of a run between two steps, and where it is kept: an interrupted run goes on bit for bit."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from senn.checkpoint.model_state import State, load_model_state, model_state
from senn.collectives import Communicator
from senn.errors import SennError
from senn.training.round_records import Record, copies
from senn.training.train_config import ResolvedConfig, TrainConfig


class Checkpointer(Protocol):
    """Keeps the state of a run where a kill can't reach it.

    Attributes:
        state: state from which the run goes on; None for one that begins.
        communicator: processes that make the same run together.
    """

    state: Mapping[str, Any] | None
    communicator: Communicator

    def record(self, record: Record) -> None:
        """Append one record to the history that is kept."""

    def restart(self, history: list[Record]) -> None:
        """Replace the history that is kept by that of the resumed state."""

    def is_due(self) -> bool:
        """Return True if the state should be saved now; called between steps."""

    @property
    def stopping(self) -> bool:
        """True if the run should save its state and end."""

    def save(self, state: State) -> None:
        """Save the state in place of the one before.

        Raises:
            SennError, OSError: it can't be saved; the one before still is.
        """

    def end(self) -> None:
        """Ignore further interrupts: training has ended, and little remains to be done."""


@dataclass
class BestModel:
    """Best network so far.

    Attributes:
        model: a copy.
        epoch: epoch it is of; 0 for the network as it started.
        validation: its validation figures; empty without validation rows.
    """

    model: nn.Module
    epoch: int
    validation: dict[str, float]


@dataclass(kw_only=True)
class RunState:
    """Position of a run between two steps.

    Attributes:
        config: resolved configuration; it changes when a run is cut short.
        best: best network so far.
        order_generator: state of the generator before it drew the order of this epoch's rows.
        step: optimizer steps made.
        epoch: epochs begun.
        epoch_step: optimizer steps made in this epoch.
        losses: training losses of these.
        reason: why training ends, unless something else ends it first.
        history: all records so far.
        started: time at which the run began, on the clock of `time.perf_counter`, in seconds.
    """

    config: ResolvedConfig
    best: BestModel
    order_generator: Tensor
    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    losses: list[Tensor] = field(default_factory=list)
    reason: str = "all epochs done"
    history: list[Record] = field(default_factory=list)
    # Shifted on resumption, so that the seconds of former parts of the run count.
    started: float

    @property
    def seconds(self) -> float:
        """Seconds since the run began, former parts of a resumed run included."""
        return time.perf_counter() - self.started

    def draw_order(self, rows: int, generator: torch.Generator) -> Tensor:
        """Begin an epoch with an order of the rows, or draw the order again in the middle of a resumed epoch.

        Args:
            rows: number of training rows.
            generator: source of the draw.

        Returns:
            (rows,) row numbers.
        """
        if not self.epoch_step:
            self.epoch += 1
            self.order_generator = generator.get_state()
            return torch.randperm(rows, generator=generator)
        # From a generator of its own: this run's has gone on since then.
        again = torch.Generator()
        again.set_state(self.order_generator)
        return torch.randperm(rows, generator=again)

    def cut_short(self, recipe: TrainConfig, monitor: str) -> bool:
        """Let the learning rate fall from now on, as at the end of a shorter run.

        Args:
            recipe: schedule of the learning rate.
            monitor: figure that has become no better.

        Returns:
            True if the schedule has no tail to fall in, and the run is to stop instead.
        """
        tail = recipe.tail
        has_tail = recipe.schedule == "tail" and 0 < tail < 1
        if has_tail and self.step >= (1 - tail) * self.config.steps:
            return False  # it falls already
        self.reason = f"no better validation {monitor} for {self.config.patience:g} epochs"
        if not has_tail:
            return True
        # A run of E epochs whose tail begins now: epoch = (1 - tail) E.
        epochs = math.ceil(self.epoch / (1 - tail))
        self.config = replace(self.config, epochs=epochs, steps=epochs * self.config.batches)
        return False

    def state_dict(self) -> State:
        """Return nested plain values and tensors that training doesn't change any more.

        The keys are those of version 0.1, so that its checkpoints can be resumed.
        """
        best = self.best
        return {
            "step": self.step,
            "epoch": self.epoch,
            "at": self.epoch_step,
            "losses": torch.stack(self.losses) if self.losses else None,
            "before_order": self.order_generator,
            "plan": asdict(self.config),
            "reason": self.reason,
            "seconds": self.seconds,
            "history": copies(self.history),
            "best": {
                "model": model_state(best.model),
                "epoch": best.epoch,
                "validation": dict(best.validation),
            },
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on where `state_dict` was taken; the best model still has the sizes that the run began with.

        Args:
            state: what `state_dict` returned.
            device: where the run trains.

        Raises:
            SennError: the state is of a run whose epochs have another number of steps.
        """
        best, losses = state["best"], state["losses"]
        load_model_state(self.best.model, best["model"])
        self.best = BestModel(self.best.model, int(best["epoch"]), dict(best["validation"]))
        config = ResolvedConfig(**state["plan"])
        # The position within an epoch would mean other rows.
        if config.batches != self.config.batches:
            raise SennError(
                f"this isn't the state of such a run: its epochs have {config.batches} steps"
            )
        self.config = config
        self.reason = str(state["reason"])
        self.step = int(state["step"])
        self.epoch = int(state["epoch"])
        self.epoch_step = int(state["at"])
        self.losses = [] if losses is None else [*losses.to(device)]
        self.history = copies(state["history"])
        self.order_generator = state["before_order"]
        self.started = time.perf_counter() - float(state["seconds"])
