"""All candidates of one consideration, drawn at the scale of what passes through the model on a few samples."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from senn import pytree
from senn.candidates.candidate_config import CandidateConfig
from senn.candidates.candidate_set import CandidateSet, LayerActivations
from senn.candidates.initialization import sample_conv_layer, sample_identity_layer, sample_residual_layer, sample_units
from senn.candidates.new_layers import ConvolutionalLayer, Layer, same
from senn.errors import DivergenceError
from senn.graph import DependencyGraph, InsertionPoint, LinearMap, ResidualBlock
from senn.kfac.capture import layout_of
from senn.kfac.layer_inputs import ConvInput, upcast
from senn.kfac.loss_metric import LossMetric
from senn.kfac.recorder import BatchLayout, LinearCall, RowLayout, forward, record_linear_calls
from senn.nn import Residual
from senn.nn.activations import activation_class
from senn.preserve import preserve_model_state
from senn.pytree import Inputs, Output
from senn.surgery import Append, Widen, function_preserving_copy

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
        graph: what in it can change.
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
    graph: DependencyGraph
    maps: Mapping[str, LinearMap]
    calls: Mapping[str, Sequence[LinearCall]]
    activations: Mapping[str, LayerActivations]
    loss: float
    config: CandidateConfig
    min_gain: Callable[[int], float] | None
    generator: torch.Generator

    def is_worthwhile(self, parameters: int) -> bool:
        """Return True if an insertion of that many parameters would pay if it removed the whole loss."""
        return self.min_gain is None or self.min_gain(parameters) < self.loss


def sample_candidates(
    *,
    model: nn.Module,
    graph: DependencyGraph,
    maps: Mapping[str, LinearMap],
    inputs: Inputs,
    targets: Tensor,
    metric: LossMetric,
    config: CandidateConfig,
    moves: Sequence[str],
    min_gain: Callable[[int], float] | None,
    generator: torch.Generator,
    output: Output | None,
    readings: Mapping[str, BatchLayout],
) -> CandidateSet:
    """Draw candidates for every place that a readable map can score.

    Args:
        model: the model, read only.
        graph: what in it can change.
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
    with torch.no_grad(), preserve_model_state(model), record_linear_calls(model, [*maps], outputs=True) as calls:
        found = forward(model, pytree.index_batch(inputs, slice(0, few), len(targets)), output)
    if not torch.isfinite(found).all():
        raise DivergenceError(
            "the outputs on this batch are not finite: the network has diverged or the batch holds bad values"
        )
    loss = float(metric.loss(found, targets[:few]))
    context = SamplingContext(
        model=model,
        graph=graph,
        maps=maps,
        calls=calls,
        activations={
            name: _activations(one[0], layout_of(readings, name, 0), len(found))
            for name, one in calls.items()
            if maps[name].groups == 1 and not maps[name].transposed
        },
        loss=loss / metric.loss_per_nat(loss, found),
        config=config,
        min_gain=min_gain,
        generator=generator,
    )
    widen = _units(context) if "width" in moves else {}
    if "depth" not in moves:
        return CandidateSet(widen)
    return CandidateSet(widen, _layers(context), _repeats(context))


def _units(context: SamplingContext) -> dict[str, Widen]:
    """Draw units for each space that a readable map reads; units that are quiet at first bring nothing."""
    return {
        group.name: sample_units(
            context.model, group, context.maps, context.activations, context.config, context.generator
        )
        for group in context.graph.groups
        if not group.norms and any(coupled.map in context.maps for coupled in group.dims_of("consumer"))
    }


def _layers(context: SamplingContext) -> dict[str, tuple[Layer, ...]]:
    """Draw layers for each open site."""
    named = context.config.activation
    layers: dict[str, tuple[Layer, ...]] = {}
    for insertion_point in _open_insertion_points(context):
        if named is not None:
            insertion_point = replace(insertion_point, activation=activation_class(named).__name__)
        drawn = (
            _before_convolution(context, insertion_point)
            if insertion_point.spatial
            else _before_linear(context, insertion_point)
        )
        if drawn:
            layers[insertion_point.module] = tuple(drawn)
    return layers


