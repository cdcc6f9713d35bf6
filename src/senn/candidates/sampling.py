"""Sampling all candidates of a round: which places are open, and at what scale of activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from senn import pytree
from senn.candidates.candidate_config import CandidateConfig
from senn.candidates.candidate_set import CandidateSet, LayerActivations
from senn.candidates.initialization import (
    sample_conv_layer,
    sample_identity_layer,
    sample_residual_layer,
    sample_units,
)
from senn.candidates.new_layers import Layer, same_size_kernel
from senn.errors import DivergenceError
from senn.graph import DependencyGraph, InsertionPoint, LinearMap, ResidualBlock, get_linear
from senn.kfac.batch_layout import BatchLayout, RowLayout
from senn.kfac.capture import layout_of
from senn.kfac.factors import DENSE_OUTPUTS
from senn.kfac.layer_inputs import ConvInput, upcast
from senn.kfac.loss_metric import LossMetric
from senn.kfac.recorder import LinearCall, forward, record_linear_calls
from senn.nn import Residual
from senn.nn.activations import activation_class
from senn.preserve import preserve_model_state
from senn.pytree import Inputs, Output, Targets
from senn.surgery import Append, Widen, function_preserving_copy

SCALE_SAMPLES = 128
"""Samples that are run for the scale of the candidates.

They give the standard deviation of a pre-activation to about 1 / sqrt(2 * 128) = 6 %, half as many to 9 %, twice as
many to 4 %, and training adapts it anyway.
"""

SCALE_ROWS = 4096
"""Rows of each map's activations that are taken from these samples.

Directions are mixtures of these rows, so there should be several times as many as a map has columns; the cost of
sampling grows in proportion.
"""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""Normalizations whose weight can silence a residual block."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SamplingContext:
    """Model, activations and settings from which the candidates of a round are sampled.

    Attributes:
        model: the model, read only.
        graph: what in it can change.
        maps: linear maps that can be read, by name.
        calls: by map, its calls on a few samples.
        activations: by map that is neither grouped nor transposed, rows of its inputs and outputs.
        loss: mean loss of these samples, in nats per sample; infinite if it isn't known as a likelihood.
        config: how many candidates of what kind.
        min_gain: least decrease of the loss, in nats per sample, with which an insertion of so many parameters could
            be accepted; None if everything is to be scored.
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
        """Return True if an insertion that removed the whole loss would be accepted."""
        return self.min_gain is None or self.min_gain(parameters) < self.loss


def sample_candidates(
    *,
    model: nn.Module,
    graph: DependencyGraph,
    maps: Mapping[str, LinearMap],
    inputs: Inputs,
    targets: Targets,
    metric: LossMetric,
    config: CandidateConfig,
    moves: Sequence[str],
    min_gain: Callable[[int], float] | None,
    generator: torch.Generator,
    output: Output | None,
    readings: Mapping[str, BatchLayout],
    whole: bool = False,
) -> CandidateSet:
    """Sample candidates for every place that a readable map can score.

    Args:
        model: the model, read only.
        graph: what in it can change.
        maps: linear maps that can be read, by name.
        inputs: a batch, whose first `SCALE_SAMPLES` samples are run.
        targets: targets of the batch.
        metric: the loss.
        config: how many candidates of what kind.
        moves: those of `width` and `depth` that are wanted; others are ignored.
        min_gain: as in `SamplingContext`.
        generator: source of randomness, used place by place, widths first.
        output: finds the outputs in what the model returns; None where that is clear.
        readings: by map, how its rows belong to samples.
        whole: True if the batch can't be cut into samples.

    Raises:
        DivergenceError: the outputs are not finite.
    """
    count = pytree.count(targets) if whole else _number_of_samples(readings)
    samples, labels = pytree.index_batch((inputs, targets), slice(0, count), pytree.count(targets))
    outputs, calls = _record(model, samples, [*maps], output)
    # what removing the whole loss would bring is known for likelihoods only: other losses may go below zero
    bounded = metric.has_closed_form and min_gain is not None
    loss = float(metric.loss(outputs, labels)) if bounded else math.inf
    plain = [name for name in calls if maps[name].groups == 1 and not maps[name].transposed]
    context = SamplingContext(
        model=model,
        graph=graph,
        maps=maps,
        calls=calls,
        activations={
            name: _activations(calls[name][0], layout_of(readings, name, 0), len(outputs))
            for name in plain
        },
        # In nats, as the policy's prices are: `is_worthwhile` compares the two.
        loss=loss / metric.loss_per_nat(loss, outputs, labels) if bounded else loss,
        config=config,
        min_gain=min_gain,
        generator=generator,
    )
    # In this order: figures of a seed depend on it.
    widen = _sample_groups(context) if "width" in moves else {}
    if "depth" not in moves:
        return CandidateSet(widen)
    return CandidateSet(widen, _sample_layers(context), _block_copies(context))


