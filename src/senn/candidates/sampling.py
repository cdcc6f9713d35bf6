"""All candidates of one consideration, drawn at the scale of what passes through the model on a few samples."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace

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
from senn.structure import Block, LinearMap, Site, Structure
from senn.surgery import Append, Widen, silent_copy

LOOK = 128
"""Samples that the draw looks at, for the scale of the candidates."""

LOOKED_AT = 4096
"""Rows of each map that it takes from them."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""Normalisations whose weight can be silent."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SamplingContext:
    """What is known of the model when the candidates of a round are drawn.

    Attributes:
        model: the model, read only.
        structure: what in it can change.
        maps: linear maps that can be read, by name.
        calls: by map, its applications to a few samples.
        activations: by map that is neither grouped nor transposed, some rows of what passes through it.
        loss: mean loss of these samples, in nats.
        config: how many candidates of what kind.
        min_gain: least decrease of the loss, in nats per sample, with which an insertion of so many parameters could
            be accepted; None where everything is to be scored.
        generator: source of randomness.
    """

    model: nn.Module
    structure: Structure
    maps: Mapping[str, LinearMap]
    calls: Mapping[str, Sequence[Application]]
    activations: Mapping[str, LayerActivations]
    loss: float
    config: Proposals
    min_gain: Callable[[int], float] | None
    generator: torch.Generator

    def is_worthwhile(self, parameters: int) -> bool:
        """Return True if an insertion of that many parameters would pay if it removed the whole loss."""
        return self.min_gain is None or self.min_gain(parameters) < self.loss


