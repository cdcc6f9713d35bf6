"""The proof of a structure: a widened copy of the model must run, compute the same and have the same structure.

Labels follow tensors, numbers follow the forward's own Python code. What neither sees (a constant, a float computed
from a size, code of a compiled extension) looks fine until a space grows. So a copy is made in which every parameter is
disturbed (fresh networks often have outputs of zero, which would hide a mistake), each space gets one more unit that
nothing reads (zero columns), and the forward pass runs again.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from senn import pytree
from senn.errors import SennError, UnsupportedError, in_one_line
from senn.graph.trace_graph import trace_graph
from senn.graph.types import ChannelGroup, CoupledDim, DependencyGraph, Refusal, get_tensor
from senn.preserve import preserve_model_state
from senn.pytree import Inputs
from senn.surgery import Widen, apply_moves

# Largest change of an output, relative to the largest output, that rounding explains.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_COARSE = 5e-2


class _FailedError(Exception):
    """A widened copy doesn't bear a space out; the message says why."""


def verify_groups(
    model: nn.Module, inputs: Inputs, graph: DependencyGraph, ignored: Collection[str] = ()
) -> DependencyGraph:
    """The structure with only those spaces that a widened copy bears out; the others are refused by name.

    Args:
        model: the model; it isn't changed.
        inputs: of its forward.
        graph: what its labels and numbers say.
        ignored: names of modules whose linear maps must keep their shapes.
    """
    accepted, refused = _parted(model, inputs, (), graph.groups, ignored)
    order = {group.name: place for place, group in enumerate(graph.groups)}
    groups = tuple(sorted(accepted, key=lambda group: order[group.name]))
    return replace(graph, groups=groups, refusals=(*refused, *graph.refusals))


def _parted(
    model: nn.Module,
    inputs: Inputs,
    accepted: tuple[ChannelGroup, ...],
    groups: tuple[ChannelGroup, ...],
    ignored: Collection[str],
) -> tuple[tuple[ChannelGroup, ...], list[Refusal]]:
    """The accepted spaces with those of some others that hold beside them, and refusals of the rest: by halves."""
    try:
        return _confirm(model, inputs, (*accepted, *groups), ignored), []
    except _FailedError as reason:
        if len(groups) == 1:
            return accepted, _refusals(groups[0], str(reason))
    half = len(groups) // 2
    accepted, first = _parted(model, inputs, accepted, groups[:half], ignored)
    accepted, second = _parted(model, inputs, accepted, groups[half:], ignored)
    return accepted, first + second


def _refusals(group: ChannelGroup, reason: str) -> list[Refusal]:
    """Of a space, and of the maps beside its stream that change size with it (heads)."""
    along = f"its size follows that of {group.name}, which can't change"
    beside = [
        coupled.map
        for coupled in group.dims_of("producer")
        if group.norms and not coupled.behind_norm and "bias" not in coupled.tensor
    ]
    return [
        Refusal(place=group.name, reason=reason),
        *(Refusal(place=name, reason=along) for name in dict.fromkeys(beside)),
    ]


def _confirm(
    model: nn.Module, inputs: Inputs, groups: tuple[ChannelGroup, ...], ignored: Collection[str]
) -> tuple[ChannelGroup, ...]:
    """The spaces, with the layout of those of one unit cleared up; fails if a widened copy contradicts them."""
    if not groups:
        return groups
    try:
        trial = copy.deepcopy(model)
    except Exception as error:
        raise UnsupportedError(f"The model can't be copied: {in_one_line(error)}.") from error
    generator = torch.Generator().manual_seed(0)
    perturb_parameters(trial, {coupled.name for group in groups for coupled in group.dims}, generator)
    before = _outputs(trial, inputs)
    moves, graph = (
        _one_more_unit(trial, groups, generator),
        DependencyGraph(linear_maps=(), groups=groups, insertion_points=()),
    )
    try:
        apply_moves(trial, moves, graph)
    except Exception as error:
        reason = str(error) if isinstance(error, SennError) else in_one_line(error)
        raise _FailedError(f"surgery can't widen it: {reason}") from error
    try:
        found = trace_graph(trial, inputs, ignored)
        after = _outputs(trial, inputs)
    except Exception as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise _FailedError(
            f"the forward pass fixes its size: with one more unit it fails ({in_one_line(cause)})"
        ) from error
    clear = tuple(_same(group, found) for group in groups)
    if clear != groups:  # the new columns of a space of one unit went to the wrong places
        return _confirm(model, inputs, clear, ignored)
    if not is_close(before, after):
        normed = next((group for group in groups if group.norms), None)
        if normed is not None:
            names = ", ".join(norm.module for norm in normed.norms)
            raise _FailedError(f"{names} normalises over its units, and what enters there can't be kept as it was")
        raise _FailedError("the outputs depend on the number of its units")
    return groups


