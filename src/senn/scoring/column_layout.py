"""Layout of the columns of a linear map's covariance: existing ones, the constant, candidate units, layers."""

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


@dataclass(frozen=True, eq=False, kw_only=True)
class ColumnLayout:
    """Places of the candidate columns of one linear map, counted from the first candidate on.

    Attributes:
        existing: number of existing columns, the constant among them.
        permutation: positions of the map's inputs (or channels) in the dormant copy, existing ones first.
        inputs: number of existing inputs (or channels).
        groups: by channel group, the columns of its candidate units, (units, p).
        layers: for each layer that could be inserted before the map, the columns of its units, (units, p).
    """

    existing: int
    permutation: Tensor
    inputs: int
    groups: dict[str, Tensor] = field(default_factory=dict)
    layers: list[Tensor] = field(default_factory=list)

    def permuted(self, read: LayerInput, layers: tuple[Layer, ...]) -> LayerInput:
        """Reorder the columns that a map of the dormant copy reads, and append those of layers.

        Args:
            read: what the map reads.
            layers: layers that could be inserted before it.

        Returns:
            columns in the order existing, constant, candidate units, layers.
        """
        x = read.x
        dim = 2 if isinstance(read, DenseInput) else 1
        if not torch.equal(self.permutation, torch.arange(x.shape[dim])):
            x = x.index_select(dim, self.permutation.to(x.device))
        # Patches are never formed: a convolution's columns are reordered by channel.
        if isinstance(read, ConvInput):
            return replace(read, x=x, existing=self.inputs)
        if x.shape[2] == self.inputs and not layers and not read.bias:
            return replace(read, x=x)
        old, new = x[..., : self.inputs], x[..., self.inputs :]
        with torch.no_grad():
            features = [
                layer.features(old.flatten(0, 1)).view(*old.shape[:2], -1) for layer in layers
            ]
        # The constant belongs to the existing columns, so it stands before the candidates.
        constant = [old.new_ones(*old.shape[:2], 1)] if read.bias else []
        return DenseInput(torch.cat([old, *constant, new, *features], 2), bias=False)


def build_column_layout(
    model: nn.Module,
    graph: DependencyGraph,
    maps: Mapping[str, LinearMap],
    candidate_set: CandidateSet,
) -> dict[str, ColumnLayout]:
    """Number the columns of each linear map.

    Args:
        model: the model as it is.
        graph: what in it can change.
        maps: the linear maps that are read, by name.
        candidate_set: the candidates.
    """
    return {
        name: _layout(model, graph, name, linear_map, candidate_set)
        for name, linear_map in maps.items()
    }


def _layout(
    model: nn.Module,
    graph: DependencyGraph,
    name: str,
    linear_map: LinearMap,
    candidate_set: CandidateSet,
) -> ColumnLayout:
    """Number the columns of one linear map."""
    kernel = torch.arange(linear_map.kernel_numel)
    size = get_tensor(model, linear_map.weight).shape[linear_map.in_dim]
    builder = IndexMapBuilder(size)
    added: list[tuple[str, int, int, int]] = []
    for group in graph.groups:
        for coupled in group.dims_of("consumer"):
            if coupled.name == linear_map.weight and group.name in candidate_set.widen:
                units = candidate_set.widen[group.name].units
                added.append((group.name, units, *builder.add(coupled, units)))
    # where each input, numbered in the order in which groups add them, stands in the widened map
    place = torch.empty(size + builder.added, dtype=torch.long)
    place[builder.layout().order] = torch.arange(size + builder.added)
    order, groups, wide = [place[:size]], dict[str, Tensor](), 0
    for group_name, units, offset, positions in added:
        order.append(place[offset : offset + positions])
        own = (
            torch.arange(wide, wide + positions)[:, None] * linear_map.kernel_numel + kernel
        ).view(units, -1)
        known = groups.get(group_name)  # a group may be read by one map twice
        # Each unit then owns columns in both places, and gains by both.
        groups[group_name] = own if known is None else torch.cat([known, own], 1)
        wide += positions
    column, layers = wide * linear_map.kernel_numel, []
    for layer in candidate_set.layers.get(name, ()):
        layers.append(torch.arange(column, column + layer.columns).view(-1, layer.columns_per_unit))
        column += layer.columns
    return ColumnLayout(
        existing=size * linear_map.kernel_numel + (linear_map.bias is not None),
        permutation=torch.cat(order),
        inputs=size,
        groups=groups,
        layers=layers,
    )
