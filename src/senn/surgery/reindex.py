"""The dependency graph after units have come and gone, by index arithmetic: the model isn't run again."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from senn.graph.types import ChannelGroup, CoupledDim, DependencyGraph, InsertionPoint
from senn.surgery.index_maps import IndexMap
from senn.surgery.moves import Prune, Widen
from senn.surgery.plan_types import SurgeryPlan


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


def _coupled_dim(coupled: CoupledDim, kept: list[int], todo: SurgeryPlan) -> CoupledDim:
    """Return the dimension with its positions of now: units that stay, then new ones in the order of the moves."""
    layout = todo.layouts.get(coupled.name, {}).get(coupled.dim)
    if layout is None:
        return coupled
    k = coupled.index.shape[1]
    rows = [coupled.index[kept]]
    for owner, offset, count in todo.builders[coupled.name][coupled.dim].newcomers:
        # Several groups may share this dimension; `owner` tells whose the new positions are.
        if owner is coupled:
            rows.append(torch.arange(offset, offset + count).view(-1, k))
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
