"""Which columns of a linear map's moments belong to what: existing ones, the constant, candidate units, layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from senn.candidates.candidate_set import CandidateSet
from senn.candidates.new_layers import Layer
from senn.graph import DependencyGraph, LinearMap, get_tensor
from senn.kfac.layer_inputs import ConvInput, DenseInput, LayerInput
from senn.surgery.index_maps import IndexMapBuilder


@dataclass(eq=False)
class ColumnLayout:
    """Where the candidate columns of one linear map are: (groups, p) long each, counted from the existing ones on.

    Attributes:
        existing: number of existing columns, the constant among them.
        permutation: where inputs of the map (or channels) stand in the trial, existing ones first.
        inputs: number of existing inputs (or channels).
        groups: by space, its candidate units.
        layers: for each layer offered before the map, its units.
    """

    existing: int
    permutation: Tensor
    inputs: int
    groups: dict[str, Tensor] = field(default_factory=dict)
    layers: list[Tensor] = field(default_factory=list)

    def permuted(self, read: LayerInput, layers: tuple[Layer, ...]) -> LayerInput:
        """What a map of the trial reads, its columns in the order of the moments: existing, constant, units, layers."""
        x = read.x
        dim = 2 if isinstance(read, DenseInput) else 1
        if not torch.equal(self.permutation, torch.arange(x.shape[dim])):
            x = x.index_select(dim, self.permutation.to(x.device))
        if isinstance(read, ConvInput):
            return replace(read, x=x, existing=self.inputs)
        if x.shape[2] == self.inputs and not layers and not read.bias:
            return replace(read, x=x)
        old, new = x[..., : self.inputs], x[..., self.inputs :]
        with torch.no_grad():
            features = [layer.features(old.flatten(0, 1)).view(*old.shape[:2], -1) for layer in layers]
        constant = [old.new_ones(*old.shape[:2], 1)] if read.bias else []
        return DenseInput(torch.cat([old, *constant, new, *features], 2), bias=False)


def build_column_layout(
    model: nn.Module, graph: DependencyGraph, maps: Mapping[str, LinearMap], draw: CandidateSet
) -> dict[str, ColumnLayout]:
    """Number the columns of each of the maps."""
    result = {}
    for name, one in maps.items():
        taps = torch.arange(one.kernel_numel)
        size = get_tensor(model, one.weight).shape[one.in_dim]
        draft, taken = IndexMapBuilder(size), []
        for group in graph.groups:
            for coupled in group.dims_of("consumer"):
                if coupled.name == one.weight and group.name in draw.widen:
                    units = draw.widen[group.name].units
                    taken.append((group.name, units, *draft.add(coupled, units)))
        place = torch.empty(size + draft.added, dtype=torch.long)
        place[draft.layout().order] = torch.arange(size + draft.added)
        order = [place[:size]]
        columns = ColumnLayout(size * one.kernel_numel + (one.bias is not None), place, size)
        wide = 0
        for group_name, units, offset, positions in taken:
            order.append(place[offset : offset + positions])
            own = (torch.arange(wide, wide + positions)[:, None] * one.kernel_numel + taps).view(units, -1)
            known = columns.groups.get(group_name)  # a space may lie in one map twice
            columns.groups[group_name] = own if known is None else torch.cat([known, own], 1)
            wide += positions
        wide *= one.kernel_numel
        for layer in draw.layers.get(name, ()):
            columns.layers.append(torch.arange(wide, wide + layer.columns).view(-1, layer.columns_per_unit))
            wide += layer.columns
        columns.permutation = torch.cat(order)
        result[name] = columns
    return result
