"""Rows of inputs and targets, the part held out for validation, and how a network reads its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from senn.data.mapped_arrays import MAPPED_BYTES, empty_array
from senn.data.split import hold_out
from senn.training.train_config import TrainConfig
from senn.training.train_step import Batch

_COPIED_AT_ONCE = 2**24
"""Numbers of inputs up to which the rows of an epoch are put into their order at once, which is faster."""


_MAPPED_TYPES = (torch.float32, torch.float64, torch.uint8)
"""Types of stored inputs that are mapped to a file where they are large."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows to train or to validate on.

    Attributes:
        x: (n, ...) inputs as they are stored; a network may read them through `Inputs`.
        y: (n,) classes, or (n, k) numbers.
        weight: (n,) with mean 1; None for equal weights.
    """

    x: Tensor
    y: Tensor
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Tensor) -> Rows:
        """Select rows by number, (k,) long, in that order."""
        # Drawn on the CPU, so that all devices take the same rows.
        rows = rows.to(self.x.device)
        weight = None if self.weight is None else self.weight[rows]
        return Rows(x=_selected(self.x, rows), y=self.y[rows], weight=weight)

    def spread(self, most: int) -> Rows:
        """Select at most so many rows, evenly spaced, since rows may be sorted by class."""
        if len(self) <= most:
            return self
        return self.take(torch.linspace(0, len(self) - 1, most).round().long())

    def draw(self, most: int, generator: torch.Generator) -> Rows:
        """Select at most so many rows at random; nothing is drawn if all are selected."""
        if len(self) <= most:
            return self
        return self.take(torch.randperm(len(self), generator=generator)[:most])

    def in_order(self, order: Tensor, count: int) -> Sequence[Batch]:
        """Split the rows, in some order, into `count` batches of nearly equal size.

        Args:
            order: (n,) numbers of the rows.
            count: number of batches.
        """
        if self.x.numel() <= _COPIED_AT_ONCE:
            return self.take(order).batches(count)
        return _LaterBatches(self, torch.tensor_split(order, count))

    def batches(self, count: int) -> list[Batch]:
        """Split the rows into `count` batches of nearly equal size."""
        x = torch.tensor_split(self.x, count)
        y = torch.tensor_split(self.y, count)
        if self.weight is None:
            return list(zip(x, y, strict=True))
        weight = torch.tensor_split(self.weight, count)
        return list(zip(x, y, weight, strict=True))


class _LaterBatches(Sequence[Batch]):
    """Batches that are read when they are asked for, so that a large table isn't copied in each epoch."""

    def __init__(self, rows: Rows, parts: Sequence[Tensor]) -> None:
        self._rows, self._parts = rows, parts

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, at: int) -> Batch: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Batch]: ...
    def __getitem__(self, at: int | slice) -> Batch | Sequence[Batch]:
        if isinstance(at, slice):
            return _LaterBatches(self._rows, self._parts[at])
        (batch,) = self._rows.take(self._parts[at]).batches(1)
        return batch


def _selected(x: Tensor, rows: Tensor) -> Tensor:
    """Select rows; in a mapped file where they are many."""
    size = x[:1].nbytes * len(rows)
    if size < MAPPED_BYTES or x.device.type != "cpu" or x.dtype not in _MAPPED_TYPES:
        return x[rows]
    shape = (len(rows), *x.shape[1:])
    out = torch.from_numpy(empty_array(shape, x[:0].numpy().dtype))
    return torch.index_select(x, 0, rows, out=out)


@dataclass(frozen=True)
class Inputs:
    """How a network reads the inputs of rows.

    Attributes:
        read: turns stored inputs (n, ...), such as bytes, into what the network takes; None to leave them as they are.
        augment: changes a batch of these at random, by draws from a generator, in training only; None for no change.
    """

    read: Callable[[Tensor], Tensor] | None = None
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Read stored inputs (n, ...) to evaluate the network on."""
        return x if self.read is None else self.read(x)

    def whole(self, rows: Rows) -> Batch:
        """Read rows, as one batch to evaluate the network on."""
        (batch,) = rows.batches(1)
        return (self(batch[0]), *batch[1:])

    def training(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Read, and augment, a batch to train on.

        Args:
            batch: stored inputs, targets and perhaps weights.
            generator: source of the draws.
        """
        x = self(batch[0])
        if self.augment is not None:
            x = self.augment(x, generator)
        return (x, *batch[1:])


