"""Index maps: where the positions along one tensor dimension go when units come and leave.

A dimension of `size` old positions is first extended by `added` new ones at its end, then reordered and cut by `order`.
Parameters, gradients and optimizer state of one tensor all follow the same maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from senn.graph.types import CoupledDim


@dataclass(frozen=True, eq=False)
class IndexMap:
    """New order of one dimension.

    Attributes:
        size: number of old positions.
        added: number of new ones, numbered `size ... size + added - 1`.
        order: (new size,) long; for each new place, the old or new position that stands there.

    Example:
        Of three positions the middle one leaves, and one is added at the end:

        >>> import torch
        >>> layout = IndexMap(size=3, added=1, order=torch.tensor([0, 2, 3]))
        >>> kept, places = layout.kept
        >>> kept.tolist(), places.tolist()
        ([0, 2], [0, 1])
    """

    size: int
    added: int
    order: Tensor

    @cached_property
    def kept(self) -> tuple[Tensor, Tensor]:
        """Old positions that stay, and the places where they now stand: two vectors of one length."""
        places = (self.order < self.size).nonzero().flatten()
        return self.order[places], places

    @cached_property
    def appends(self) -> bool:
        """True if all old positions stay where they are and new ones follow, so that a plain copy will do."""
        return torch.equal(self.order, torch.arange(self.size + self.added))


@dataclass(eq=False)
class IndexMapBuilder:
    """Collects what several moves ask of one dimension.

    Attributes:
        size: number of positions before any move.
        anchors: by request, the old position behind which each new one goes.
        gone: positions that leave.
        newcomers: (coupled dimension, offset, count) of each block of new positions.
    """

    size: int
    anchors: list[Tensor] = field(default_factory=list)
    gone: list[Tensor] = field(default_factory=list)
    newcomers: list[tuple[CoupledDim, int, int]] = field(default_factory=list)

    def add(self, coupled: CoupledDim, units: int) -> tuple[int, int]:
        """Make room for new units behind a group's last one.

        Args:
            coupled: the group's dimension; each of its segments grows at its end.
            units: how many.

        Returns:
            (offset, count) of the new positions, which are numbered unit by unit, a unit's k positions side by side.
        """
        offset = self.size + self.added
        anchors = _anchors(coupled).repeat(units)
        self.anchors.append(anchors)
        self.newcomers.append((coupled, offset, len(anchors)))
        return offset, len(anchors)

    def remove(self, positions: Tensor) -> None:
        """Mark old positions that are to leave."""
        self.gone.append(positions)

    @property
    def added(self) -> int:
        """Number of new positions so far."""
        return sum(len(anchors) for anchors in self.anchors)

    def layout(self) -> IndexMap:
        """Return the map that does everything asked for."""
        # A new position sorts right behind its anchor, and half a position before the next old one. The sort is stable,
        # so several new ones behind one anchor keep the order of moves and units. float64 counts to 2^53 exactly.
        old = torch.arange(self.size, dtype=torch.float64)
        new = [anchors + 0.5 for anchors in self.anchors]
        order = torch.cat([old, *new]).argsort(stable=True)
        if self.gone:
            order = order[~torch.isin(order, torch.cat(self.gone))]
        return IndexMap(self.size, self.added, order)


def _anchors(coupled: CoupledDim) -> Tensor:
    """Return (k,): for each of a unit's positions, the old position behind which new units follow."""
    positions = coupled.index[-1].cpu().double()
    last_unit = positions.view(coupled.n_segments, -1)
    # All positions of a unit in one segment follow the segment's very last one: units stay contiguous in it.
    return last_unit[:, -1:].expand_as(last_unit).flatten()


def place(old: Tensor, layouts: Mapping[int, IndexMap], into: Tensor) -> Tensor:
    """Copy the entries of a tensor that stay to their new places in another one.

    Args:
        old: a parameter's values, gradient or optimizer state.
        layouts: by dimension, where positions go; the other dimensions stay as they are.
        into: tensor of the new shape, changed in place: its other entries are what new positions start with.

    Returns:
        `into`.
    """
    if all(layout.appends for layout in layouts.values()):
        corner(into, old.shape).copy_(old)
        return into
    places = [torch.arange(size, device=old.device) for size in old.shape]
    for dim, layout in layouts.items():
        source, target = layout.kept
        places[dim] = target.to(old.device)
        old = old.index_select(dim, source.to(old.device))
    # The outer product of the positions along all dimensions.
    into[torch.meshgrid(*places, indexing="ij")] = old
    return into


def corner(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a view of a tensor's first entries along each dimension.

    Args:
        tensor: at least as large as `shape`.
        shape: of the view.
    """
    for dim, size in enumerate(shape):
        tensor = tensor.narrow(dim, 0, size)
    return tensor
