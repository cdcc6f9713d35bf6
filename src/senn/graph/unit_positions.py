"""Where units lie along the dimensions of one tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from senn.graph.tracing.labels import varying


def unit_axis(units: Tensor) -> int | None:
    """Find the dimension of a tensor along which its units lie.

    Args:
        units: the unit of each entry, -1 for none.

    Returns:
        The dimension; the last one if all entries belong to a single unit; None if there are several.
    """
    along = varying(units)
    if not along:
        return units.dim() - 1
    return along.pop() if len(along) == 1 else None


def unit_index(units: Tensor, width: int) -> Tensor | None:
    """Collect the positions of each unit.

    Args:
        units: (positions,) the unit at each position, -1 for none.
        width: number of units.

    Returns:
        (width, k) long, positions in ascending order; None if the units own different numbers of positions.
    """
    positions = (units >= 0).nonzero().flatten()
    owners = units[positions]
    counts = torch.bincount(owners, minlength=width)
    # An index is a rectangle: every unit must own as many positions as any other.
    if not len(positions) or bool((counts != counts[0]).any()):
        return None
    return positions[torch.argsort(owners, stable=True)].view(width, -1)