def partition(
    x: Tensor,
    y: Tensor,
    recipe: TrainConfig,
    *,
    generator: torch.Generator,
    sample_weight: Tensor | None = None,
    validation: tuple[Tensor, Tensor] | Tensor | None = None,
) -> tuple[Rows, Rows | None]:
    """Split data into training and validation rows.

    Args:
        x: (n, ...) inputs.
        y: (n,) classes, or (n, k) numbers.
        recipe: share of validation rows.
        generator: source of the draw.
        sample_weight: (n,) non-negative; a row of weight zero counts as absent. None for equal weights.
        validation: inputs and targets to validate on, or (k,) long numbers of the rows of `x` and `y` that are held
            out for it, which may be none; None to draw these.

    Returns:
        Training rows, and validation rows or None if there are none.
    """
    rows = Rows(x=x, y=y)
    chosen = torch.zeros(len(x), dtype=torch.bool)
    if isinstance(validation, Tensor):
        chosen[validation] = True
    if sample_weight is not None:
        present = (sample_weight > 0).nonzero().flatten()
        chosen = chosen[present.cpu()]
        weight = sample_weight[present].to(x)
        # Equal weights are none at all, which spares the weighted loss. Others get mean 1: the scale of the loss stays.
        uniform = (weight == weight[0]).all()
        rows = Rows(x=x[present], y=y[present], weight=None if uniform else weight / weight.mean())
    if isinstance(validation, Tensor):
        kept, held_out = (~chosen).nonzero().flatten(), chosen.nonzero().flatten()
        return rows.take(kept), rows.take(held_out) if len(held_out) else None
    if validation is not None:
        return rows, Rows(x=validation[0], y=validation[1])
    share = recipe.validation_share(len(rows))
    kept, held_out = validation_split(rows.y, share, generator)
    return rows.take(kept), rows.take(held_out) if len(held_out) else None


def validation_rows(y: Tensor, recipe: TrainConfig, chosen: Tensor | None = None) -> Tensor:
    """Say which rows `senn.training.train` holds out for validation.

    Args:
        y: (n,) classes, or (n, k) numbers, of rows of positive weight.
        recipe: share of validation rows, and the seed of the draw.
        chosen: (k,) rows that are held out in any case; None where they are drawn.

    Returns:
        (validation rows,) long, in increasing order.
    """
    if chosen is not None:
        return chosen.sort().values
    generator = torch.Generator().manual_seed(recipe.seed)
    return validation_split(y, recipe.validation_share(len(y)), generator)[1]


def validation_split(
    y: Tensor, fraction: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw rows for training and for validation.

    Args:
        y: (n,) long for classes, which are then held out in proportion; a class always keeps a row for
            training. Floating point for anything else.
        fraction: share of the rows to hold out.
        generator: source of the draw.

    Returns:
        Row numbers for training and for validation, (n_train,) and (n_validation,) long, each in increasing order.
    """
    n = len(y)
    # Drawn even if nothing is held out, so that what is drawn next doesn't depend on the fraction.
    order = torch.randperm(n, generator=generator)
    if round(fraction * n) == 0:
        return torch.arange(n), torch.empty(0, dtype=torch.long)
    # Numbers are one class: then proportions say nothing.
    classes = torch.zeros(n, dtype=torch.long) if y.is_floating_point() else y.cpu()[order]
    held_out = torch.zeros(n, dtype=torch.bool)
    held_out[torch.from_numpy(hold_out(order.numpy(), classes.numpy(), fraction))] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()
