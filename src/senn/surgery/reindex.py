"""The dependency graph after units have come and gone, by index arithmetic: the model isn't run again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from senn.graph.types import ChannelGroup, CoupledDim, DependencyGraph, InsertionPoint
from senn.surgery.index_maps import IndexMap
from senn.surgery.moves import Prune, Widen
from senn.surgery.plan_types import SurgeryPlan


@dataclass(frozen=True, eq=False, kw_only=True)
class NewPositions:
    """Where new units stand along one dimension of a tensor.

    Attributes:
        coupled: the dimension, as of before the change.
        tensor: the tensor, which has its new size.
        index: (units, k) positions along the dimension that each new unit owns now.
        layouts: by dimension of the tensor, where its former positions went.
    """

    coupled: CoupledDim
    tensor: Tensor
    index: Tensor
    layouts: Mapping[int, IndexMap]

    def kept(self, dim: int) -> tuple[Tensor, Tensor]:
        """Former positions along a dimension of the tensor that are still there, and where they stand now."""
        if dim in self.layouts:
            return self.layouts[dim].kept
        everything = torch.arange(self.tensor.shape[dim])
        return everything, everything

    def former_size(self, dim: int) -> int:
        """Number of positions that the tensor had along a dimension."""
        return self.layouts[dim].size if dim in self.layouts else self.tensor.shape[dim]


def reindex(graph: DependencyGraph, todo: SurgeryPlan) -> DependencyGraph | None:
    """Return the graph that a new analysis would find after a plan.

    Args:
        graph: of the model before the plan.
        todo: the plan.

    Returns:
        The graph; None if only a new analysis can tell: after an insertion.
    """
    # One unit may be added to many others by broadcasting, which its indices don't show; but the analysis has widened
    # every group once, to prove it.
    if todo.inserts or todo.appends:
        return None
    groups = tuple(_group(group, todo) for group in graph.groups)
    points = tuple(_insertion_point(point, graph, todo) for point in graph.insertion_points)
    return replace(graph, groups=groups, insertion_points=points)


def _group(group: ChannelGroup, todo: SurgeryPlan) -> ChannelGroup:
    gone: set[int] = set()
    added = 0
    for move in todo.moves:
        if isinstance(move, Prune) and move.group == group.name:
            gone.update(move.units)
        elif isinstance(move, Widen) and move.group == group.name:
            added += move.units
    kept = [unit for unit in range(group.width) if unit not in gone]
    dims = tuple(_coupled_dim(coupled, kept, todo) for coupled in group.dims)
    return replace(group, width=len(kept) + added, dims=dims)


def new_positions(
    graph: DependencyGraph, todo: SurgeryPlan, tensors: Mapping[str, Tensor]
) -> dict[str, list[NewPositions]]:
    """Find where new units stand after a plan.

    Args:
        graph: of the model before the plan.
        todo: the plan.
        tensors: the resized tensors, by their names before the plan.

    Returns:
        By widened group, its dimensions in their order.
    """
    found: dict[str, list[NewPositions]] = {}
    for group in graph.groups:
        for coupled in group.dims:
            rows = _newcomers(coupled, todo)
            if rows:
                places = _places(todo.layouts[coupled.name][coupled.dim])
                one = NewPositions(
                    coupled=coupled,
                    tensor=tensors[coupled.name],
                    index=places[torch.cat(rows)],
                    layouts=todo.layouts[coupled.name],
                )
                found.setdefault(group.name, []).append(one)
    return found


def _newcomers(coupled: CoupledDim, todo: SurgeryPlan) -> list[Tensor]:
    """Return the numbers of a dimension's new positions, (units, k) of each move."""
    builder = todo.builders.get(coupled.name, {}).get(coupled.dim)
    if builder is None:
        return []
    return [
        torch.arange(offset, offset + count).view(-1, coupled.index.shape[1])
        # Several groups may share this dimension; `owner` tells whose the new positions are.
        for owner, offset, count in builder.newcomers
        if owner is coupled
    ]


def _coupled_dim(coupled: CoupledDim, kept: list[int], todo: SurgeryPlan) -> CoupledDim:
    """Return the dimension with its positions of now: units that stay, then new ones in the order of the moves."""
    layout = todo.layouts.get(coupled.name, {}).get(coupled.dim)
    if layout is None:
        return coupled
    rows = [coupled.index[kept], *_newcomers(coupled, todo)]
    return replace(coupled, index=_places(layout)[torch.cat(rows)])


def _places(layout: IndexMap) -> Tensor:
    """Invert a map: for each old or new position, its place now, -1 where it has left."""
    # A position that has left keeps -1, and no unit's row names it.
    places = torch.full((layout.size + layout.added,), -1)
    places[layout.order] = torch.arange(len(layout.order))
    return places


def _insertion_point(
    point: InsertionPoint, graph: DependencyGraph, todo: SurgeryPlan
) -> InsertionPoint:
    linear = graph.map(point.module)
    layout = todo.layouts.get(linear.weight, {}).get(linear.in_dim)
    return point if layout is None else replace(point, features=len(layout.order))
