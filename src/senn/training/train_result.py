"""Result of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from senn.errors import DivergenceError
from senn.events import Frontier
from senn.training.round_records import Record

NUMERICAL = (DivergenceError, ArithmeticError, torch.linalg.LinAlgError, torch.OutOfMemoryError)  # type: ignore[attr-defined]
"""Errors by which a round, or a step, fails for the values of its numbers or for lack of memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainResult:
    """Trained network, and how it came about.

    Attributes:
        model: the network of the best epoch, in eval mode.
        history: JSON-able records in order: one `start`, then `epoch`, `growth_round` (the fields of `GrowthRound`),
            `growth`, `rollback` (a change that failed its verification, or a return to the weights of an earlier epoch:
            `text`), `fault` (something that went wrong and was left out: `text`) and one `end`. `Callback` lists the
            other fields.
        architecture: widths of its hidden layers.
        parameters: number of its parameters.
        seconds: wall-clock time of the run.
        best_epoch: epoch that was kept; 0 for the network as it started.
        kept: sentence that says which one is kept, and why.
        validation: metric to value of that network: `loss`, and `accuracy` or `r2`; empty without validation rows.
        output_scale: factor of a classifier's outputs that suits the validation rows, at most 1; the weights have it.
        interrupted: True if a KeyboardInterrupt ended the run.
        threads: numbers of threads that computed it, in order: `step` from which on, `number`, `by` what it was chosen
            and the `reason`, as in `senn.training.threads.RunThreads`.
        frontier: the network pruned to smaller sizes without training, by `TrainConfig.frontier`; None if that wasn't
            measured.
        members: number of networks whose predictions `model` averages; 1 for a network by itself.
        unseen: outputs (n, outputs), and targets (n, ...), of rows of the table that the network, or the member of it
            whose outputs these are, was not trained on; None without such rows.
    """

    model: nn.Module
    history: list[Record] = field(repr=False)
    architecture: tuple[int, ...]
    parameters: int
    seconds: float
    best_epoch: int
    validation: dict[str, float]
    kept: str
    output_scale: float = 1.0
    interrupted: bool = False
    threads: list[Record] = field(default_factory=list, repr=False)
    frontier: Frontier | None = field(default=None, repr=False)
    members: int = 1
    unseen: tuple[Tensor, Tensor] | None = field(default=None, repr=False)


def architecture(model: nn.Module) -> tuple[int, ...]:
    """Return the widths of a model's hidden layers, by its property `hidden`; empty if it has none."""
    # Any module can be trained, but only those of senn.nn know which of their sizes are hidden widths.
    return tuple(getattr(model, "hidden", ()))


def layer_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers that `architecture` has the widths of; empty if the model doesn't tell."""
    return tuple(getattr(model, "hidden_names", ()))


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())
