"""The state of a run between two steps: all that decides what follows, so that nothing is lost by a break."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from senn.checkpoint.model_state import State, load_model_state, model_state
from senn.collectives import Communicator
from senn.errors import SennError
from senn.training.round_records import Record, copies
from senn.training.train_config import ResolvedConfig


class Checkpointer(Protocol):
    """Keeps a run's state where a kill can't reach it.

    Attributes:
        state: where the run goes on; None for one that begins.
        communicator: processes that make the same run together.
    """

    state: Mapping[str, Any] | None
    communicator: Communicator

    def record(self, record: Record) -> None:
        """Hear of one more record of the history."""

    def restart(self, history: list[Record]) -> None:
        """Hear with which history the run goes on."""

    def is_due(self) -> bool:
        """Whether the state is wanted now: asked between steps."""

    @property
    def stopping(self) -> bool:
        """Whether the run is to end, with its state kept."""

    def save(self, state: State) -> None:
        """Keep the state.

        Raises:
            SennError, OSError: it can't be kept; what was kept before still is.
        """

    def end(self) -> None:
        """Hear that training has come to its end, so that nothing is to be interrupted any more."""


@dataclass
class BestModel:
    """The best network so far: a copy, its epoch and its validation figures."""

    model: nn.Module
    epoch: int
    validation: dict[str, float]


@dataclass(kw_only=True)
class RunState:
    """Where a run stands between two steps.

    Attributes:
        config: what the recipe comes to; it changes when a run is cut short.
        best: the best network so far.
        order_generator: state of the generator before it drew the order of this epoch's rows.
        step: steps made.
        epoch: epochs begun.
        epoch_step: steps made in this epoch.
        losses: of these.
        reason: why training ends, unless something else happens.
        history: all records so far.
        started: when the run began, on the clock of `time.perf_counter`.
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
    started: float

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.started

    def state_dict(self) -> State:
        """Nested plain values and tensors that training doesn't change any more."""
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
            "best": {"model": model_state(best.model), "epoch": best.epoch, "validation": dict(best.validation)},
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on where `state_dict` was taken; the best model so far has the sizes that the run began with.

        Raises:
            SennError: the state is of a run whose epochs have another number of steps.
        """
        best, losses = state["best"], state["losses"]
        load_model_state(self.best.model, best["model"])
        self.best = BestModel(self.best.model, int(best["epoch"]), dict(best["validation"]))
        config = ResolvedConfig(**state["plan"])
        if config.batches != self.config.batches:
            raise SennError(f"this isn't the state of such a run: its epochs have {config.batches} steps")
        self.config, self.reason = config, str(state["reason"])
        self.step, self.epoch, self.epoch_step = int(state["step"]), int(state["epoch"]), int(state["at"])
        self.losses = [] if losses is None else [*losses.to(device)]
        self.history = copies(state["history"])
        self.order_generator = state["before_order"]
        self.started = time.perf_counter() - float(state["seconds"])