def _before_linear(context: SamplingContext, insertion_point: InsertionPoint) -> list[Layer]:
    """Draw a residual layer's units, and bases of identity insertions, before a linear map."""
    config, generator = context.config, context.generator
    x, drawn = context.activations[insertion_point.module].x, list[Layer]()
    rational = insertion_point.activation == "Rational"
    # PReLU has its units in the second dimension, these inputs have them in the last
    if context.calls[insertion_point.module][0].x.dim() != 2:
        rational = True
        insertion_point = replace(
            insertion_point, activation="ReLU" if insertion_point.activation == "PReLU" else insertion_point.activation
        )
    if config.residual_units and context.is_worthwhile(2 * insertion_point.features + 1):
        drawn.append(sample_residual_layer(insertion_point, x, config, generator))
    if context.is_worthwhile(insertion_point.features * (insertion_point.features + 1)):
        biased = context.maps[insertion_point.module].bias is not None
        drawn += [
            sample_identity_layer(insertion_point, x, biased, generator, rational=rational)
            for _ in range(config.identity_bases)
        ]
    return drawn


def _before_convolution(context: SamplingContext, insertion_point: InsertionPoint) -> list[ConvolutionalLayer]:
    """Draw channels of a residual layer before a convolution, of three taps a dimension if it has several."""
    one = context.calls[insertion_point.module][0]
    assert one.kernel is not None
    size = 3 if min(one.kernel.size) > 1 else 1
    if not context.config.residual_units or not context.is_worthwhile(
        insertion_point.features * (size**insertion_point.spatial + 1) + 1
    ):
        return []
    read = ConvInput.of(upcast(one.x), False, same(insertion_point.spatial, size))
    return [sample_conv_layer(insertion_point, read.rows(_spread(read)), context.config, context.generator)]


def _repeats(context: SamplingContext) -> dict[str, Append]:
    """Make silent copies of the residual blocks whose maps can be read."""
    found = {}
    for block in context.graph.residual_blocks:
        module = context.model.get_submodule(block.module)
        if isinstance(module, Residual):  # its width does as much
            continue
        parameters = sum(p.numel() for p in module.parameters())
        if context.is_worthwhile(parameters) and repeatable(context.model, block, context.maps):
            found[block.module] = Append(block.module, function_preserving_copy(context.model, block))
    return found


def repeatable(model: nn.Module, block: ResidualBlock, maps: Container[str]) -> bool:
    """Whether a copy's gain can be scored: its silent tensors belong to readable maps or to BatchNorms."""
    paths = {name.rpartition(".")[0] for name in block.output_params}
    weights = {name.rpartition(".")[0] for name in block.output_params if name.endswith(".weight")}
    return paths == weights and all(path in maps or _is_norm(model.get_submodule(path)) for path in paths)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, BATCH_NORMS) and module.running_mean is not None


def _open_insertion_points(context: SamplingContext) -> list[InsertionPoint]:
    """Find sites outside residual branches: a layer within a layer does no more than the branch's width."""
    branches = tuple(f"{name}." for name, module in context.model.named_modules() if isinstance(module, Residual))
    insertion_points = [
        insertion_point for insertion_point in context.graph.insertion_points if insertion_point.module in context.maps
    ]
    return [insertion_point for insertion_point in insertion_points if not insertion_point.module.startswith(branches)]


def _spread(read: ConvInput) -> Tensor:
    """Evenly spread locations, of which all samples have about `LOOKED_AT` rows."""
    return torch.arange(0, read.locations, max(read.locations * len(read.x) // LOOKED_AT, 1), device=read.x.device)


def _activations(one: LinearCall, layout: RowLayout, samples: int) -> LayerActivations:
    """About `LOOKED_AT` of the rows, evenly spread."""
    assert one.z is not None
    if one.kernel is not None:
        read = ConvInput.of(upcast(one.x), False, one.kernel)
        places = _spread(read)
        z = upcast(one.z).flatten(2).mT[:, places]
        return LayerActivations(read.rows(places), z.flatten(0, 1))
    x, z = (layout.by_sample(upcast(values), samples).flatten(0, 1) for values in (one.x, one.z))
    step = max(len(x) // LOOKED_AT, 1)
    return LayerActivations(x[::step], z[::step])
