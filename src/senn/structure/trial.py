"""The proof of a structure: a widened copy of the model must run, compute the same and have the same structure.

Labels follow tensors, not Python numbers. A forward pass that slices at a number, divides by a width or reshapes to
a constant looks fine until a space grows. So a copy is made in which every linear map is disturbed (fresh
networks often have outputs of zero, which would hide a mistake), each space gets one more unit that nothing reads
(zero columns), and the forward pass runs again.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from senn.errors import UnsupportedError
from senn.structure.spaces import Refusal, Slot, Space, Structure
from senn.structure.trace import Inputs, call, describe, untouched

Read = Callable[[nn.Module, Inputs], Structure]

# Largest change of an output, relative to the largest output, that rounding explains.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_COARSE = 5e-2


class _FailedError(Exception):
    """A widened copy doesn't bear a space out; the message says why."""


def tried(model: nn.Module, inputs: Inputs, structure: Structure, read: Read) -> Structure:
    """The structure with only those spaces that a widened copy bears out; the others are refused by name.

    Args:
        model: the model; it isn't changed.
        inputs: positional arguments of its forward.
        structure: what its labels say.
        read: the analysis without trial, to be run on the copy.
    """
    try:
        return replace(structure, spaces=_bear_out(model, inputs, structure.spaces, read))
    except _FailedError:
        pass
    accepted: tuple[Space, ...] = ()
    refused: list[Refusal] = []
    for space in structure.spaces:
        try:
            accepted = _bear_out(model, inputs, (*accepted, space), read)
        except _FailedError as reason:
            refused.append(Refusal(space.name, str(reason)))
    return replace(structure, spaces=accepted, refused=(*refused, *structure.refused))


def _bear_out(model: nn.Module, inputs: Inputs, spaces: tuple[Space, ...], read: Read) -> tuple[Space, ...]:
    """The spaces, with the layout of those of one unit cleared up; fails if a widened copy contradicts them."""
    if not spaces:
        return spaces
    try:
        trial = copy.deepcopy(model)
    except Exception as error:
        raise UnsupportedError(f"The model can't be copied: {describe(error)}.") from error
    generator = torch.Generator().manual_seed(0)
    for name in {slot.module for space in spaces for slot in space.slots if slot.name.endswith("weight")}:
        if isinstance(linear := trial.get_submodule(name), nn.Linear):
            linear.weight.data += _noise(linear.weight, generator)
    before = _outputs(trial, inputs)
    _widen(trial, spaces, generator)
    try:
        found = read(trial, inputs)
        after = _outputs(trial, inputs)
    except Exception as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise _FailedError(
            f"the forward pass fixes its size: with one more unit it fails ({describe(cause)})"
        ) from error
    clear = tuple(_same(space, found) for space in spaces)
    if clear != spaces:  # the new columns of a space of one unit went to the wrong places
        return _bear_out(model, inputs, clear, read)
    if not _close(before, after):
        raise _FailedError("the outputs depend on the number of its units")
    return spaces


def _noise(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Random entries of the size of a fresh linear map's."""
    draw = torch.randn(weight.shape, generator=generator) / math.sqrt(max(weight.shape[-1], 1))
    return draw.to(weight.device, weight.dtype)


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    with untouched(model, inputs):
        leaves = pytree.tree_leaves(call(model, inputs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _close(before: list[Tensor], after: list[Tensor]) -> bool:
    for old, new in zip(before, after, strict=True):
        if old.shape != new.shape:
            return False
        scale = float(old.abs().nan_to_num(0, 0, 0).max())
        tolerance = _TOLERANCE.get(old.dtype, _COARSE) * scale
        if not torch.allclose(old, new, rtol=0, atol=tolerance, equal_nan=True):
            return False
    return True


def _same(space: Space, found: Structure) -> Space:
    """The space as the widened copy shows it, at its own width."""

    def shape(slot: Slot) -> tuple[Any, ...]:
        return slot.role, slot.name, slot.dim, slot.index.shape[1], slot.runs if space.width > 1 else 1

    wide = next((other for other in found.spaces if other.name == space.name), None)
    if wide is None:
        reasons = {refusal.place: refusal.reason for refusal in found.refused}
        raise _FailedError(reasons.get(space.name, "its units are read differently once it is wider"))
    if wide.width != space.width + 1 or [*map(shape, wide.slots)] != [*map(shape, space.slots)]:
        raise _FailedError("its units are read differently once it is wider")
    if all(one.runs == two.runs for one, two in zip(space.slots, wide.slots, strict=True)):
        return space
    slots = zip(space.slots, wide.slots, strict=True)
    return replace(space, slots=tuple(replace(one, runs=two.runs) for one, two in slots))


def _widen(model: nn.Module, spaces: tuple[Space, ...], generator: torch.Generator) -> None:
    """Give each space one more unit after its last: random rows, carriers like the last unit's, zero columns."""
    places: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    for space in spaces:
        for slot in space.slots:
            last = slot.index[-1].view(slot.runs, -1)
            places[slot.module, slot.tensor, slot.dim] += last[:, -1:].expand_as(last).flatten().tolist()
        for attribute in space.attributes:
            owner = model.get_submodule(attribute.module)
            setattr(owner, attribute.name, getattr(owner, attribute.name) + attribute.per_unit)
    for (name, tensor, dim), after in sorted(places.items(), key=lambda item: item[0][2]):  # columns after rows
        module = model.get_submodule(name)
        old = getattr(module, tensor).detach()
        repeats = 1 + torch.bincount(torch.tensor(after), minlength=old.shape[dim])
        new = old.repeat_interleave(repeats.to(old.device), dim)
        if isinstance(module, nn.Linear) and tensor == "weight":
            is_new = torch.ones(new.shape[dim], dtype=torch.bool)
            is_new[repeats.cumsum(0) - repeats] = False
            positions = is_new.nonzero().flatten().to(old.device)
            fresh = _noise(new, generator).index_select(dim, positions)
            new.index_copy_(dim, positions, fresh if dim == 0 else torch.zeros_like(fresh))
        if tensor in module._parameters:
            module._parameters[tensor] = nn.Parameter(new, requires_grad=getattr(module, tensor).requires_grad)
        else:
            module._buffers[tensor] = new
