"""All candidates of one consideration, drawn at the scale of what passes through the model on a few samples."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from senn import batch
from senn.batch import Inputs, Output
from senn.candidates.candidate_config import Proposals
from senn.candidates.candidate_set import Draw, LayerActivations
from senn.candidates.initialization import draw_convolutional, draw_identity, draw_residual, draw_units
from senn.candidates.new_layers import ConvolutionalLayer, Layer, same
from senn.curvature.capture import layout_of
from senn.curvature.output import OutputMetric
from senn.curvature.patches import ConvInput, full
from senn.curvature.reading import Application, Reading, RowLayout, forward, reading
from senn.errors import DivergenceError
from senn.nn import Residual
from senn.nn.activations import activation_class
from senn.preserve import preserve_model_state
from senn.structure import Block, LinearMap, Site, Space, Structure
from senn.surgery import Append, Widen, silent_copy

LOOK = 128
"""Samples that the draw looks at, for the scale of the candidates."""

LOOKED_AT = 4096
"""Rows of each map that it takes from them."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""Normalisations whose weight can be silent."""


def propose(
    model: nn.Module,
    structure: Structure,
    maps: Mapping[str, LinearMap],
    inputs: Inputs,
    targets: Tensor,
    metric: OutputMetric,
    recipe: Proposals,
    moves: Sequence[str],
    min_gain: Callable[[int], float] | None,
    generator: torch.Generator,
    find: Output | None,
    readings: Mapping[str, Reading],
) -> Draw:
    """Draw candidates for every place that a readable map can score; arguments as of `Survey`.

    Raises:
        DivergenceError: the outputs are not finite.
    """
    most = max(found.locations for found in readings.values())
    few = max(min(LOOK, 4 * LOOKED_AT // most), 2)
    with torch.no_grad(), preserve_model_state(model), reading(model, [*maps], outputs=True) as seen:
        output = forward(model, batch.take(inputs, slice(0, few), len(targets)), find)
    if not torch.isfinite(output).all():
        raise DivergenceError(
            "the outputs on this batch are not finite: the network has diverged or the batch holds bad values"
        )
    loss = float(metric.loss(output, targets[:few]))
    loss /= metric.nat(loss, output)

    def pays(parameters: int) -> bool:
        """Whether a layer of that many parameters could pay even if it removed the whole loss."""
        return min_gain is None or min_gain(parameters) < loss

    passing = {
        name: _passing(one[0], layout_of(readings, name, 0), len(output))
        for name, one in seen.items()
        if maps[name].groups == 1 and not maps[name].transposed
    }
    widen: dict[str, Widen] = {}
    layers: dict[str, tuple[Layer, ...]] = {}
    if "width" in moves:
        for space in structure.spaces:
            if _is_scored(space, maps):
                widen[space.name] = draw_units(model, space, maps, passing, recipe, generator)
    if "depth" in moves:
        activation = None if recipe.activation is None else activation_class(recipe.activation).__name__
        for found in _open_sites(model, structure, maps):
            site = replace(found, activation=activation or found.activation)
            if site.spatial:
                layer = _before_convolution(site, seen[site.module][0], recipe, pays, generator)
                if layer is not None:
                    layers[site.module] = (layer,)
                continue
            x, offered = passing[site.module].x, list[Layer]()
            rational = site.activation == "Rational"
            if seen[site.module][0].x.dim() != 2:  # PReLU has its units second, these have them last
                rational = True
                site = replace(site, activation="ReLU" if site.activation == "PReLU" else site.activation)
            if recipe.residual and pays(2 * site.features + 1):
                offered.append(draw_residual(site, x, recipe, generator))
            if pays(site.features * (site.features + 1)):
                for _ in range(recipe.identity):
                    biased = maps[site.module].bias is not None
                    offered.append(draw_identity(site, x, biased, generator, rational=rational))
            if offered:
                layers[site.module] = tuple(offered)
    return Draw(widen, layers, _repeats(model, structure, maps, pays) if "depth" in moves else {})


def _before_convolution(
    site: Site,
    one: Application,
    recipe: Proposals,
    pays: Callable[[int], bool],
    generator: torch.Generator,
) -> ConvolutionalLayer | None:
    """Candidate channels of a residual layer before a convolution, of three taps a dimension if it has several."""
    assert one.kernel is not None
    size = 3 if min(one.kernel.size) > 1 else 1
    if not recipe.residual or not pays(site.features * (size**site.spatial + 1) + 1):
        return None
    read = ConvInput.of(full(one.x), False, same(site.spatial, size))
    return draw_convolutional(site, read.rows(_spread(read)), recipe, generator)


def _repeats(
    model: nn.Module,
    structure: Structure,
    maps: Mapping[str, LinearMap],
    pays: Callable[[int], bool],
) -> dict[str, Append]:
    """Silent copies of the residual blocks whose maps can be read."""
    found = {}
    for block in structure.blocks:
        module = model.get_submodule(block.module)
        if isinstance(module, Residual):  # its width does as much
            continue
        parameters = sum(p.numel() for p in module.parameters())
        if pays(parameters) and repeatable(model, block, maps):
            found[block.module] = Append(block.module, silent_copy(model, block))
    return found


def repeatable(model: nn.Module, block: Block, maps: Container[str]) -> bool:
    """Whether a copy's gain can be scored: its silent tensors belong to readable maps or to BatchNorms."""
    paths = {name.rpartition(".")[0] for name in block.silent}
    weights = {name.rpartition(".")[0] for name in block.silent if name.endswith(".weight")}
    return paths == weights and all(path in maps or _is_norm(model.get_submodule(path)) for path in paths)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, BATCH_NORMS) and module.running_mean is not None


def _is_scored(space: Space, maps: Mapping[str, LinearMap]) -> bool:
    """Whether a map that can be read reads its units; units that are quiet at first bring nothing then."""
    return not space.norms and any(slot.map in maps for slot in space.of("consumer"))


def _open_sites(model: nn.Module, structure: Structure, maps: Mapping[str, LinearMap]) -> list[Site]:
    """Sites outside residual branches: no layer within a layer is offered, since width of the branch does as much."""
    branches = [f"{name}." for name, module in model.named_modules() if isinstance(module, Residual)]
    sites = [site for site in structure.sites if site.module in maps]
    return [site for site in sites if not any(site.module.startswith(branch) for branch in branches)]


def _spread(read: ConvInput) -> Tensor:
    """Evenly spread locations, of which all samples have about `LOOKED_AT` rows."""
    return torch.arange(0, read.locations, max(read.locations * len(read.x) // LOOKED_AT, 1), device=read.x.device)


def _passing(one: Application, layout: RowLayout, samples: int) -> LayerActivations:
    """About `LOOKED_AT` of the rows, evenly spread."""
    assert one.z is not None
    if one.kernel is not None:
        read = ConvInput.of(full(one.x), False, one.kernel)
        places = _spread(read)
        z = full(one.z).flatten(2).mT[:, places]
        return LayerActivations(read.rows(places), z.flatten(0, 1))
    x, z = (layout.by_sample(full(values), samples).flatten(0, 1) for values in (one.x, one.z))
    step = max(len(x) // LOOKED_AT, 1)
    return LayerActivations(x[::step], z[::step])
