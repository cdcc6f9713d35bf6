"""Which columns of a linear map's moments belong to what: existing ones, the constant, candidate units, layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from senn.candidates.candidate_set import Draw
from senn.candidates.new_layers import Layer
from senn.curvature.patches import ConvInput, DenseInput, Read
from senn.structure import LinearMap, Structure, tensor_of
from senn.surgery.layout import LayoutDraft


@dataclass(eq=False)
class Columns:
    """Where the candidate columns of one linear map are: (groups, p) long each, counted from the existing ones on.

    Attributes:
        existing: number of existing columns, the constant among them.
        order: where inputs of the map (or channels) stand in the trial, existing ones first.
        inputs: number of existing inputs (or channels).
        spaces: by space, its candidate units.
        layers: for each layer offered before the map, its units.
    """

    existing: int
    order: Tensor
    inputs: int
    spaces: dict[str, Tensor] = field(default_factory=dict)
    layers: list[Tensor] = field(default_factory=list)

    def arranged(self, read: Read, layers: tuple[Layer, ...]) -> Read:
        """What a map of the trial reads, its columns in the order of the moments: existing, constant, units, layers."""
        x = read.x
        dim = 2 if isinstance(read, DenseInput) else 1
        if not torch.equal(self.order, torch.arange(x.shape[dim])):
            x = x.index_select(dim, self.order.to(x.device))
        if isinstance(read, ConvInput):
            return replace(read, x=x, existing=self.inputs)
        if x.shape[2] == self.inputs and not layers and not read.bias:
            return replace(read, x=x)
        old, new = x[..., : self.inputs], x[..., self.inputs :]
        with torch.no_grad():
            features = [layer.features(old.flatten(0, 1)).view(*old.shape[:2], -1) for layer in layers]
        constant = [old.new_ones(*old.shape[:2], 1)] if read.bias else []
        return DenseInput(torch.cat([old, *constant, new, *features], 2), bias=False)


def lay_out(model: nn.Module, structure: Structure, maps: Mapping[str, LinearMap], draw: Draw) -> dict[str, Columns]:
    """Number the columns of each of the maps."""
    result = {}
    for name, one in maps.items():
        taps = torch.arange(one.taps)
        size = tensor_of(model, one.weight).shape[one.in_dim]
        draft, taken = LayoutDraft(size), []
        for space in structure.spaces:
            for slot in space.of("consumer"):
                if slot.name == one.weight and space.name in draw.widen:
                    units = draw.widen[space.name].units
                    taken.append((space.name, units, *draft.add(slot, units)))
        place = torch.empty(size + draft.added, dtype=torch.long)
        place[draft.layout().order] = torch.arange(size + draft.added)
        order = [place[:size]]
        columns = Columns(size * one.taps + (one.bias is not None), place, size)
        wide = 0
        for space_name, units, offset, positions in taken:
            order.append(place[offset : offset + positions])
            own = (torch.arange(wide, wide + positions)[:, None] * one.taps + taps).view(units, -1)
            known = columns.spaces.get(space_name)  # a space may lie in one map twice
            columns.spaces[space_name] = own if known is None else torch.cat([known, own], 1)
            wide += positions
        wide *= one.taps
        for layer in draw.layers.get(name, ()):
            columns.layers.append(torch.arange(wide, wide + layer.columns).view(-1, layer.columns_per_unit))
            wide += layer.columns
        columns.order = torch.cat(order)
        result[name] = columns
    return result
