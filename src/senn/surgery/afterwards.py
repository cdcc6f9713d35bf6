"""The structure of a model after units have come and gone: index arithmetic, no look at the model."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from senn.structure.spaces import Site, Slot, Space, Structure
from senn.surgery.layout import Layout
from senn.surgery.moves import Prune, Widen
from senn.surgery.plan import Plan


def afterwards(structure: Structure, todo: Plan) -> Structure | None:
    """The structure that an analysis would find after a plan; None if it takes one: what one unit was, may be several.

    A space of one unit may have been added to others by broadcasting; inserted layers bring new places.
    """
    single = any(isinstance(move, Widen) and structure.space(move.space).width == 1 for move in todo.moves)
    if todo.inserts or todo.appends or single:
        return None
    spaces = tuple(_space(space, todo) for space in structure.spaces)
    return replace(structure, spaces=spaces, sites=tuple(_site(site, structure, todo) for site in structure.sites))


def _space(space: Space, todo: Plan) -> Space:
    gone = {unit for move in todo.moves if isinstance(move, Prune) and move.space == space.name for unit in move.units}
    added = [move.units for move in todo.moves if isinstance(move, Widen) and move.space == space.name]
    kept = [unit for unit in range(space.width) if unit not in gone]
    slots = tuple(_slot(slot, space, kept, todo) for slot in space.slots)
    return replace(space, width=len(kept) + sum(added), slots=slots)


def _slot(slot: Slot, space: Space, kept: list[int], todo: Plan) -> Slot:
    """The slot where its positions are now: units that stay, then new ones in the order of the moves."""
    layout = todo.layouts.get(slot.name, {}).get(slot.dim)
    if layout is None:
        return slot
    place = _places(layout)
    k = slot.index.shape[1]
    rows = [slot.index[kept]]
    for owner, offset, count in todo.drafts[slot.name][slot.dim].newcomers:
        if owner is slot:
            rows.append(torch.arange(offset, offset + count).view(-1, k))
    return replace(slot, index=place[torch.cat(rows)])


def _places(layout: Layout) -> Tensor:
    """Where each old or new position stands now."""
    place = torch.full((layout.size + layout.added,), -1)
    place[layout.order] = torch.arange(len(layout.order))
    return place


def _site(site: Site, structure: Structure, todo: Plan) -> Site:
    one = structure.map(site.module)
    layout = todo.layouts.get(one.weight, {}).get(one.in_dim)
    return site if layout is None else replace(site, features=len(layout.order))
