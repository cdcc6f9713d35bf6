"""What comes out of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from senn.errors import DivergenceError
from senn.training.round_records import Record

NUMERICAL = (DivergenceError, ArithmeticError, torch.linalg.LinAlgError, torch.OutOfMemoryError)  # type: ignore[attr-defined]
"""What a round may fail with for its numbers or their number, though training itself is well."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainResult:
    """A trained net and how it came about.

    Attributes:
        model: the net of the best epoch, in eval mode.
        history: JSON-able records in order: one `start`, then `epoch`, `consideration` (a round: the fields of
            `GrowthRound`), `growth`, `rollback` (a change that failed its verification: `text`), `fault` (something
            that went wrong and was left out: `text`) and one `end` (other fields: see `Callback`).
        architecture: widths of its hidden layers.
        parameters: number of its parameters.
        seconds: wall-clock time of the run.
        best_epoch: the epoch kept (0: the net as it started).
        validation: metric to value at that epoch: `loss` and `accuracy` or `r2`; empty without validation rows.
        interrupted: stopped by KeyboardInterrupt.
    """

    model: nn.Module
    history: list[Record] = field(repr=False)
    architecture: tuple[int, ...]
    parameters: int
    seconds: float
    best_epoch: int
    validation: dict[str, float]
    interrupted: bool = False


def architecture(model: nn.Module) -> tuple[int, ...]:
    """Widths of a model's hidden layers: what its property `hidden` says, nothing if it has none."""
    return tuple(getattr(model, "hidden", ()))


@torch.no_grad()
def forward_flops(model: nn.Module, x: Tensor) -> int:
    """Floating-point operations of a forward pass, in products and convolutions, per row of x."""
    training = model.training
    model.eval()
    try:
        with FlopCounterMode(display=False) as counter:
            model(x)
    finally:
        model.train(training)
    return int(counter.get_total_flops()) // len(x)


def count_parameters(model: nn.Module) -> int:
    """Number of parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())
