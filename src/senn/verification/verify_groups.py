"""Proof of channel groups: a widened copy of the model must run, compute the same, and show the same groups.

Labels follow tensors, and symbolic integers the forward's own Python code. What neither sees (a constant, a float
computed from a size, code of a compiled extension) looks fine until a group grows. So a copy is made in which every
parameter is perturbed (fresh networks often have outputs of zero, which would hide a mistake), surgery itself gives
each group one more unit that nothing reads (zero columns), and every forward pass runs again, those of training
backwards as well.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from senn.errors import SennError, in_one_line
from senn.graph.forward_passes import ForwardPass, failure
from senn.graph.model_copy import copy_model
from senn.graph.named_tensors import get_tensor
from senn.graph.trace_graph import trace_graph
from senn.graph.types import ChannelGroup, CoupledDim, DependencyGraph, Refusal
from senn.surgery import Widen, apply_moves
from senn.surgery.trials import TrialRun, is_close

Groups = tuple[ChannelGroup, ...]


class _FailedError(Exception):
    """A widened copy contradicts a group; the message says why."""


def verify_groups(
    model: nn.Module,
    passes: Sequence[ForwardPass],
    graph: DependencyGraph,
    ignored: Collection[str] = (),
) -> DependencyGraph:
    """Keep only the channel groups that a widened copy confirms; refuse the others by name.

    Args:
        model: isn't changed.
        passes: how it is run.
        graph: as its traced forward passes show it.
        ignored: names of modules whose linear maps must keep their shapes.

    Returns:
        The graph with fewer groups and more refusals.

    Raises:
        UnsupportedError: the model can't be copied.
    """
    accepted, refused = _bisect(model, passes, (), graph.groups, ignored)
    order = {group.name: number for number, group in enumerate(graph.groups)}
    accepted = tuple(sorted(accepted, key=lambda group: order[group.name]))
    graph = replace(graph, groups=accepted, refusals=(*refused, *graph.refusals))
    return _with_single_heads(model, passes, graph, ignored)


def _with_single_heads(
    model: nn.Module,
    passes: Sequence[ForwardPass],
    graph: DependencyGraph,
    ignored: Collection[str],
) -> DependencyGraph:
    """Return the graph with the groups of attention with a single head that a copy with two confirms."""
    groups, known = graph.groups, tuple[str, ...]()
    refusals = {refusal.place: refusal for refusal in graph.refusals}
    for guesses in graph.guesses:
        own = {(coupled.name, coupled.dim) for coupled in guesses[0].dims}
        # Features of the values may be a group; with two heads their number is that of the queries.
        others = tuple(one for one in groups if own.isdisjoint(map(_place, one.dims)))
        # All layers of a model are mostly alike: what was right for one is tried first for the next.
        for guess in sorted(guesses, key=lambda one: _names(one) != known):
            with suppress(_FailedError):
                groups = _confirm(model, passes, (*others, guess), ignored, explains=False)
                known = _names(guess)
                for coupled in guess.dims:
                    refusals.pop(coupled.map, None)
                break
    return replace(graph, groups=groups, refusals=tuple(refusals.values()), guesses=())


def _place(coupled: CoupledDim) -> tuple[str, int]:
    return coupled.name, coupled.dim


def _names(group: ChannelGroup) -> tuple[str, ...]:
    return tuple(attribute.name for attribute in group.attributes)


def _bisect(
    model: nn.Module,
    passes: Sequence[ForwardPass],
    accepted: Groups,
    groups: Groups,
    ignored: Collection[str],
) -> tuple[Groups, list[Refusal]]:
    """Return the accepted groups and those of some others that hold next to them, and refusals of the rest."""
    # By halves: one copy confirms all groups of most models, and a bad one among n costs about 2 log2(n) copies more.
    is_single = len(groups) == 1
    try:
        return _confirm(model, passes, (*accepted, *groups), ignored, explains=is_single), []
    except _FailedError as reason:
        if is_single:
            for variant in _variants(groups[0]):
                tried = (*accepted, variant)
                with suppress(_FailedError):
                    return _confirm(model, passes, tried, ignored, explains=False), []
            return accepted, _refusals(groups[0], str(reason))
    half = len(groups) // 2
    accepted, first = _bisect(model, passes, accepted, groups[:half], ignored)
    accepted, second = _bisect(model, passes, accepted, groups[half:], ignored)
    return accepted, first + second


def _variants(group: ChannelGroup) -> list[ChannelGroup]:
    """Return what a group may be instead, where one forward pass can't tell: whose numbers its norms compute with.

    A number that equals an attribute (eps) or a power of the number of units may come from there, or stand in the code.
    """
    fixed = tuple(
        replace(norm, fixed_eps=norm.eps is not None and bool(norm.power)) for norm in group.norms
    )
    others = tuple(
        norm if norm.other_power is None else replace(norm, power=norm.other_power)
        for norm in group.norms
    )
    tried = [group.norms]
    for norms in (fixed, others):
        if norms not in tried:
            tried.append(norms)
    return [replace(group, norms=norms) for norms in tried[1:]]


def _refusals(group: ChannelGroup, reason: str) -> list[Refusal]:
    """Refuse a group, and the maps that change size along with its stream (heads)."""
    refusals = [Refusal(place=group.name, reason=reason)]
    if not group.norms:
        return refusals
    along = f"its size follows that of {group.name}, which can't change"
    weights = [
        one for one in group.dims_of("producer") if not one.behind_norm and "bias" not in one.tensor
    ]
    maps = dict.fromkeys(coupled.map for coupled in weights)
    return refusals + [Refusal(place=name, reason=along) for name in maps]


def _confirm(
    model: nn.Module,
    passes: Sequence[ForwardPass],
    groups: Groups,
    ignored: Collection[str],
    *,
    explains: bool,
) -> Groups:
    """Return groups with the layout of single units resolved; raise if a widened copy contradicts them.

    With `explains` the error says why the last of them is wrong; without, its outputs alone may have told.
    """
    if not groups:
        return groups
    trial = copy_model(model)
    # A generator of its own: an analysis must not shift the random numbers of whatever comes after it.
    generator = torch.Generator().manual_seed(0)
    perturb_parameters(
        trial, {coupled.name for group in groups for coupled in group.dims}, generator
    )
    before = [TrialRun.of(trial, one) for one in passes]
    _add_unit(trial, groups, generator)
    # Outputs cost a fraction of a trace. Those of a group of one unit may differ by its layout, which the trace tells.
    outputs_first = not explains and all(group.width > 1 for group in groups)
    try:
        differs = outputs_first and _differs(trial, before)
        if differs:
            raise _FailedError("the outputs differ")
        found = trace_graph(trial, passes, ignored)
        differs = not outputs_first and _differs(trial, before)
    except _FailedError:
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise _FailedError(
            f"the forward pass fixes its size: with one more unit it fails ({failure(cause)})"
        ) from error
    resolved = tuple(_resolved(group, found) for group in groups)
    if resolved != groups:
        # The new columns of a group of one unit went to the wrong places: try again, with what is known now.
        return _confirm(model, passes, resolved, ignored, explains=explains)
    if differs:
        raise _FailedError(_difference(groups[-1]))  # the last one is tried
    return groups


def _differs(trial: nn.Module, before: Sequence[TrialRun]) -> bool:
    """Run a changed copy in all ways, and return whether its outputs are others than before."""
    after = [old.again(trial) for old in before]
    return not all(is_close(trial, old, new) for old, new in zip(before, after, strict=True))


def _add_unit(trial: nn.Module, groups: Groups, generator: torch.Generator) -> None:
    """Give each group one more unit, by surgery: random rows, vectors like those of its last unit."""
    moves = []
    for group in groups:
        values = {}
        for coupled in group.dims_of("producer"):
            if coupled.behind_norm:
                continue  # takes no values: what enters a norm follows from the norm
            tensor = get_tensor(trial, coupled.name).detach()
            last = tensor.index_select(coupled.dim, coupled.index[-1].to(tensor.device))
            noise = torch.randn(last.shape, generator=generator) * _fan_in_scale(tensor)
            # Vectors (biases, bare parameters) may have a range that noise would leave.
            values[coupled.name] = noise.to(last) if last.dim() > 1 else last
        moves.append(Widen(group.name, 1, values))
    graph = DependencyGraph(linear_maps=(), groups=groups, insertion_points=())
    try:
        apply_moves(trial, moves, graph)
    except Exception as error:
        reason = str(error) if isinstance(error, SennError) else in_one_line(error)
        raise _FailedError(f"surgery can't widen it: {reason}") from error


def perturb_parameters(model: nn.Module, names: Iterable[str], generator: torch.Generator) -> None:
    """Add noise to parameters of a copy: what holds for the ones and zeros of a fresh model may not hold later.

    Args:
        model: the copy, changed in place.
        names: full names of parameters and buffers; buffers, and parameters of integers, stay.
        generator: source of the noise, of standard deviation 1 / sqrt(fan-in) for weights and 0.1 for vectors.
    """
    for name in sorted(names):
        tensor = get_tensor(model, name)
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
            scale = 0.1 if tensor.dim() < 2 else _fan_in_scale(tensor)
            noise = scale * torch.randn(tensor.shape, generator=generator)
            tensor.data += noise.to(tensor)


def _fan_in_scale(weight: Tensor) -> float:
    # Standard deviation of a fresh linear layer's entries, up to a constant: activations keep their size.
    return 1 / math.sqrt(max(weight[0].numel(), 1))


def _difference(group: ChannelGroup) -> str:
    """Explain a difference of the outputs of a copy in which a group is wider."""
    if not group.norms:
        return "the outputs depend on the number of its units"
    norm = next((norm for norm in group.norms if norm.obstacle is not None), group.norms[0])
    name = norm.module or "the model's own forward"
    start = f"{name} normalizes over its units, and what enters there can't be kept as it was"
    if norm.obstacle is not None and norm.kind == "layer":
        others = [other.module for other in group.norms if other.module]
        if any(norm.obstacle.startswith(f"{other} (") for other in others):
            return f"{start}: it has gone through another norm, {norm.obstacle}; only twice as many units would do"
        return f"{start}: {norm.obstacle} comes before, so the mean over the units depends on each of them"
    if any(norm.fixed_eps for norm in group.norms):
        return f"{start}: the small number in its root (eps) stands in the code, and not in an attribute"
    made = {coupled.name for coupled in group.dims_of("producer")}
    for norm in group.norms:
        both = [tensor for tensor, _ in norm.scaled if tensor in made]
        if both:
            return (
                f"{norm.module or name} normalizes over its units and has no weight to make up for it: {both[0]}, "
                "which reads them there, makes them as well"
            )
    return start


def _resolved(group: ChannelGroup, found: DependencyGraph) -> ChannelGroup:
    """Return a group as the widened copy shows it, at its own width; raise if it shows another one."""
    wide = next((other for other in found.groups if other.name == group.name), None)
    if wide is None:
        reasons = {refusal.place: refusal.reason for refusal in found.refusals}
        raise _FailedError(
            reasons.get(group.name, "its units are read differently once it is wider")
        )
    # The positions of a single unit look the same in any number of segments: only the wider copy tells.
    segments = group.width > 1
    shapes = [_shape(coupled, segments) for coupled in group.dims]
    wide_shapes = [_shape(coupled, segments) for coupled in wide.dims]
    if wide.width != group.width + 1 or wide_shapes != shapes:
        raise _FailedError("its units are read differently once it is wider")
    pairs = [*zip(group.dims, wide.dims, strict=True)]
    if all(old.n_segments == new.n_segments for old, new in pairs):
        return group  # the same object: `_confirm` sees by it that nothing is to be tried again
    return replace(group, dims=tuple(replace(old, n_segments=new.n_segments) for old, new in pairs))


def _shape(coupled: CoupledDim, segments: bool) -> tuple[Any, ...]:
    """Return what must be the same in a wider copy; the number of segments too, if asked for."""
    k = coupled.index.shape[1]
    return coupled.role, coupled.name, coupled.dim, k, coupled.n_segments if segments else None
