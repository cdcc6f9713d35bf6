"""Rows of inputs and targets, the part held out for validation, and how a network reads its inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from senn.data.split import hold_out
from senn.training.train_config import TrainConfig
from senn.training.train_step import Batch


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows to train or validate on.

    Attributes:
        x: (n, ...) inputs, as they are kept: a network may read them through `Inputs`.
        y: (n,) classes, or (n, k) numbers.
        weight: (n,) with mean 1, or None.
    """

    x: Tensor
    y: Tensor
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Tensor) -> Rows:
        """Those rows, in that order."""
        rows = rows.to(self.x.device)
        weight = None if self.weight is None else self.weight[rows]
        return Rows(x=self.x[rows], y=self.y[rows], weight=weight)

    def batches(self, count: int) -> list[Batch]:
        """The rows in `count` batches of nearly equal size."""
        x, y = torch.tensor_split(self.x, count), torch.tensor_split(self.y, count)
        if self.weight is None:
            return list(zip(x, y, strict=True))
        return list(zip(x, y, torch.tensor_split(self.weight, count), strict=True))


@dataclass(frozen=True)
class Inputs:
    """How a network reads the inputs of rows.

    Attributes:
        read: from kept inputs (n, ...), such as bytes, to what the network takes; None: as they are.
        augment: changes a batch of what is read at random, drawn from a generator, in training only; None: it doesn't.
    """

    read: Callable[[Tensor], Tensor] | None = None
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Inputs to evaluate the network on."""
        return x if self.read is None else self.read(x)

    def training(self, batch: Batch, generator: torch.Generator) -> Batch:
        """A batch to train on."""
        x = self(batch[0])
        return (x if self.augment is None else self.augment(x, generator), *batch[1:])


def partition(
    x: Tensor,
    y: Tensor,
    recipe: TrainConfig,
    *,
    generator: torch.Generator,
    sample_weight: Tensor | None = None,
    validation: tuple[Tensor, Tensor] | None = None,
) -> tuple[Rows, Rows | None]:
    """Training rows and validation rows (None if there are none)."""
    rows = Rows(x=x, y=y)
    if sample_weight is not None:
        present = (sample_weight > 0).nonzero().flatten()
        weight = sample_weight[present].to(x)
        uniform = (weight == weight[0]).all()
        rows = Rows(x=x[present], y=y[present], weight=None if uniform else weight / weight.mean())
    if validation is not None:
        return rows, Rows(x=validation[0], y=validation[1])
    kept, held = validation_split(rows.y, recipe.validation_fraction, generator, minimum=max(1, recipe.min_validation))
    return rows.take(kept), rows.take(held) if len(held) else None


def validation_split(
    y: Tensor, fraction: float, generator: torch.Generator, *, minimum: int = 0
) -> tuple[Tensor, Tensor]:
    """Draw rows for training and for validation.

    Args:
        y: (n,) long for classes, which are then held out in proportion; a class always keeps a row for
            training. Floating point for anything else.
        fraction: share of the rows to hold out.
        generator: source of the draw.
        minimum: fewer validation rows than this tell nothing, and then all rows are for training.

    Returns:
        Row numbers for training and for validation, (n_train,) and (n_validation,) long, each in increasing order.
    """
    n = len(y)
    order = torch.randperm(n, generator=generator)
    wanted = round(fraction * n)
    if wanted == 0 or wanted < minimum:
        return torch.arange(n), torch.empty(0, dtype=torch.long)
    classes = torch.zeros(n, dtype=torch.long) if y.is_floating_point() else y.cpu()[order]
    held_out = torch.zeros(n, dtype=torch.bool)
    held_out[torch.from_numpy(hold_out(order.numpy(), classes.numpy(), fraction))] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()
