"""Where the positions along one tensor dimension go when units come and leave: pure index arithmetic.

A dimension of `size` old positions is first extended by `added` new ones at its end, then reordered and cut
by `order`. Parameters, gradients and optimizer state of one tensor all follow the same layouts.
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
    """The new order of one dimension.

    Attributes:
        size: number of old positions.
        added: number of new ones, numbered `size ... size + added - 1`.
        order: (new size,) long; for each new place, the old or new position that stands there.
    """

    size: int
    added: int
    order: Tensor

    @cached_property
    def kept(self) -> tuple[Tensor, Tensor]:
        """Old positions that stay and the places where they now stand, two equally long vectors."""
        places = (self.order < self.size).nonzero().flatten()
        return self.order[places], places

    @cached_property
    def appends(self) -> bool:
        """Whether all old positions stay where they are and new ones follow: no need to reorder."""
        return torch.equal(self.order, torch.arange(self.size + self.added))


@dataclass(eq=False)
class IndexMapBuilder:
    """Collects what several moves ask of one dimension of `size` positions."""

    size: int
    anchors: list[Tensor] = field(default_factory=list)
    gone: list[Tensor] = field(default_factory=list)
    newcomers: list[tuple[CoupledDim, int, int]] = field(default_factory=list)

    def add(self, coupled: CoupledDim, units: int) -> tuple[int, int]:
        """Make room for new units behind the slot's last one; returns (offset, count) of the new positions.

        The new positions are counted unit by unit, each unit's k positions side by side; where they end up
        follows the slot: each of its runs grows at its end.
        """
        offset = self.size + self.added
        anchors = _anchors(coupled).repeat(units)
        self.anchors.append(anchors)
        self.newcomers.append((coupled, offset, len(anchors)))
        return offset, len(anchors)

    def remove(self, positions: Tensor) -> None:
        """Let old positions go."""
        self.gone.append(positions)

    @property
    def added(self) -> int:
        """Number of new positions so far."""
        return sum(len(anchors) for anchors in self.anchors)

    def layout(self) -> IndexMap:
        """The layout that carries out everything asked for."""
        # A new position sorts right behind its anchor; the stable sort keeps the order of moves and units.
        places = [torch.arange(self.size, dtype=torch.float64), *(anchors + 0.5 for anchors in self.anchors)]
        order = torch.cat(places).argsort(stable=True)
        if self.gone:
            order = order[~torch.isin(order, torch.cat(self.gone))]
        return IndexMap(self.size, self.added, order)


def _anchors(coupled: CoupledDim) -> Tensor:
    """(k,) for each of a unit's positions, the old position behind which new units follow."""
    last = coupled.index[-1].cpu().double().view(coupled.n_segments, -1)
    return last[:, -1:].expand_as(last).flatten()  # each run grows at its end


def place(old: Tensor, layouts: Mapping[int, IndexMap], into: Tensor) -> Tensor:
    """Copy the entries of `old` that stay to their new places in `into` (changed in place and returned)."""
    if all(layout.appends for layout in layouts.values()):
        corner(into, old.shape).copy_(old)
        return into
    places = [torch.arange(size, device=old.device) for size in old.shape]
    for dim, layout in layouts.items():
        source, places[dim] = (index.to(old.device) for index in layout.kept)
        old = old.index_select(dim, source)
    mesh = [index.view(-1, *[1] * (old.dim() - dim - 1)) for dim, index in enumerate(places)]
    into[tuple(mesh)] = old
    return into


def corner(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The view of a tensor's first entries along each dimension."""
    for dim, size in enumerate(shape):
        tensor = tensor.narrow(dim, 0, size)
    return tensor
