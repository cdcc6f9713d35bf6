"""Where the units of a space lie in one tensor dimension."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_axis(units: Tensor) -> int | None:
    """The one dimension of a tensor along which its units lie.

    Args:
        units: the unit of each entry, -1 for none.

    Returns:
        The dimension; the last one if all entries belong to a single unit; None if there are several.
    """
    along = [dim for dim in range(units.dim()) if bool((units != units.narrow(dim, 0, 1)).any())]
    if not along:
        return units.dim() - 1
    return along[0] if len(along) == 1 else None


def index_of(units: Tensor, width: int) -> Tensor | None:
    """Positions of each unit.

    Args:
        units: (positions,) the unit at each position, -1 for none.
        width: number of units.

    Returns:
        (width, k) positions in ascending order, or None if the units own different numbers of positions.
    """
    positions = (units >= 0).nonzero().flatten()
    owners = units[positions]
    counts = torch.bincount(owners, minlength=width)
    if not len(positions) or bool((counts != counts[0]).any()):
        return None
    return positions[torch.argsort(owners, stable=True)].view(width, -1)


def runs_of(index: Tensor) -> int | None:
    """In how many runs of all units a (width, k) index is laid out (see `Slot.runs`); None if in another way."""
    width, k = index.shape
    jumps = (index[0, 1:] - index[0, :-1] != 1).nonzero().flatten() + 1
    for block in [int(jumps[0]) if len(jumps) else k, 1]:
        first = index[0].view(-1, block)[:, :1] if k % block == 0 else None
        if first is None or not torch.equal(index[0].view(-1, block), first + torch.arange(block)):
            continue
        if torch.equal(index, index[0] + block * torch.arange(width)[:, None]):
            return k // block
    return None
