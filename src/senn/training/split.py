"""Holding out validation rows: deterministic by seed, every class in proportion."""

from __future__ import annotations

import torch
from torch import Tensor


def validation_split(
    y: Tensor, fraction: float, generator: torch.Generator, *, minimum: int = 0
) -> tuple[Tensor, Tensor]:
    """Row numbers for training and for validation.

    Args:
        y: (n,) long for classes, which are then held out in proportion; a class always keeps a row for
            training. Floating point for anything else.
        fraction: share of the rows to hold out.
        generator: what draws the rows.
        minimum: fewer validation rows than this tell nothing, and then all rows are for training.

    Returns:
        Two (n_train,) and (n_validation,) long tensors, each in increasing order.
    """
    n = len(y)
    order = torch.randperm(n, generator=generator)
    wanted = round(fraction * n)
    if wanted == 0 or wanted < minimum:
        return torch.arange(n), torch.empty(0, dtype=torch.long)
    held = order[:wanted] if y.is_floating_point() else _proportional(y.cpu()[order], order, wanted)
    mask = torch.zeros(n, dtype=torch.bool)
    mask[held] = True
    return (~mask).nonzero().flatten(), mask.nonzero().flatten()


def _proportional(shuffled: Tensor, order: Tensor, wanted: int) -> Tensor:
    """`wanted` of the rows `order` of classes `shuffled`, classes in proportion and none held out whole."""
    by_class = torch.argsort(shuffled, stable=True)
    counts = torch.bincount(shuffled)
    counts = counts[counts > 0]
    starts = torch.cumsum(counts, 0) - counts
    rank = torch.arange(len(order)) - torch.repeat_interleave(starts, counts)
    size = torch.repeat_interleave(counts, counts)
    # A row's place within its class as a fraction: the smallest places of all classes make the held-out part.
    place = (rank + 0.5) / size
    place[rank == size - 1] = 2.0
    chosen = torch.argsort(place, stable=True)[:wanted]
    chosen = chosen[place[chosen] < 2.0]
    return order[by_class[chosen]]