def _record(
    model: nn.Module, inputs: Inputs, names: Sequence[str], output: Output | None
) -> tuple[Tensor, dict[str, list[LinearCall]]]:
    """Run a model, and return its outputs with the recorded calls of the named maps."""
    with (
        torch.no_grad(),
        preserve_model_state(model),
        record_linear_calls(model, names, outputs=True) as calls,
    ):
        outputs = forward(model, inputs, output)
    if not torch.isfinite(outputs).all():
        raise DivergenceError(
            "the outputs on this batch are not finite: the network has diverged or the batch holds bad values"
        )
    return outputs, calls


def _number_of_samples(readings: Mapping[str, BatchLayout]) -> int:
    """Return how many samples are run: fewer where maps have many locations, as of large images."""
    most_locations = max(layout.locations for layout in readings.values())
    # Four times the rows that are needed of the map with most, since the others have fewer; a spread needs two samples.
    return max(min(SCALE_SAMPLES, 4 * SCALE_ROWS // most_locations), 2)


def _sample_groups(context: SamplingContext) -> dict[str, Widen]:
    """Sample units for each channel group that a readable map reads."""
    return {
        group.name: sample_units(
            model=context.model,
            group=group,
            maps=context.maps,
            activations=context.activations,
            config=context.config,
            generator=context.generator,
        )
        for group in context.graph.groups
        # Units behind a norm that mixes units must start at zero, where their gain can't be seen.
        if not group.norms and any(dim.map in context.maps for dim in group.dims_of("consumer"))
    }


def _sample_layers(context: SamplingContext) -> dict[str, tuple[Layer, ...]]:
    """Sample layers for each open insertion point."""
    named = context.config.activation
    layers: dict[str, tuple[Layer, ...]] = {}
    for point in _open_insertion_points(context):
        if named is not None:
            point = replace(point, activation=activation_class(named).__name__)
        sample = _sample_before_convolution if point.spatial else _sample_before_linear
        if sampled := sample(context, point):
            layers[point.module] = tuple(sampled)
    return layers


def _sample_before_linear(context: SamplingContext, point: InsertionPoint) -> list[Layer]:
    """Sample a residual layer's units, and bases of identity insertions, before a linear map."""
    config, generator = context.config, context.generator
    x, layers = context.activations[point.module].x, list[Layer]()
    rational = point.activation == "Rational"
    # PReLU has its units in the second dimension; inputs of more than two have them in the last.
    if context.calls[point.module][0].x.dim() != 2:
        rational = True
        if point.activation == "PReLU":
            point = replace(point, activation="ReLU")
    if config.residual_units and context.is_worthwhile(2 * point.features + 1):  # of one unit
        layers.append(sample_residual_layer(point, x, config, generator))
    # each feature has columns of its own there, and their moments with very many outputs take gigabytes
    is_wide = len(get_linear(context.model, point.module).weight) > DENSE_OUTPUTS
    if not is_wide and context.is_worthwhile(point.features * (point.features + 1)):
        biased = context.maps[point.module].bias is not None
        for _ in range(config.identity_bases):
            layers.append(
                sample_identity_layer(point, x, generator, biased=biased, rational=rational)
            )
    return layers


def _sample_before_convolution(context: SamplingContext, point: InsertionPoint) -> list[Layer]:
    """Sample channels of a residual layer before a convolution."""
    call = context.calls[point.module][0]
    assert call.kernel is not None
    # 3 entries along each dimension, the cheapest that see neighbors; 1 where the convolution sees none
    size = 3 if min(call.kernel.size) > 1 else 1
    parameters = point.features * (size**point.spatial + 1) + 1  # of one channel: B, V and beta
    if not context.config.residual_units or not context.is_worthwhile(parameters):
        return []
    patches = ConvInput.of(upcast(call.x), False, same_size_kernel(point.spatial, size))
    rows = patches.rows(_spread_locations(patches))
    return [sample_conv_layer(point, rows, context.config, context.generator)]


def _block_copies(context: SamplingContext) -> dict[str, Append]:
    """Make function-preserving copies of the residual blocks whose maps can be read."""
    found = {}
    for block in context.graph.residual_blocks:
        module = context.model.get_submodule(block.module)
        if isinstance(module, Residual):  # one of senn's own: widening its branch does as much
            continue
        parameters = sum(p.numel() for p in module.parameters())
        if context.is_worthwhile(parameters) and is_scorable(context.model, block, context.maps):
            found[block.module] = Append(
                block.module, function_preserving_copy(context.model, block)
            )
    return found


def is_scorable(model: nn.Module, block: ResidualBlock, maps: Container[str]) -> bool:
    """Return True if the gain of a block's copy can be scored.

    Args:
        model: the model.
        block: the residual block; its silenced tensors must belong to readable maps or to BatchNorms.
        maps: names of the linear maps that can be read.
    """
    paths = {name.rpartition(".")[0] for name in block.output_params}
    weights = {name.rpartition(".")[0] for name in block.output_params if name.endswith(".weight")}
    # A silenced bias of its own, without a weight in the same module, has no columns to be scored by.
    return paths == weights and all(
        path in maps or _is_batch_norm(model.get_submodule(path)) for path in paths
    )


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, BATCH_NORMS) and module.running_mean is not None


def _open_insertion_points(context: SamplingContext) -> list[InsertionPoint]:
    """Return insertion points outside `Residual` branches."""
    # Within a branch, a layer does no more than widening the branch.
    branches = tuple(
        f"{name}." for name, module in context.model.named_modules() if isinstance(module, Residual)
    )
    points = [point for point in context.graph.insertion_points if point.module in context.maps]
    return [point for point in points if not point.module.startswith(branches)]


def _spread_locations(patches: ConvInput) -> Tensor:
    """Return evenly spread locations, of which all samples together have about `SCALE_ROWS` rows."""
    step = max(patches.locations * len(patches.x) // SCALE_ROWS, 1)
    return torch.arange(0, patches.locations, step, device=patches.x.device)


def _activations(call: LinearCall, layout: RowLayout, samples: int) -> LayerActivations:
    """Take about `SCALE_ROWS` evenly spread rows of a recorded call."""
    assert call.z is not None
    if call.kernel is not None:
        patches = ConvInput.of(upcast(call.x), False, call.kernel)
        locations = _spread_locations(patches)
        z = upcast(call.z).flatten(2).mT[:, locations]
        return LayerActivations(x=patches.rows(locations), z=z.flatten(0, 1))
    x, z = (layout.by_sample(upcast(values), samples).flatten(0, 1) for values in (call.x, call.z))
    # Spread evenly: the first rows would be those of a few samples, where each has many.
    step = max(len(x) // SCALE_ROWS, 1)
    return LayerActivations(x=x[::step], z=z[::step])
