"""The structure of a model after units have come and gone: index arithmetic, no look at the model."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from senn.graph.types import ChannelGroup, CoupledDim, DependencyGraph, InsertionPoint
from senn.surgery.index_maps import IndexMap
from senn.surgery.moves import Prune, Widen
from senn.surgery.plan import SurgeryPlan


def reindex(graph: DependencyGraph, todo: SurgeryPlan) -> DependencyGraph | None:
    """The structure that an analysis would find after a plan; None if it takes one: what one unit was, may be several.

    A space of one unit may have been added to others by broadcasting; inserted layers bring new places.
    """
    single = any(isinstance(move, Widen) and graph.group(move.group).width == 1 for move in todo.moves)
    if todo.inserts or todo.appends or single:
        return None
    groups = tuple(_group(group, todo) for group in graph.groups)
    return replace(
        graph,
        groups=groups,
        insertion_points=tuple(
            _insertion_point(insertion_point, graph, todo) for insertion_point in graph.insertion_points
        ),
    )


def _group(group: ChannelGroup, todo: SurgeryPlan) -> ChannelGroup:
    gone = {unit for move in todo.moves if isinstance(move, Prune) and move.group == group.name for unit in move.units}
    added = [move.units for move in todo.moves if isinstance(move, Widen) and move.group == group.name]
    kept = [unit for unit in range(group.width) if unit not in gone]
    coupled_dims = tuple(_slot(coupled, group, kept, todo) for coupled in group.dims)
    return replace(group, width=len(kept) + sum(added), dims=coupled_dims)


def _slot(coupled: CoupledDim, group: ChannelGroup, kept: list[int], todo: SurgeryPlan) -> CoupledDim:
    """The slot where its positions are now: units that stay, then new ones in the order of the moves."""
    layout = todo.layouts.get(coupled.name, {}).get(coupled.dim)
    if layout is None:
        return coupled
    place = _places(layout)
    k = coupled.index.shape[1]
    rows = [coupled.index[kept]]
    for owner, offset, count in todo.drafts[coupled.name][coupled.dim].newcomers:
        if owner is coupled:
            rows.append(torch.arange(offset, offset + count).view(-1, k))
    return replace(coupled, index=place[torch.cat(rows)])


def _places(layout: IndexMap) -> Tensor:
    """Where each old or new position stands now."""
    place = torch.full((layout.size + layout.added,), -1)
    place[layout.order] = torch.arange(len(layout.order))
    return place


def _insertion_point(insertion_point: InsertionPoint, graph: DependencyGraph, todo: SurgeryPlan) -> InsertionPoint:
    one = graph.map(insertion_point.module)
    layout = todo.layouts.get(one.weight, {}).get(one.in_dim)
    return insertion_point if layout is None else replace(insertion_point, features=len(layout.order))
