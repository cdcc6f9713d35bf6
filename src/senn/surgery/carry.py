"""Carries moves out on one copy of a model: new tensors take the place of old ones, nothing is written to."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from senn.curvature.capture import Inputs
from senn.errors import SennError, UnsupportedError
from senn.structure.spaces import Structure
from senn.surgery.layout import Layout, corner, place
from senn.surgery.moves import Insert, Move
from senn.surgery.plan import Plan, find_tensor, join, plan
from senn.surgery.verify import calibrate

# What a new channel of a normalisation starts with; other carriers take the mean of the units there are.
_NEUTRAL_NORM = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}


@dataclass(frozen=True, eq=False)
class Resized:
    """The Parameter that took another's place, and where the entries went."""

    new: nn.Parameter
    layouts: Mapping[int, Layout]


@dataclass(frozen=True, eq=False)
class Inserted:
    """A layer that was put before a linear map."""

    site: str
    modules: tuple[nn.Module, ...]
    linear: nn.Linear

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The layer's parameters in order, each once."""
        return list(dict.fromkeys(p for module in self.modules for p in module.parameters()))


@dataclass(eq=False)
class Journal:
    """What was done to one copy of a model, and how to take it back.

    Attributes:
        swaps: (container, key, old, new) for every entry of a module's dictionaries that was exchanged.
        resized: by old Parameter.
        inserted: in the order of the moves.
        uncalibrated: normalisations with new channels whose running statistics are still neutral, and where.
    """

    swaps: list[tuple[MutableMapping[str, Any], str, Any, Any]] = field(default_factory=list)
    resized: dict[nn.Parameter, Resized] = field(default_factory=dict)
    inserted: list[Inserted] = field(default_factory=list)
    uncalibrated: list[tuple[nn.Module, Tensor]] = field(default_factory=list)

    def commit(self) -> None:
        """Put every new object in its place."""
        for container, key, _, new in self.swaps:
            container[key] = new

    def undo(self) -> None:
        """Put every old object back in its place."""
        for container, key, old, _ in reversed(self.swaps):
            container[key] = old

    def in_place(self) -> bool:
        """Whether every new object still stands where it was put (attributes are small integers: equal, not same)."""
        return all(
            container.get(key) == new if isinstance(new, int) else container.get(key) is new
            for container, key, _, new in self.swaps
        )


def carry_out(model: nn.Module, moves: Sequence[Move], structure: Structure, *, probe: Inputs | None = None) -> Journal:
    """Carry moves out on a model, without optimizer or verification.

    All moves are written against the model as it stands. Old Parameters are not written to; new ones keep
    dtype, device, memory format, requires_grad, gradient (by position), tensor hooks and Python attributes.

    Args:
        model: the model or any copy of it.
        moves: widen, prune and insert; several may touch the same tensor.
        structure: as found on the model or a copy with the same shapes.
        probe: inputs from which new BatchNorm channels take their running statistics; None leaves them at 0 and 1.

    Returns:
        A journal with which the change can be taken back.

    Raises:
        SennError: if a move doesn't fit; the model is as it was.
    """
    journal = prepare(model, plan(model, moves, structure))
    try:
        journal.commit()
        if probe is not None:
            calibrate(model, journal, probe)
    except BaseException:
        journal.undo()
        raise
    return journal


@torch.no_grad()
def prepare(model: nn.Module, todo: Plan) -> Journal:
    """Make all the new objects; the model is not touched before `Journal.commit`."""
    journal = Journal()
    holders = _holders(model)
    olds: dict[str, Tensor] = {}
    for name, shape in todo.shapes.items():
        olds[name] = old = find_tensor(model, name)
        if old.shape != shape:
            raise SennError(
                f"'{name}' has shape {tuple(old.shape)} in one copy of the model, {tuple(shape)} in another"
            )
    _refuse_ties(olds)
    values = _values(model, todo, olds)
    for name, old in olds.items():
        layouts = todo.layouts[name]
        new = _successor(name, old, values[name], layouts)
        if isinstance(old, nn.Parameter) and isinstance(new, nn.Parameter):
            journal.resized[old] = Resized(new, layouts)
        journal.swaps += [(container, key, old, new) for container, key in holders[id(old)]]
    _attributes(model, todo, journal)
    for move in todo.inserts:
        _insert(model, move, journal)
    journal.uncalibrated = _uncalibrated(model, todo)
    return journal


def _holders(model: nn.Module) -> dict[int, list[tuple[MutableMapping[str, Any], str]]]:
    """Every dictionary entry under which a parameter or buffer is held, by the tensor's id."""
    holders: dict[int, list[tuple[MutableMapping[str, Any], str]]] = defaultdict(list)
    for module in model.modules():
        for container in (module._parameters, module._buffers):
            for key, tensor in container.items():
                holders[id(tensor)].append((container, key))
    return holders


def _refuse_ties(olds: Mapping[str, Tensor]) -> None:
    """One tensor under two names that both change size has no defined result."""
    names: dict[int, str] = {}
    for name, old in olds.items():
        if id(old) in names:
            raise UnsupportedError(
                f"'{names[id(old)]}' and '{name}' are one tied parameter, which can't be resized twice"
            )
        names[id(old)] = name


