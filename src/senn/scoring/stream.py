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

from senn import batch
from senn.candidates.candidate_set import Draw
from senn.candidates.new_layers import ConvolutionalLayer
from senn.candidates.sampling import BATCH_NORMS
from senn.curvature.capture import BlockRun, Capture, RowChunk, back_of, layout_of, reads_of
from senn.curvature.folds import Fold, Own
from senn.curvature.gather import places_of
from senn.curvature.patches import ConvInput, DenseInput, Read, full
from senn.curvature.reading import Reading, reading
from senn.preserve import preserve_model_state
from senn.scoring.column_layout import Columns
from senn.scoring.gains import Gains, Ledger
from senn.structure import LinearMap, Structure, tensor_of
from senn.surgery import Append

FEW = 32
"""Samples of each fold of a batch that are read: it takes passes of their own."""


def before_convolution(part: RowChunk, weight: Tensor, layer: ConvolutionalLayer) -> tuple[RowChunk, Columns]:
    """What a layer would add to a convolution's input.

    Args:
        part: the convolution's application to some samples.
        weight: its weight.
        layer: the layer, whose features stand beside the channels of x and the constant.
    """
    read = part.read
    assert isinstance(read, ConvInput)
    sides = zip(read.kernel.padding, read.x.shape[2:], strict=True)
    crop: tuple[slice, ...] = (slice(None), slice(None), *(slice(low, size - high) for (low, high), size in sides))
    x = read.x[crop]
    with torch.no_grad():
        features = layer.features(x)
    a = torch.cat([x, x.new_ones(len(x), 1, *x.shape[2:]), features], 1)
    dz, s = (read.input_gradient(g, weight)[crop] for g in (part.dz, part.s))
    units = torch.arange(layer.columns)[:, None]
    columns = Columns(x.shape[1] + 1, torch.arange(x.shape[1]), x.shape[1], layers=[units])
    return RowChunk(read=DenseInput(a.flatten(2).mT, bias=False), dz=dz.flatten(2).mT, s=s.flatten(2).mT), columns


def after_block(
    run: BlockRun, move: Append, silent: tuple[str, ...], readings: Mapping[str, Reading]
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
    count = len(run.dz)
    twin = move.copy
    with torch.enable_grad(), preserve_model_state(twin):
        with reading(twin, maps) as seen, _norms(twin, norms) as normed:
            output = batch.tensors(twin(*run.args, **run.kwargs))[0]
        applied = {name: one.edge for name, (one,) in seen.items()}
        applied |= {name: edge for name, (_, edge) in normed.items()}
        edges = [edge for edge in applied.values() if edge is not None]
        dz = torch.autograd.grad(output, edges, run.dz, retain_graph=True)
        s = torch.autograd.grad(output, edges, run.s)
    parts = {}
    for name, slope, signs in zip(applied, dz, s, strict=True):
        inner: Read
        if name in normed:
            x = normed[name][0]
            ones = x.new_ones(len(x), 1, *x.shape[2:])
            inner = DenseInput(torch.cat([ones, x], 1).flatten(2).mT, bias=False)
            # (samples, features) too
            slope, signs = (full(g).reshape(count, g.shape[1], -1).mT for g in (slope, signs))
        else:
            (one,) = seen[name]
            layout = layout_of({name: readings[f"{move.block}.{name}"]}, name, 0)
            (inner,) = reads_of(name, one, layout, count)
            if isinstance(inner, ConvInput):
                inner = replace(inner, bias=True, existing=0)
            else:
                inner = DenseInput(torch.cat([inner.x.new_ones(*inner.x.shape[:2], 1), inner.x], 2), bias=False)
            slope, signs = (back_of(one, layout, g, count) for g in (slope, signs))
        parts[name] = RowChunk(read=inner, dz=slope, s=signs)
    return parts


@contextmanager
def _norms(model: nn.Module, names: set[str]) -> Iterator[dict[str, tuple[Tensor, GradientEdge]]]:
    """What BatchNorms would give with a weight of one and no bias, and the place of what they give."""
    seen: dict[str, tuple[Tensor, GradientEdge]] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            x = full(args[0].detach())
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
class Label:
    """What could be added, and where.

    Attributes:
        place: the convolution before which a layer, or the block after which a copy would stand.
        silent: of a copy, the silent map.
    """

    place: str
    silent: str = ""


def look_beside(
    model: nn.Module,
    structure: Structure,
    maps: Mapping[str, LinearMap],
    draw: Draw,
    seen: Capture,
    own: Own,
    weights: Tensor | None,
    readings: Mapping[str, Reading],
    generator: torch.Generator,
) -> dict[Label, tuple[Columns, Fold]]:
    """What the first of some samples say about layers before convolutions and copies of blocks.

    Args:
        model: the model as it is.
        structure: what in it can change.
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
    found: dict[Label, tuple[RowChunk, Columns]] = {}
    for name, (layer, *_) in draw.layers.items():
        if isinstance(layer, ConvolutionalLayer):
            (part,) = seen.rows[name].parts
            weight = tensor_of(model, maps[name].weight)
            found[Label(name)] = before_convolution(part.some(some), weight, layer)
    for block, run in seen.blocks.items():
        silent = structure.block(block).silent
        for name, part in after_block(run.some(some), draw.repeats[block], silent, readings).items():
            found[Label(block, name)] = part, Columns(1, torch.arange(1), 1)
    folds = {}
    for label, (part, columns) in found.items():
        places = places_of([part], part.read.columns, own.count, generator)
        folds[label] = columns, own.fold([part], places, weights)
    return folds


@dataclass(eq=False)
class Beside:
    """Accounts of what could be added beside streams.

    Attributes:
        layers: by convolution, the account of its input, and where the layer's units are.
        repeats: by block and silent map, the account of what it would add.
    """

    layers: dict[str, tuple[Ledger, list[Tensor]]] = field(default_factory=dict)
    repeats: dict[str, dict[str, Ledger]] = field(default_factory=dict)

    @classmethod
    def of(cls, columns: Mapping[Label, Columns], fit: Mapping[Label, Fold], held: Mapping[Label, Fold]) -> Beside:
        """From two folds of samples."""
        found = cls()
        for label, own in columns.items():
            ledger = Ledger(fit[label], held[label], own.existing)
            if label.silent:
                found.repeats.setdefault(label.place, {})[label.silent] = ledger
            else:
                found.layers[label.place] = ledger, own.layers
        return found

    def worth(self, block: str, copy: nn.Module) -> Gains:
        """Gains of a silent copy: of all its silent maps, whose standard errors add as of independent figures."""
        total, variance = Gains(), 0.0
        for name, ledger in self.repeats[block].items():
            columns = torch.arange(len(ledger.level))
            if isinstance(copy.get_submodule(name), BATCH_NORMS):
                own = ledger.diagonal(columns, ledger.whitener.mT)
            else:
                value, error = ledger.heldout(columns[None])
                own = Gains(
                    gain=float(ledger.gain(columns[None])),
                    gain_lower_bound=float(ledger.bound(columns[None])),
                    held_out_gain=float(value),
                    held_out_stderr=float(error),
                )
            total += own
            variance += own.held_out_stderr**2
        return replace(total, held_out_stderr=variance**0.5, cross_fold_gain=math.nan)