def propose(
    *,
    model: nn.Module,
    structure: Structure,
    maps: Mapping[str, LinearMap],
    inputs: Inputs,
    targets: Tensor,
    metric: OutputMetric,
    config: Proposals,
    moves: Sequence[str],
    min_gain: Callable[[int], float] | None,
    generator: torch.Generator,
    output: Output | None,
    readings: Mapping[str, Reading],
) -> Draw:
    """Draw candidates for every place that a readable map can score.

    Args:
        model: the model, read only.
        structure: what in it can change.
        maps: linear maps that can be read, by name.
        inputs: a batch; the first samples of it are run.
        targets: theirs.
        metric: the loss.
        config: how many candidates of what kind.
        moves: which of `width` and `depth` are wanted.
        min_gain: as in `SamplingContext`.
        generator: source of randomness; drawn from place by place, widths first.
        output: finds the outputs in what the model returns.
        readings: by map, how its rows belong to samples.

    Raises:
        DivergenceError: the outputs are not finite.
    """
    most = max(found.locations for found in readings.values())
    few = max(min(LOOK, 4 * LOOKED_AT // most), 2)
    with torch.no_grad(), preserve_model_state(model), reading(model, [*maps], outputs=True) as calls:
        found = forward(model, batch.take(inputs, slice(0, few), len(targets)), output)
    if not torch.isfinite(found).all():
        raise DivergenceError(
            "the outputs on this batch are not finite: the network has diverged or the batch holds bad values"
        )
    loss = float(metric.loss(found, targets[:few]))
    context = SamplingContext(
        model=model,
        structure=structure,
        maps=maps,
        calls=calls,
        activations={
            name: _activations(one[0], layout_of(readings, name, 0), len(found))
            for name, one in calls.items()
            if maps[name].groups == 1 and not maps[name].transposed
        },
        loss=loss / metric.nat(loss, found),
        config=config,
        min_gain=min_gain,
        generator=generator,
    )
    widen = _units(context) if "width" in moves else {}
    if "depth" not in moves:
        return Draw(widen)
    return Draw(widen, _layers(context), _repeats(context))


def _units(context: SamplingContext) -> dict[str, Widen]:
    """Draw units for each space that a readable map reads; units that are quiet at first bring nothing."""
    return {
        space.name: draw_units(
            context.model, space, context.maps, context.activations, context.config, context.generator
        )
        for space in context.structure.spaces
        if not space.norms and any(slot.map in context.maps for slot in space.of("consumer"))
    }


def _layers(context: SamplingContext) -> dict[str, tuple[Layer, ...]]:
    """Draw layers for each open site."""
    named = context.config.activation
    layers: dict[str, tuple[Layer, ...]] = {}
    for site in _open_sites(context):
        if named is not None:
            site = replace(site, activation=activation_class(named).__name__)
        drawn = _before_convolution(context, site) if site.spatial else _before_linear(context, site)
        if drawn:
            layers[site.module] = tuple(drawn)
    return layers


def _before_linear(context: SamplingContext, site: Site) -> list[Layer]:
    """Draw a residual layer's units, and bases of identity insertions, before a linear map."""
    config, generator = context.config, context.generator
    x, drawn = context.activations[site.module].x, list[Layer]()
    rational = site.activation == "Rational"
    # PReLU has its units in the second dimension, these inputs have them in the last
    if context.calls[site.module][0].x.dim() != 2:
        rational = True
        site = replace(site, activation="ReLU" if site.activation == "PReLU" else site.activation)
    if config.residual and context.is_worthwhile(2 * site.features + 1):
        drawn.append(draw_residual(site, x, config, generator))
    if context.is_worthwhile(site.features * (site.features + 1)):
        biased = context.maps[site.module].bias is not None
        drawn += [draw_identity(site, x, biased, generator, rational=rational) for _ in range(config.identity)]
    return drawn


def _before_convolution(context: SamplingContext, site: Site) -> list[ConvolutionalLayer]:
    """Draw channels of a residual layer before a convolution, of three taps a dimension if it has several."""
    one = context.calls[site.module][0]
    assert one.kernel is not None
    size = 3 if min(one.kernel.size) > 1 else 1
    if not context.config.residual or not context.is_worthwhile(site.features * (size**site.spatial + 1) + 1):
        return []
    read = ConvInput.of(full(one.x), False, same(site.spatial, size))
    return [draw_convolutional(site, read.rows(_spread(read)), context.config, context.generator)]


def _repeats(context: SamplingContext) -> dict[str, Append]:
    """Make silent copies of the residual blocks whose maps can be read."""
    found = {}
    for block in context.structure.blocks:
        module = context.model.get_submodule(block.module)
        if isinstance(module, Residual):  # its width does as much
            continue
        parameters = sum(p.numel() for p in module.parameters())
        if context.is_worthwhile(parameters) and repeatable(context.model, block, context.maps):
            found[block.module] = Append(block.module, silent_copy(context.model, block))
    return found


def repeatable(model: nn.Module, block: Block, maps: Container[str]) -> bool:
    """Whether a copy's gain can be scored: its silent tensors belong to readable maps or to BatchNorms."""
    paths = {name.rpartition(".")[0] for name in block.silent}
    weights = {name.rpartition(".")[0] for name in block.silent if name.endswith(".weight")}
    return paths == weights and all(path in maps or _is_norm(model.get_submodule(path)) for path in paths)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, BATCH_NORMS) and module.running_mean is not None


def _open_sites(context: SamplingContext) -> list[Site]:
    """Find sites outside residual branches: a layer within a layer does no more than the branch's width."""
    branches = tuple(f"{name}." for name, module in context.model.named_modules() if isinstance(module, Residual))
    sites = [site for site in context.structure.sites if site.module in context.maps]
    return [site for site in sites if not site.module.startswith(branches)]


def _spread(read: ConvInput) -> Tensor:
    """Evenly spread locations, of which all samples have about `LOOKED_AT` rows."""
    return torch.arange(0, read.locations, max(read.locations * len(read.x) // LOOKED_AT, 1), device=read.x.device)


def _activations(one: Application, layout: RowLayout, samples: int) -> LayerActivations:
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
