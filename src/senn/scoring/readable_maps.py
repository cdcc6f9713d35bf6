"""Linear maps whose rows can be told apart by sample, so that candidates can be scored there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from senn.errors import UnsupportedError
from senn.graph import DependencyGraph, LinearMap
from senn.kfac.batch_layout import BatchLayout, RowLayout, infer_batch_layouts
from senn.pytree import Inputs, Output


def find_readable_maps(
    model: nn.Module,
    graph: DependencyGraph,
    layouts: dict[str, BatchLayout | str],
    inputs: Inputs,
    output: Output | None,
    *,
    whole: int | None = None,
) -> dict[str, LinearMap]:
    """Find the linear maps that can be read on such inputs.

    Args:
        model: the model.
        graph: what in it can change.
        layouts: by linear map, how its rows belong to samples, or why that can't be told; made anew here if it lacks a
            map of the graph.
        inputs: inputs of a few samples.
        output: finds the outputs in what the model returns.
        whole: number of samples if the inputs can't be cut into them; None if they can.

    Raises:
        UnsupportedError: no map can be read.
    """
    names = graph.scored_maps
    if any(name not in layouts for name in names):
        n_uses = {name: graph.map(name).n_uses for name in names}
        found = infer_batch_layouts(model, n_uses, inputs, output, whole=whole)
        # Names of maps change when layers are inserted: nothing old is kept.
        layouts.clear()
        layouts.update(found)
    maps = {}
    for name in names:
        layout = layouts.get(name)
        if isinstance(layout, BatchLayout):
            linear_map = graph.map(name)
            # a bias that another operation adds isn't one of the map's own columns
            maps[name] = linear_map if layout.biased else replace(linear_map, bias=None)
    if not maps:
        reasons = [found for found in layouts.values() if isinstance(found, str)]
        raise UnsupportedError(
            "; ".join(reasons[:3]) or "the model has no linear map whose inputs could be read"
        )
    return maps


def check_plain_maps(
    model: nn.Module, maps: Mapping[str, LinearMap], layouts: Mapping[str, BatchLayout]
) -> None:
    """Refuse gradient ascent where a map isn't an ordinary linear layer that reads the batch once.

    Args:
        model: the model.
        maps: the linear maps that are read, by name.
        layouts: how their rows belong to samples.

    Raises:
        UnsupportedError: a map is something else.
    """
    for name, linear_map in maps.items():
        if linear_map.located_in:  # candidate units there would be rows without a gradient
            raise UnsupportedError(
                f"gradient ascent of candidates isn't supported for {name}, to which the units of "
                f"{linear_map.located_in[0]} are locations: use ascent_steps=0"
            )
        layer = model.get_submodule(linear_map.weight.rpartition(".")[0])
        # Ascent differentiates plain products; a convolution's would need its patches.
        if not isinstance(layer, nn.Linear) or layouts[name].layouts != (RowLayout(),):
            raise UnsupportedError(
                f"gradient ascent of candidates isn't supported for {name}, which is no linear layer: "
                f"use ascent_steps=0"
            )
