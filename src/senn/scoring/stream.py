"""Candidates that would be added to a residual stream: a layer before a convolution, a copy after a residual block.

What they compute is added to something that is there already, so their gain is that of a linear map onto it: its
columns are the new features, its outputs are the stream. For a layer before a convolution the stream is the
convolution's input, through that convolution only. For a function-preserving copy of a block, one
whose output parameters are zero, it is wherever these parameters put their outputs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from senn import pytree
from senn.candidates.candidate_set import CandidateSet
from senn.candidates.new_layers import ConvolutionalLayer
from senn.candidates.sampling import BATCH_NORMS
from senn.errors import SennError, explained, warn
from senn.graph import DependencyGraph, LinearMap, get_tensor
from senn.kfac.accumulate import count_locations, sampled_locations
from senn.kfac.batch_layout import BatchLayout
from senn.kfac.capture import layer_inputs, layout_of, per_layer_grads
from senn.kfac.folds import Fold, LocalSlice
from senn.kfac.layer_inputs import ConvInput, DenseInput, LayerInput
from senn.kfac.layer_statistics import BlockCall, LayerStatistics, LocationCount, RowChunk
from senn.kfac.live_locations import live_gradients, live_rows
from senn.kfac.recorder import LinearCall, record_linear_calls
from senn.kfac.whitening import whiten_weights
from senn.preserve import preserve_model_state
from senn.scoring.block_norms import flat_layout, norm_rows, record_norms
from senn.scoring.changes import Gains
from senn.scoring.column_layout import ColumnLayout
from senn.scoring.gains import LayerGains
from senn.scoring.joint_gains import JointGains
from senn.scoring.searched_gain import searched_gain
from senn.surgery import Append

STREAM_SAMPLES = 32
"""Samples of each fold of a batch that are read, at most: it takes passes of their own.