def _values(model: nn.Module, todo: Plan, olds: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """New values by full tensor name: extended, compensated, cut, and inserted layers folded in."""
    values = {name: _extended(model, name, old.detach(), todo) for name, old in olds.items()}
    for item in todo.compensations:
        weight, bias = values[join(item.module, "weight")], values.get(join(item.module, "bias"))
        coefficients = item.coefficients.to(weight.device, torch.float64)
        kept = item.kept.to(weight.device)
        gone = weight.index_select(1, item.gone.to(weight.device)).double()
        sums = weight.index_select(1, kept).double() + gone @ coefficients[:, :-1]
        weight.index_copy_(1, kept, sums.to(weight.dtype))
        if bias is not None:
            bias.copy_(bias.double() + gone @ coefficients[:, -1])
    for name, value in values.items():
        for dim, layout in todo.layouts[name].items():
            if not layout.appends:
                value = value.index_select(dim, layout.order.to(value.device))
        values[name] = value
    for move in todo.inserts:
        _fold(model, move, values)
    return values


def _extended(model: nn.Module, name: str, old: Tensor, todo: Plan) -> Tensor:
    """A copy of the tensor with the new entries at the end of each dimension; columns of consumers are zero."""
    layouts = todo.layouts[name]
    shape = [size + (layouts[dim].added if dim in layouts else 0) for dim, size in enumerate(old.shape)]
    value = old.new_zeros(shape)
    corner(value, old.shape).copy_(old)
    for entry in todo.entries.get(name, ()):
        size = [entry.count if dim == entry.dim else size for dim, size in enumerate(old.shape)]
        region = corner(value.narrow(entry.dim, entry.offset, entry.count), size)
        region.copy_(_neutral(model, name, old, entry.dim) if entry.values is None else entry.values)
    return value


def _neutral(model: nn.Module, name: str, old: Tensor, dim: int) -> Tensor:
    """What a new unit's carrier starts with when the move doesn't say."""
    path, _, key = name.rpartition(".")
    if isinstance(model.get_submodule(path), _NormBase) and key in _NEUTRAL_NORM:
        return old.new_tensor(_NEUTRAL_NORM[key])
    return old.double().mean(dim, keepdim=True).to(old.dtype)


def _fold(model: nn.Module, move: Insert, values: dict[str, Tensor]) -> None:
    """W <- W @ right, b <- b + W @ shift."""
    weight = values.get(join(move.site, "weight"))
    old = (find_tensor(model, join(move.site, "weight")).detach() if weight is None else weight).double()
    if move.right is not None and weight is not None:
        values[join(move.site, "weight")] = (old @ move.right.to(old)).to(weight.dtype)
    if move.shift is not None:
        bias = values[join(move.site, "bias")]
        values[join(move.site, "bias")] = (bias.double() + old @ move.shift.to(old)).to(bias.dtype)


def _successor(name: str, old: Tensor, value: Tensor, layouts: Mapping[int, Layout]) -> Tensor:
    """A tensor of the same kind with the new values and everything that hung on the old one."""
    if not old.is_contiguous():
        # Keep the order of the strides (channels-last and the like).
        physical = sorted(range(old.dim()), key=lambda dim: -old.stride()[dim])
        value = torch.empty_permuted(value.shape, physical, dtype=old.dtype, device=old.device).copy_(value)
    if not isinstance(old, nn.Parameter):
        value.__dict__.update(old.__dict__)
        return value
    new = nn.Parameter(value, requires_grad=old.requires_grad)
    new.__dict__.update(old.__dict__)
    # Sharing the dictionaries keeps the users' handles working on whichever tensor is in use.
    new._backward_hooks = old._backward_hooks
    new._post_accumulate_grad_hooks = old._post_accumulate_grad_hooks
    if old.grad is not None:
        if old.grad.is_sparse:
            raise UnsupportedError(f"the gradient of '{name}' is sparse, which can't be resized")
        new.grad = place(old.grad, layouts, torch.zeros_like(new, dtype=old.grad.dtype))
    return new


def _attributes(model: nn.Module, todo: Plan, journal: Journal) -> None:
    for (path, attribute), change in todo.attributes.items():
        held = model.get_submodule(path).__dict__
        old = held.get(attribute)
        if not isinstance(old, int):
            raise UnsupportedError(f"attribute '{attribute}' of '{path}' is no plain integer and can't be rewritten")
        journal.swaps.append((held, attribute, old, old + change))


def _insert(model: nn.Module, move: Insert, journal: Journal) -> None:
    path, _, key = move.site.rpartition(".")
    parent, linear = model.get_submodule(path), model.get_submodule(move.site)
    if not isinstance(linear, nn.Linear):
        raise UnsupportedError(f"'{move.site}' is a {type(linear).__name__}; layers are inserted before Linear maps")
    layer = copy.deepcopy(move.layer).to(linear.weight.device, linear.weight.dtype).train(linear.training)
    modules = tuple(layer.children()) if type(layer) is nn.Sequential else (layer,)
    stack = nn.Sequential(*modules, linear)
    stack.training = linear.training
    journal.swaps.append((parent._modules, key, linear, stack))
    journal.inserted.append(Inserted(move.site, modules, linear))


def _uncalibrated(model: nn.Module, todo: Plan) -> list[tuple[nn.Module, Tensor]]:
    """Normalisations with new channels that no move gave running statistics for, and where these stand."""
    found: list[tuple[nn.Module, Tensor]] = []
    for name, entries in todo.entries.items():
        path, _, key = name.rpartition(".")
        if key != "running_mean":
            continue
        layout = todo.layouts[name][0]
        added = [torch.arange(e.offset, e.offset + e.count) for e in entries if e.values is None]
        if added:
            places = torch.isin(layout.order, torch.cat(added)).nonzero().flatten()
            found.append((model.get_submodule(path), places))
    return found