def perturb_parameters(model: nn.Module, names: Iterable[str], generator: torch.Generator) -> None:
    """Add noise to the parameters among these tensors.

    What holds for the ones and zeros of a fresh model may not hold later.

    Args:
        model: a copy, which is spoiled.
        names: full names of parameters and buffers; buffers and integers stay.
        generator: source of the noise: of weights as large as a fresh linear map's, of vectors 0.1.
    """
    for name in sorted(names):
        tensor = get_tensor(model, name)
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
            scale = 0.1 if tensor.dim() < 2 else 1 / math.sqrt(max(tensor[0].numel(), 1))
            tensor.data += scale * torch.randn(tensor.shape, generator=generator).to(tensor)


def _one_more_unit(model: nn.Module, groups: Sequence[ChannelGroup], generator: torch.Generator) -> list[Widen]:
    """Moves that give each space one more unit: random rows, vectors like those of its last unit."""
    moves = []
    for group in groups:
        values = {}
        for coupled in group.dims_of("producer"):
            if not coupled.behind_norm:
                tensor = get_tensor(model, coupled.name).detach()
                last = tensor.index_select(coupled.dim, coupled.index[-1].to(tensor.device))
                noise = torch.randn(last.shape, generator=generator) / math.sqrt(max(tensor[0].numel(), 1))
                values[coupled.name] = noise.to(last) if last.dim() > 1 else last
        moves.append(Widen(group.name, 1, values))
    return moves


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad(), preserve_model_state(model, fused=False):
        found = pytree.tensor_leaves(pytree.call(model, pytree.clone(inputs)))
    return [tensor for tensor in found if tensor.is_floating_point()]


def is_close(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    """Whether outputs are the same up to rounding."""
    if len(before) != len(after):
        return False
    for old, new in zip(before, after, strict=True):
        if old.shape != new.shape:
            return False
        scale = float(old.abs().nan_to_num(0, 0, 0).max()) if old.numel() else 0.0
        tolerance = _TOLERANCE.get(old.dtype, _COARSE) * scale
        if not torch.allclose(old, new, rtol=0, atol=tolerance, equal_nan=True):
            return False
    return True


def _same(group: ChannelGroup, found: DependencyGraph) -> ChannelGroup:
    """The space as the widened copy shows it, at its own width."""

    def shape(coupled: CoupledDim) -> tuple[Any, ...]:
        return (
            coupled.role,
            coupled.name,
            coupled.dim,
            coupled.index.shape[1],
            coupled.n_segments if group.width > 1 else 1,
        )

    wide = next((other for other in found.groups if other.name == group.name), None)
    if wide is None:
        reasons = {refusal.place: refusal.reason for refusal in found.refusals}
        raise _FailedError(reasons.get(group.name, "its units are read differently once it is wider"))
    if wide.width != group.width + 1 or [*map(shape, wide.dims)] != [*map(shape, group.dims)]:
        raise _FailedError("its units are read differently once it is wider")
    if all(one.n_segments == two.n_segments for one, two in zip(group.dims, wide.dims, strict=True)):
        return group
    coupled_dims = zip(group.dims, wide.dims, strict=True)
    return replace(group, dims=tuple(replace(one, n_segments=two.n_segments) for one, two in coupled_dims))
