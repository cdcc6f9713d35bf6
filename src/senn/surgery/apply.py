"""Carries moves out on one copy of a model: new tensors take the place of old ones, nothing is written to."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from senn.errors import SennError, UnsupportedError
from senn.graph.types import DependencyGraph, get_tensor
from senn.pytree import Inputs
from senn.surgery.index_maps import IndexMap, corner, place
from senn.surgery.moves import Insert, Move
from senn.surgery.outputs import calibrate_batch_norm
from senn.surgery.plan import BEFORE, Compensation, Entries, SurgeryPlan, find_tensor, join, plan
from senn.surgery.repeat import Addition, insert_copy_after
from senn.surgery.undo import Inserted, Resized, UndoLog

# What a new channel of a normalisation starts with; other carriers take the mean of the units there are.
_NEUTRAL_NORM = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}


def apply_moves(
    model: nn.Module, moves: Sequence[Move], graph: DependencyGraph, *, probe: Inputs | None = None
) -> UndoLog:
    """Carry moves out on a model, without optimizer or verification.

    All moves are written against the model as it stands. Old Parameters are not written to; new ones keep
    dtype, device, memory format, requires_grad, gradient (by position), tensor hooks and Python attributes.

    Args:
        model: the model or any copy of it.
        moves: of any kind; several may touch the same tensor.
        graph: as found on the model or a copy with the same shapes.
        probe: inputs from which new BatchNorm channels take their running statistics; None leaves them at 0 and 1.

    Returns:
        A journal with which the change can be taken back.

    Raises:
        SennError: if a move doesn't fit; the model is as it was.
    """
    journal = prepare(model, plan(model, moves, graph))
    try:
        journal.commit()
        if probe is not None:
            calibrate_batch_norm(model, journal, probe)
    except BaseException:
        journal.undo()
        raise
    return journal


@torch.no_grad()
def prepare(model: nn.Module, todo: SurgeryPlan) -> UndoLog:
    """Make all the new objects; the model is not touched before `UndoLog.commit`."""
    journal = UndoLog()
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
    _flat_weights(model, journal)
    for move in todo.inserts:
        _insert(model, move, journal)
    _append(model, todo.appends, journal)
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


def _values(model: nn.Module, todo: SurgeryPlan, olds: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """New values by full tensor name: extended, compensated, cut, and inserted layers folded in."""
    values = {name: _extended(model, name, old.detach(), todo) for name, old in olds.items()}
    for item in todo.compensations:
        _compensate(item, values)
    for name, factor in todo.scales.items():
        values[name] = values[name] * factor
    for name, value in values.items():
        for dim, layout in todo.layouts[name].items():
            if not layout.appends:
                value = value.index_select(dim, layout.order.to(value.device))
        values[name] = value
    for move in todo.inserts:
        _fold(model, move, values)
    return values


def _compensate(item: Compensation, values: dict[str, Tensor]) -> None:
    """Let the columns that stay take over from those that go (new rows and columns stand at the ends)."""
    one = item.map
    weight, bias = values[one.weight], values.get(one.bias or "")
    front = weight.movedim((one.out_dim, one.in_dim), (0, 1))
    matrix = front.flatten(1)
    coefficients = item.coefficients.to(weight.device, torch.float64)
    kept = item.kept.to(weight.device)
    gone = matrix.index_select(1, item.gone.to(weight.device)).double()
    sums = matrix.index_select(1, kept).double() + gone @ coefficients[:, :-1]
    front.copy_(matrix.index_copy(1, kept, sums.to(weight.dtype)).view(front.shape))
    if bias is not None:
        bias.copy_(bias.double() + gone @ coefficients[:, -1])


def _extended(model: nn.Module, name: str, old: Tensor, todo: SurgeryPlan) -> Tensor:
    """A copy of the tensor with the new entries at the end of each dimension; columns of consumers are zero."""
    layouts = todo.layouts[name]
    shape = [size + (layouts[dim].added if dim in layouts else 0) for dim, size in enumerate(old.shape)]
    value = old.new_zeros(shape)
    corner(value, old.shape).copy_(old)
    for entry in todo.entries.get(name, ()):
        size = [entry.count if dim == entry.dim else size for dim, size in enumerate(old.shape)]
        region = corner(value.narrow(entry.dim, entry.offset, entry.count), size)
        region.copy_(_new_entries(model, name, old, entry))
    return value


def _new_entries(model: nn.Module, name: str, old: Tensor, entry: Entries) -> Tensor:
    """The values of new entries, or what broadcasts to them."""
    if entry.values is not None:
        return entry.values
    if entry.fill == "neutral":
        return _neutral(model, name, old, entry)
    if entry.fill == "zero":
        return old.new_zeros(())
    if entry.fill == "mean":
        units = old.index_select(entry.dim, entry.index.flatten().to(old.device))
        return units.double().mean(entry.dim, keepdim=True).to(old.dtype)
    return _in_turn(old, entry)


def _in_turn(old: Tensor, entry: Entries) -> Tensor:
    """The old units' entries one after the other, from the first one again."""
    width, k = entry.index.shape
    return old.index_select(entry.dim, entry.index[torch.arange(entry.count // k) % width].flatten().to(old.device))


def _neutral(model: nn.Module, name: str, old: Tensor, entry: Entries) -> Tensor:
    """What a new unit's carrier starts with when the move doesn't say."""
    path, _, key = name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(module, _NormBase | nn.GroupNorm) and key in _NEUTRAL_NORM:
        return old.new_tensor(_NEUTRAL_NORM[key])
    if isinstance(module, _ConvNd):
        return _in_turn(old, entry)
    return old.double().mean(entry.dim, keepdim=True).to(old.dtype)


def _fold(model: nn.Module, move: Insert, values: dict[str, Tensor]) -> None:
    """W <- W @ right, b <- b + W @ shift."""
    weight = values.get(join(move.insertion_point, "weight"))
    old = (find_tensor(model, join(move.insertion_point, "weight")).detach() if weight is None else weight).double()
    if move.right is not None and weight is not None:
        values[join(move.insertion_point, "weight")] = (old @ move.right.to(old)).to(weight.dtype)
    if move.shift is not None:
        bias = values[join(move.insertion_point, "bias")]
        values[join(move.insertion_point, "bias")] = (bias.double() + old @ move.shift.to(old)).to(bias.dtype)


def _successor(name: str, old: Tensor, value: Tensor, layouts: Mapping[int, IndexMap]) -> Tensor:
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


def _attributes(model: nn.Module, todo: SurgeryPlan, journal: UndoLog) -> None:
    """New values of Python numbers: plain integers, items of tuples, and what normalisations add to a variance."""
    items: dict[tuple[str, str], dict[int | None, int]] = defaultdict(dict)
    for (path, attribute, item), change in todo.attributes.items():
        items[path, attribute][item] = change
    for (path, attribute), changes in items.items():
        held = model.get_submodule(path).__dict__
        old = held.get(attribute)
        if isinstance(old, tuple | list) and None not in changes:
            new: Any = type(old)(value + changes.get(place, 0) for place, value in enumerate(old))
        elif isinstance(old, int) and not isinstance(old, bool) and None in changes:
            new = old + changes[None]
        else:
            raise UnsupportedError(f"attribute '{attribute}' of '{path}' is no plain integer and can't be rewritten")
        journal.swaps.append((held, attribute, old, new))
    for (path, attribute), factor in todo.factors.items():
        held = model.get_submodule(path).__dict__
        journal.swaps.append((held, attribute, held[attribute], held[attribute] * factor))


def _flat_weights(model: nn.Module, journal: UndoLog) -> None:
    """Recurrent layers keep a list of their parameters besides."""
    new = {id(old): new for _, _, old, new in journal.swaps if isinstance(old, Tensor)}
    for module in model.modules():
        flat = module.__dict__.get("_flat_weights")
        if isinstance(module, nn.RNNBase) and any(id(weight) in new for weight in flat or ()):
            swapped = [new.get(id(weight), weight) for weight in flat or ()]
            journal.swaps.append((module.__dict__, "_flat_weights", flat, swapped))
            # By these the next forward pass sees that the weights are others, and makes both lists anew.
            references = module.__dict__["_flat_weight_refs"]
            journal.swaps.append((module.__dict__, "_flat_weight_refs", references, references))


def _insert(model: nn.Module, move: Insert, journal: UndoLog) -> None:
    path, _, key = move.insertion_point.rpartition(".")
    parent, linear = model.get_submodule(path), model.get_submodule(move.insertion_point)
    if not isinstance(linear, BEFORE):
        raise UnsupportedError(f"'{move.insertion_point}' is a {type(linear).__name__} in one copy of the model")
    layer = copy.deepcopy(move.layer).to(linear.weight.device, linear.weight.dtype).train(linear.training)
    modules = tuple(layer.children()) if type(layer) is nn.Sequential else (layer,)
    stack = nn.Sequential(*modules, linear)
    stack.training = linear.training
    journal.swaps.append((parent._modules, key, linear, stack))
    weight = journal.now(cast(nn.Parameter, linear.weight))
    beside = {parameter: weight for module in modules for parameter in module.parameters()}
    journal.inserted.append(Inserted(insertion_point=move.insertion_point, modules=modules, beside=beside, after=False))


def _append(model: nn.Module, appends: Sequence[Addition], journal: UndoLog) -> None:
    additions = []
    for block, module in appends:
        original = model.get_submodule(block.module)
        added = _alike(copy.deepcopy(module), original)
        last = cast(nn.Parameter, get_tensor(model, block.output_params[-1]))
        own = dict(original.named_parameters())
        beside = {new: journal.now(own.get(name, last)) for name, new in added.named_parameters()}
        additions.append((block, added))
        journal.inserted.append(Inserted(insertion_point=block.module, modules=(added,), beside=beside, after=True))
    journal.swaps += insert_copy_after(model, additions, journal.swaps)


def _alike(added: nn.Module, block: nn.Module) -> nn.Module:
    """The module with device, dtypes and modes of a block, part by part where the names are the same."""
    modes = {name: module.training for name, module in block.named_modules()}
    for name, module in added.named_modules():
        module.training = modes.get(name, block.training)
    last = next(reversed([*block.parameters()]))
    tensors = {**dict(block.named_parameters()), **dict(block.named_buffers())}
    for name, tensor in [*added.named_parameters(), *added.named_buffers()]:
        like = tensors.get(name, last)
        tensor.data = tensor.data.to(like.device, like.dtype if tensor.is_floating_point() else None)
    return added


def _uncalibrated(model: nn.Module, todo: SurgeryPlan) -> list[tuple[nn.Module, Tensor]]:
    """Normalisations with new channels that no move gave running statistics for, and where these stand."""
    found: list[tuple[nn.Module, Tensor]] = []
    for name, entries in todo.entries.items():
        path, _, key = name.rpartition(".")
        if key != "running_mean":
            continue
        layout = todo.layouts[name][0]
        added = [torch.arange(e.offset, e.offset + e.count) for e in entries if e.fill == "neutral"]
        if added:
            places = torch.isin(layout.order, torch.cat(added)).nonzero().flatten()
            found.append((model.get_submodule(path), places))
    return found
