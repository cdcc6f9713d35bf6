"""What comes out of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from senn.errors import DivergenceError
from senn.events import Consideration, GrowthEvent

Record = dict[str, Any]

NUMERICAL = (DivergenceError, ArithmeticError, torch.linalg.LinAlgError, torch.OutOfMemoryError)  # type: ignore[attr-defined]
"""What a round may fail with for its numbers or their number, though training itself is well."""


@dataclass(frozen=True, eq=False)
class Run:
    """A trained net and how it came about.

    Attributes:
        model: the net of the best epoch, in eval mode.
        history: JSON-able records in order: one `start`, then `epoch`, `consideration` (a round: the fields of
            `Consideration`), `growth`, `rollback` (a change that failed its verification: `text`), `fault` (something
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


def consideration_record(consideration: Consideration, epoch: int, step: int, hidden: tuple[int, ...]) -> Record:
    """A round as it goes into the history, before the changes that it made, with the widths that it found."""
    head = {"event": "consideration", "epoch": epoch, "step": step}
    return {**head, **consideration.as_dict(), "architecture": list(hidden)}


def event_record(event: GrowthEvent, epoch: int, step: int, hidden: tuple[int, ...]) -> Record:
    """A growth event as it goes into the history, with the widths that it left."""
    return {"event": "growth", "epoch": epoch, "step": step, **event.as_dict(), "architecture": list(hidden)}


def rollback_record(reason: Exception | str, epoch: int, step: int) -> Record:
    """A change of size that failed its verification, as it goes into the history."""
    return {"event": "rollback", "epoch": epoch, "step": step, "text": str(reason)}


def fault_record(text: str, epoch: int, step: int) -> Record:
    """Something that went wrong and was left out, as it goes into the history."""
    return {"event": "fault", "epoch": epoch, "step": step, "text": text}


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def count_parameters(model: nn.Module) -> int:
    """Number of parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def rank(figures: dict[str, float], monitor: str) -> tuple[float, float]:
    """Smaller is better: by loss, or by accuracy and among equals by loss."""
    loss = figures.get("loss", math.inf)
    return (-figures.get("accuracy", 0.0) if monitor == "score" else loss, loss)


def r2(output: Tensor, target: Tensor, weight: Tensor) -> float:
    """Coefficient of determination, averaged over the targets that vary."""
    w = (weight / weight.sum()).unsqueeze(1)
    residual = (w * (target - output) ** 2).sum(0)
    spread = (w * (target - (w * target).sum(0)) ** 2).sum(0)
    varies = spread > 0
    return (1 - residual[varies] / spread[varies]).mean().item() if varies.any() else 0.0