Twice as many double the time of these passes, which run each block once more; half as many make noisier gains.
"""

BLOCK_ROWS = 1024
"""Rows of each fold of a batch that a block is run on, of samples with many locations, such as texts."""

BLOCK_SAMPLES = 8
"""Samples that it is run on however many rows they have: rows of one sample are alike."""


JointCounts = Callable[
    [Mapping[Any, Sequence[LocationCount]], int], Mapping[Any, Sequence[LocationCount]]
]


@dataclass(frozen=True)
class StreamKey:
    """A candidate for a residual stream.

    Attributes:
        place: the convolution before which a layer, or the block after which a copy would stand; or the stream itself,
            which would get units (`stream_rows`).
        output: of a copy, the module whose output parameters are zero; of units, what writes them; empty for a layer.
        is_units: True for units.
    """

    place: str
    output: str = ""
    is_units: bool = False


def before_convolution(
    chunk: RowChunk, weight: Tensor, layer: ConvolutionalLayer
) -> tuple[RowChunk, ColumnLayout]:
    """Rows that a layer would add to a convolution's input.

    Args:
        chunk: the convolution's application to some samples.
        weight: its weight.
        layer: the layer, whose features are concatenated with the channels of x and the constant.

    Returns:
        the rows, one for each pixel of the input, and the layout of their columns.
    """
    read = chunk.layer_input
    assert isinstance(read, ConvInput)
    # the gradient at the input includes the padding, which no layer can change
    padding = zip(read.kernel.padding, read.x.shape[2:], strict=True)
    inside: tuple[slice, ...] = (slice(None), slice(None))
    inside += tuple(slice(low, size - high) for (low, high), size in padding)
    x = read.x[inside]
    with torch.no_grad():
        features = layer.features(x)
    # Channels and the constant come first: what they explain isn't the layer's gain.
    a = torch.cat([x, x.new_ones(len(x), 1, *x.shape[2:]), features], 1)
    output_grad = read.input_gradient(chunk.output_grad, weight)[inside]
    pseudo_grad = read.input_gradient(chunk.pseudo_grad, weight)[inside]
    channels = x.shape[1]
    units = torch.arange(layer.columns)[:, None]
    columns = ColumnLayout(
        existing=channels + 1, permutation=torch.arange(channels), inputs=channels, layers=[units]
    )
    rows = RowChunk(
        layer_input=DenseInput(a.flatten(2).mT, bias=False),
        output_grad=output_grad.flatten(2).mT,
        pseudo_grad=pseudo_grad.flatten(2).mT,
        live=None if chunk.live is None else read.live_pixels(chunk.live).flatten(1),
    )
    return rows, columns


def after_block(
    call: BlockCall,
    move: Append,
    output_params: tuple[str, ...],
    layouts: Mapping[str, BatchLayout],
) -> dict[str, RowChunk]:
    """Rows that a function-preserving copy would add after its block.

    Args:
        call: what the block was called with and returned, with the gradients there.
        move: the move with the copy.
        output_params: full names of the block's output parameters, which are zero in the copy.
        layouts: how the rows of the block's own maps belong to samples.

    Returns:
        by module that owns output parameters, the rows that it reads, a constant first.

    Raises:
        SennError: the copy can't run on these samples alone.
    """
    copied, count = move.copy, len(call.output_grad)
    local = sorted(name.removeprefix(f"{move.block}.") for name in output_params)
    modules = [
        name.removesuffix(".weight") for name in local if name.rpartition(".")[2] == "weight"
    ]
    # A BatchNorm's weight is zero instead of a map's where a block ends in one.
    norms = {name for name in modules if isinstance(copied.get_submodule(name), BATCH_NORMS)}
    # All others are linear maps, or the candidate wouldn't have been sampled.
    maps = [name for name in modules if name not in norms]
    with torch.enable_grad(), preserve_model_state(copied):
        with record_linear_calls(copied, maps) as calls, record_norms(copied, norms) as normed:
            # Such as one whose arguments have an entry for each sample and head: it can't run on some of the samples.
            with explained(
                f"no copy of the block '{move.block}' is scored: on some of a batch's samples it fails"
            ):
                result = copied(*call.args, **call.kwargs)
            output = pytree.tensor_leaves(result)[0]
        edges = {name: one.edge for name, (one,) in calls.items()}
        edges |= {name: edge for name, (_, edge) in normed.items()}
        ends = [edge for edge in edges.values() if edge is not None]
        # True gradients and pseudo-gradients go back through the copy from the stream.
        output_grads = torch.autograd.grad(output, ends, call.output_grad, retain_graph=True)
        pseudo_grads = torch.autograd.grad(output, ends, call.pseudo_grad, retain_graph=True)
        live: Sequence[Tensor | None] = [None] * len(ends)
        if call.live is not None:
            live = live_gradients(output, ends, call.live != 0)
    found = {}
    for name, output_grad, pseudo_grad, alive in zip(
        edges, output_grads, pseudo_grads, live, strict=True
    ):
        of_map = (output_grad, pseudo_grad, alive)
        if name in normed:
            rows = norm_rows(
                normed[name][0], flat_layout(move.block, layouts), *of_map, count=count
            )
        else:
            layout = layouts[f"{move.block}.{name}"]
            rows = _map_rows(name, calls[name][0], layout, *of_map, count=count)
        found[name] = rows
    return found


def _map_rows(
    name: str,
    call: LinearCall,
    layout: BatchLayout,
    output_grad: Tensor,
    pseudo_grad: Tensor,
    live: Tensor | None,
    *,
    count: int,
) -> RowChunk:
    """Rows of a linear map, a constant first, whether or not it has a bias."""
    row_layout = layout_of({name: layout}, name, 0)
    (read,) = layer_inputs(name, call, row_layout, count)
    inner: LayerInput
    if isinstance(read, ConvInput):
        inner = replace(read, bias=True, existing=0)
    else:
        ones = read.x.new_ones(*read.x.shape[:2], 1)
        inner = DenseInput(torch.cat([ones, read.x], 2), bias=False)

    def by_location(grad: Tensor) -> Tensor:
        return per_layer_grads(call, row_layout, grad, count)

    return RowChunk(
        layer_input=inner,
        output_grad=by_location(output_grad),
        pseudo_grad=by_location(pseudo_grad),
        live=None if live is None else live_rows(by_location(live)),
    )


def score_stream(
    *,
    model: nn.Module,
    graph: DependencyGraph,
    maps: Mapping[str, LinearMap],
    candidate_set: CandidateSet,
    found: LayerStatistics,
    own: LocalSlice,
    weights: Tensor | None,
    layouts: Mapping[str, BatchLayout],
    locations: int,
    joint_counts: JointCounts,
    generator: torch.Generator,
) -> dict[StreamKey, tuple[ColumnLayout, Fold]]:
    """Statistics of the candidates for streams, over the first of some samples.

    Args:
        model: the model as it is.
        graph: what in it can change.
        maps: the linear maps that are read, by name.
        candidate_set: the candidates.
        found: statistics of the samples at each linear map and block.
        own: this rank's samples of one fold.
        weights: weights of all samples of this rank, or None.
        layouts: how the rows of each map belong to samples.
        locations: the most live locations of a map that a sample has, on any rank.
        joint_counts: makes numbers of live locations over all ranks of those over so many samples of this one.
        generator: source of the locations that are read.

    Returns:
        by candidate, the layout of its columns and its statistics.
    """
    # The first samples of all ranks, so figures don't depend on how they are spread.
    own = own.first(STREAM_SAMPLES)
    rows: dict[StreamKey, tuple[RowChunk, ColumnLayout]] = {}
    for name, (layer, *_) in candidate_set.layers.items():
        if isinstance(layer, ConvolutionalLayer):
            (chunk,) = found.rows[name].chunks
            weight = get_tensor(model, maps[name].weight)
            rows[StreamKey(name)] = before_convolution(chunk.select(own.readable), weight, layer)
    folds = _folds(rows, own, weights, joint_counts, generator)
    rows = {}
    own = own.first(max(BLOCK_ROWS // locations, BLOCK_SAMPLES))
    for block, call in found.blocks.items():
        output_params = graph.block(block).output_params
        move = candidate_set.repeats[block]
        try:
            found_rows = after_block(call.select(own.readable), move, output_params, layouts)
        except SennError as error:
            warn(str(error))
            continue
        for name, chunk in found_rows.items():
            # A copy has no existing columns but the constant, which its bias reads.
            constant = ColumnLayout(existing=1, permutation=torch.arange(1), inputs=1)
            rows[StreamKey(block, name)] = chunk, constant
    return folds | _folds(rows, own, weights, joint_counts, generator)


def _folds(
    rows: Mapping[StreamKey, tuple[RowChunk, ColumnLayout]],
    own: LocalSlice,
    weights: Tensor | None,
    joint_counts: JointCounts,
    generator: torch.Generator,
) -> dict[StreamKey, tuple[ColumnLayout, Fold]]:
    """Statistics of rows of some samples, with the layout of their columns."""
    if not rows:
        return {}
    samples = own.samples.stop - own.samples.start
    counts = joint_counts(
        {key: count_locations([chunk]) for key, (chunk, _) in rows.items()}, samples
    )
    folds = {}
    for key, (chunk, columns) in rows.items():
        compact = [chunk.compact(counts[key][0].most)]
        places = sampled_locations(
            compact, chunk.layer_input.columns, own.count, generator, counts[key]
        )
        folds[key] = columns, own.accumulate(compact, places, weights, counts=counts[key])
    return folds


@dataclass(frozen=True, eq=False)
class StreamCandidates:
    """Gains of the candidates for streams.

    Attributes:
        layers: by convolution, the gains at its input, and the columns of the layer's units.
        repeats: by block and module with output parameters, a function that makes the gains of what a copy would add
            there. All of its columns are new, so these are large, and they are asked for once.
        outputs: by block, its modules with output parameters, whichever rank scores it.
        units: by stream, the gains of its units: joint ones of the transposed maps of all that writes it.
        writers: by stream, what writes it and is scored, on whichever rank.
    """

    layers: dict[str, tuple[LayerGains, list[Tensor]]] = field(default_factory=dict)
    repeats: dict[str, dict[str, Callable[[], LayerGains]]] = field(default_factory=dict)
    outputs: dict[str, list[str]] = field(default_factory=dict)
    units: dict[str, JointGains] = field(default_factory=dict)
    writers: dict[str, list[str]] = field(default_factory=dict)
    _known: dict[str, Gains] = field(default_factory=dict)

    @classmethod
    def from_folds(
        cls,
        columns: Mapping[StreamKey, ColumnLayout],
        fit: Mapping[StreamKey, Fold],
        held_out: Mapping[StreamKey, Fold],
    ) -> StreamCandidates:
        """Make the gains of all candidates.

        Args:
            columns: layout of each candidate's columns, for those that could be run on both folds.
            fit: statistics of the fold on which steps are fitted, for those that this rank scores.
            held_out: statistics of the fold on which they are valued.
        """
        found, rows = cls(), dict[str, dict[str, LayerGains]]()
        for key, layout in columns.items():
            if key.output:
                known = found.writers if key.is_units else found.outputs
                known.setdefault(key.place, []).append(key.output)
            if key not in fit:
                continue
            make = functools.partial(LayerGains, fit[key], held_out[key], layout.existing)
            if key.is_units:
                rows.setdefault(key.place, {})[key.output] = make()
            elif key.output:
                found.repeats.setdefault(key.place, {})[key.output] = make
            else:
                found.layers[key.place] = make(), layout.layers
        found.units.update({stream: JointGains(parts) for stream, parts in rows.items()})
        return found

    def gains(self, block: str, copy: nn.Module) -> Gains:
        """Gains of a function-preserving copy of a block, summed over its output parameters.

        Args:
            block: name of the block.
            copy: the copy.

        Returns:
            the gains, whose standard errors add as those of independent figures.
        """
        if block not in self._known:
            self._known[block] = self._sum(block, copy)
        return self._known[block]

    def _sum(self, block: str, copy: nn.Module) -> Gains:
        total, variance = Gains(), 0.0
        for name, make in self.repeats[block].items():
            layer_gains = make()
            columns = torch.arange(len(layer_gains.damping))
            if isinstance(copy.get_submodule(name), BATCH_NORMS):  # each output reads one column
                # each output is a parameter of its own, M = I
                each = torch.eye(len(layer_gains.whitener), dtype=torch.float64)
                own = layer_gains.diagonal(columns, whiten_weights(layer_gains.whitener, each))
            else:
                value, stderr = searched_gain(layer_gains)
                own = Gains(
                    gain=float(layer_gains.gain(columns[None])),
                    gain_lower_bound=float(layer_gains.gain_lower_bound(columns[None])),
                    held_out_gain=value,
                    held_out_stderr=stderr,
                )
            total += own
            # Output parameters of one block are fitted apart, so their errors are taken as independent.
            variance += own.held_out_stderr**2
        return replace(total, held_out_stderr=variance**0.5, cross_fold_gain=math.nan)
