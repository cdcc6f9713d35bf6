"""What would be added beside a stream: a layer before a convolution, a copy after a residual block.

What these would compute is added to something that is there already, so their gain is that of a linear map onto it: its
columns are the new features, its outputs are the stream. For a layer before a convolution the stream is the
convolution's input, through that convolution only; for a silent copy of a block, wherever its silent maps put their
outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from senn import pytree
from senn.candidates.candidate_set import CandidateSet
from senn.candidates.new_layers import ConvolutionalLayer
from senn.candidates.sampling import BATCH_NORMS
from senn.graph import DependencyGraph, LinearMap, get_tensor
from senn.kfac.accumulate import sampled_locations
from senn.kfac.batch_layout import BatchLayout
from senn.kfac.capture import BlockCall, LayerStatistics, RowChunk, layer_inputs, layout_of, per_layer_grads
from senn.kfac.folds import Fold, LocalSlice
from senn.kfac.layer_inputs import ConvInput, DenseInput, LayerInput, upcast
from senn.kfac.recorder import record_linear_calls
from senn.preserve import preserve_model_state
from senn.scoring.column_layout import ColumnLayout
from senn.scoring.gains import Gains, LayerGains
from senn.surgery import Append

FEW = 32
"""Samples of each fold of a batch that are read: it takes passes of their own."""


def before_convolution(part: RowChunk, weight: Tensor, layer: ConvolutionalLayer) -> tuple[RowChunk, ColumnLayout]:
    """What a layer would add to a convolution's input.

    Args:
        part: the convolution's application to some samples.
        weight: its weight.
        layer: the layer, whose features stand beside the channels of x and the constant.
    """
    read = part.layer_input
    assert isinstance(read, ConvInput)
    sides = zip(read.kernel.padding, read.x.shape[2:], strict=True)
    crop: tuple[slice, ...] = (slice(None), slice(None), *(slice(low, size - high) for (low, high), size in sides))
    x = read.x[crop]
    with torch.no_grad():
        features = layer.features(x)
    a = torch.cat([x, x.new_ones(len(x), 1, *x.shape[2:]), features], 1)
    dz, s = (read.input_gradient(g, weight)[crop] for g in (part.output_grad, part.pseudo_grad))
    units = torch.arange(layer.columns)[:, None]
    columns = ColumnLayout(x.shape[1] + 1, torch.arange(x.shape[1]), x.shape[1], layers=[units])
    return RowChunk(
        layer_input=DenseInput(a.flatten(2).mT, bias=False), output_grad=dz.flatten(2).mT, pseudo_grad=s.flatten(2).mT
    ), columns


def after_block(
    run: BlockCall, move: Append, silent: tuple[str, ...], readings: Mapping[str, BatchLayout]
) -> dict[str, RowChunk]:
    """What a silent copy would add after its block: by tensor, the columns that it reads after a constant.

    Args:
        run: what the block was called with and gave back, and what came back to that.
        move: the move with the copy.
        silent: full names of the silent tensors.
        readings: how the block's own maps are read.
    """
    local = {name.removeprefix(f"{move.block}.") for name in silent}
    weights = [name for name in sorted(local) if name.rpartition(".")[2] == "weight"]
    norms = {
        n.rpartition(".")[0] for n in weights if isinstance(move.copy.get_submodule(n.rpartition(".")[0]), BATCH_NORMS)
    }
    maps = [n.rpartition(".")[0] for n in weights if n.rpartition(".")[0] not in norms]
    count = len(run.output_grad)
    twin = move.copy
    with torch.enable_grad(), preserve_model_state(twin):
        with record_linear_calls(twin, maps) as seen, _norms(twin, norms) as normed:
            output = pytree.tensor_leaves(twin(*run.args, **run.kwargs))[0]
        applied = {name: one.edge for name, (one,) in seen.items()}
        applied |= {name: edge for name, (_, edge) in normed.items()}
        edges = [edge for edge in applied.values() if edge is not None]
        dz = torch.autograd.grad(output, edges, run.output_grad, retain_graph=True)
        s = torch.autograd.grad(output, edges, run.pseudo_grad)
    parts = {}
    for name, slope, signs in zip(applied, dz, s, strict=True):
        inner: LayerInput
        if name in normed:
            x = normed[name][0]
            ones = x.new_ones(len(x), 1, *x.shape[2:])
            inner = DenseInput(torch.cat([ones, x], 1).flatten(2).mT, bias=False)
            # (samples, features) too
            slope, signs = (upcast(g).reshape(count, g.shape[1], -1).mT for g in (slope, signs))
        else:
            (one,) = seen[name]
            layout = layout_of({name: readings[f"{move.block}.{name}"]}, name, 0)
            (inner,) = layer_inputs(name, one, layout, count)
            if isinstance(inner, ConvInput):
                inner = replace(inner, bias=True, existing=0)
            else:
                inner = DenseInput(torch.cat([inner.x.new_ones(*inner.x.shape[:2], 1), inner.x], 2), bias=False)
            slope, signs = (per_layer_grads(one, layout, g, count) for g in (slope, signs))
        parts[name] = RowChunk(layer_input=inner, output_grad=slope, pseudo_grad=signs)
    return parts


@contextmanager
def _norms(model: nn.Module, names: set[str]) -> Iterator[dict[str, tuple[Tensor, GradientEdge]]]:
    """What BatchNorms would give with a weight of one and no bias, and the place of what they give."""
    seen: dict[str, tuple[Tensor, GradientEdge]] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            x = upcast(args[0].detach())
            shape = (1, -1, *[1] * (x.dim() - 2))
            mean, variance = (buffer.to(x).view(shape) for buffer in (module.running_mean, module.running_var))
            seen[name] = (x - mean) / (variance + module.eps).sqrt(), get_gradient_edge(output)

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in sorted(names)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class StreamKey:
    """What could be added, and where.

    Attributes:
        place: the convolution before which a layer, or the block after which a copy would stand.
        silent: of a copy, the silent map.
    """

    place: str
    silent: str = ""


def score_stream(
    model: nn.Module,
    graph: DependencyGraph,
    maps: Mapping[str, LinearMap],
    draw: CandidateSet,
    seen: LayerStatistics,
    own: LocalSlice,
    weights: Tensor | None,
    readings: Mapping[str, BatchLayout],
    generator: torch.Generator,
) -> dict[StreamKey, tuple[ColumnLayout, Fold]]:
    """What the first of some samples say about layers before convolutions and copies of blocks.

    Args:
        model: the model as it is.
        graph: what in it can change.
        maps: its maps that are read, by name.
        draw: the candidates.
        seen: what passed through the model.
        own: those of one fold.
        weights: of all samples, or None.
        readings: how maps are read.
        generator: source of the locations that are read.
    """
    own = own.first(FEW)
    some = own.readable
    found: dict[StreamKey, tuple[RowChunk, ColumnLayout]] = {}
    for name, (layer, *_) in draw.layers.items():
        if isinstance(layer, ConvolutionalLayer):
            (part,) = seen.rows[name].chunks
            weight = get_tensor(model, maps[name].weight)
            found[StreamKey(name)] = before_convolution(part.select(some), weight, layer)
    for block, run in seen.blocks.items():
        silent = graph.block(block).output_params
        for name, part in after_block(run.select(some), draw.repeats[block], silent, readings).items():
            found[StreamKey(block, name)] = part, ColumnLayout(1, torch.arange(1), 1)
    folds = {}
    for label, (part, columns) in found.items():
        places = sampled_locations([part], part.layer_input.columns, own.count, generator)
        folds[label] = columns, own.accumulate([part], places, weights)
    return folds


@dataclass(eq=False)
class StreamCandidates:
    """Accounts of what could be added beside streams.

    Attributes:
        layers: by convolution, the account of its input, and where the layer's units are.
        repeats: by block and silent map, the account of what it would add.
    """

    layers: dict[str, tuple[LayerGains, list[Tensor]]] = field(default_factory=dict)
    repeats: dict[str, dict[str, LayerGains]] = field(default_factory=dict)

    @classmethod
    def from_folds(
        cls, columns: Mapping[StreamKey, ColumnLayout], fit: Mapping[StreamKey, Fold], held: Mapping[StreamKey, Fold]
    ) -> StreamCandidates:
        """From two folds of samples."""
        found = cls()
        for label, own in columns.items():
            layer_gains = LayerGains(fit[label], held[label], own.existing)
            if label.silent:
                found.repeats.setdefault(label.place, {})[label.silent] = layer_gains
            else:
                found.layers[label.place] = layer_gains, own.layers
        return found

    def gains(self, block: str, copy: nn.Module) -> Gains:
        """Gains of a silent copy: of all its silent maps, whose standard errors add as of independent figures."""
        total, variance = Gains(), 0.0
        for name, layer_gains in self.repeats[block].items():
            columns = torch.arange(len(layer_gains.damping))
            if isinstance(copy.get_submodule(name), BATCH_NORMS):
                own = layer_gains.diagonal(columns, layer_gains.whitener.mT)
            else:
                value, error = layer_gains.held_out_gain(columns[None])
                own = Gains(
                    gain=float(layer_gains.gain(columns[None])),
                    gain_lower_bound=float(layer_gains.gain_lower_bound(columns[None])),
                    held_out_gain=float(value),
                    held_out_stderr=float(error),
                )
            total += own
            variance += own.held_out_stderr**2
        return replace(total, held_out_stderr=variance**0.5, cross_fold_gain=math.nan)
