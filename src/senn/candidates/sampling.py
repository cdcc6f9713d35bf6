"""Sampling all candidates of a round: which places are open, and at what scale of activations."""

from __future__ import annotations

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
from senn.candidates.places import FittedSamples, Gradients, gradient_reader
from senn.candidates.recorded_samples import SCALE_SAMPLES, RecordedSamples
from senn.candidates.stream_units import sample_stream_units
from senn.graph import (
    ChannelGroup,
    DependencyGraph,
    InsertionPoint,
    LinearMap,
    ResidualBlock,
    get_linear,
)
from senn.kfac.batch_layout import BatchLayout
from senn.kfac.factors import DENSE_OUTPUTS
from senn.kfac.loss_metric import LossMetric
from senn.nn import Residual
from senn.nn.activations import activation_class
from senn.pytree import Inputs, Output, Targets
from senn.surgery import Append, Widen, function_preserving_copy, shuffle_weights

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""Normalizations whose weight can silence a residual block."""

IDENTITY_BASES = 2
"""Bases of an identity insertion where their columns are few."""

IDENTITY_COLUMNS = 2048
"""Columns that they have together at most, before a map that a sample passes through once.

Each feature has one or two columns of its own, whose moments cost the square of their number for every row: half of it
would leave the 784 pixels of MNIST one basis, twice of it takes as long as all else before a map of 1,024 inputs.
"""

IDENTITY_COLUMNS_BY_LOCATION = 128
"""The same before a map with several locations, such as tokens, where rows are many.

In a transformer of width 128, a basis (256 columns) before each map costs about two passes forwards and backwards, and
before the widest ones, of four times the features, forty.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class SamplingContext:
    """Model, activations and settings from which the candidates of a round are sampled.

    Attributes:
        model: the model, read only.
        graph: what in it can change.
        maps: linear maps that can be read, by name.
        recorded: a few samples at each map.
        activations: by map that is neither grouped nor transposed, rows of its inputs and outputs.
        config: how many candidates of what kind.
        min_gain: least decrease of the loss, in nats per sample, with which an insertion of so many parameters could
            be accepted; None if everything is to be scored.
        generator: source of randomness.
        gradients: reads the rows of a map and of those that read its units.
    """

    model: nn.Module
    graph: DependencyGraph
    maps: Mapping[str, LinearMap]
    recorded: RecordedSamples
    activations: Mapping[str, LayerActivations]
    config: CandidateConfig
    min_gain: Callable[[int], float] | None
    generator: torch.Generator
    gradients: Gradients

    def is_worthwhile(self, parameters: int) -> bool:
        """Return True if an insertion that removed the whole loss would be accepted."""
        return self.min_gain is None or self.min_gain(parameters) < self.recorded.loss


def sample_candidates(
    *,
    model: nn.Module,
    graph: DependencyGraph,
    maps: Mapping[str, LinearMap],
    inputs: Inputs,
    targets: Targets,
    fitted: FittedSamples,
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
        fitted: gives the samples at which an initializer may look for gradients.
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
    recorded = RecordedSamples(
        model=model,
        maps=maps,
        layouts=readings,
        inputs=inputs,
        targets=targets,
        metric=metric,
        output=output,
        whole=whole,
    )
    plain = [
        name for name in recorded.calls if maps[name].groups == 1 and not maps[name].transposed
    ]
    context = SamplingContext(
        model=model,
        graph=graph,
        maps=maps,
        recorded=recorded,
        activations={name: recorded.activations(name) for name in plain},
        config=config,
        min_gain=min_gain,
        generator=generator,
        gradients=gradient_reader(
            model, maps, samples=fitted, metric=metric, layouts=readings, output=output
        ),
    )
    # In this order: figures of a seed depend on it.
    sampled = _sample_groups(context) if "width" in moves else {}
    widen = {name: move for name, (move, _) in sampled.items()}
    outgoing = {name: wanted for name, (_, wanted) in sampled.items() if wanted}
    layers, repeats = {}, {}
    if "depth" in moves:
        layers, repeats = _sample_layers(context), _block_copies(context)
    streams = {}
    if "width" in moves:  # last: what is drawn for the others doesn't depend on it
        few = None if whole else pytree.head(inputs, SCALE_SAMPLES)
        streams = sample_stream_units(
            model,
            graph,
            maps,
            units=config.stream_units,
            generator=generator,
            inputs=few,
            output=output,
        )
    return CandidateSet(widen, layers, repeats, outgoing, streams)


def _sample_groups(context: SamplingContext) -> dict[str, tuple[Widen, dict[str, Tensor]]]:
    """Sample units for each channel group that a readable map reads, with the outgoing weights wanted for them."""
    return {
        group.name: sample_units(
            model=context.model,
            group=group,
            maps=context.maps,
            activations=context.activations,
            config=context.config,
            generator=context.generator,
            gradients=context.gradients,
            locations=_locations(context, group),
        )
        for group in context.graph.groups
        # Behind a norm that mixes units they are of another kind (`stream_units`).
        if not group.norms and any(dim.map in context.maps for dim in group.dims_of("consumer"))
    }


def _locations(context: SamplingContext, group: ChannelGroup) -> int:
    """Rows per sample of the readable maps that read a group, the most that one has."""
    readers = [dim.map for dim in group.dims_of("consumer") if dim.map in context.maps]
    return max(context.recorded.locations(name) for name in readers)


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
    if context.recorded.calls[point.module].x.dim() != 2:
        rational = True
        if point.activation == "PReLU":
            point = replace(point, activation="ReLU")
    if config.residual_units and context.is_worthwhile(2 * point.features + 1):  # of one unit
        layers.append(sample_residual_layer(point, x, config, generator))
    # each feature has columns of its own there, and their moments with very many outputs take gigabytes
    is_wide = len(get_linear(context.model, point.module).weight) > DENSE_OUTPUTS
    if not is_wide and context.is_worthwhile(point.features * (point.features + 1)):
        biased = context.maps[point.module].bias is not None
        for _ in range(_number_of_bases(context, point, rational=rational)):
            layers.append(
                sample_identity_layer(point, x, generator, biased=biased, rational=rational)
            )
    return layers


def _number_of_bases(context: SamplingContext, point: InsertionPoint, *, rational: bool) -> int:
    """Return how many bases of an identity insertion are scored before a linear map."""
    if context.config.identity_bases is not None:
        return context.config.identity_bases
    is_single = context.recorded.locations(point.module) == 1
    columns = IDENTITY_COLUMNS if is_single else IDENTITY_COLUMNS_BY_LOCATION
    return min(IDENTITY_BASES, columns // (point.features * (2 if rational else 1)))


def _sample_before_convolution(context: SamplingContext, point: InsertionPoint) -> list[Layer]:
    """Sample channels of a residual layer before a convolution."""
    call = context.recorded.calls[point.module]
    assert call.kernel is not None
    # 3 entries along each dimension, the cheapest that see neighbors; 1 where the convolution sees none
    size = 3 if min(call.kernel.size) > 1 else 1
    parameters = point.features * (size**point.spatial + 1) + 1  # of one channel: B, V and beta
    if not context.config.residual_units or not context.is_worthwhile(parameters):
        return []
    rows = context.recorded.input_patches(point.module, same_size_kernel(point.spatial, size))
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
            added = function_preserving_copy(context.model, block)
            if context.config.new_blocks == "shuffled":
                shuffle_weights(added, context.generator)
            found[block.module] = Append(block.module, added)
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
