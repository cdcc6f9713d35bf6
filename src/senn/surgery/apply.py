"""Applies moves to one copy of a model: tensors get new data, and nothing is written into the old."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from senn import _deprecated
from senn.errors import SennError, UnsupportedError
from senn.graph.named_tensors import get_tensor
from senn.graph.types import DependencyGraph, SizeAttribute
from senn.pytree import Inputs
from senn.surgery.moves import Insert, Move
from senn.surgery.new_tensors import like_strides, new_gradient, new_values
from senn.surgery.outputs import calibrate_batch_norm
from senn.surgery.plan import plan
from senn.surgery.plan_types import BEFORE, SurgeryPlan, find_tensor
from senn.surgery.repeat import Addition, holder_of, insert_copy_after
from senn.surgery.tensor_data import Data
from senn.surgery.undo import Inserted, Resized, UndoLog


@_deprecated.keywords
@torch.inference_mode(False)  # data that is made in inference mode can't be trained
def apply_moves(
    model: nn.Module, moves: Sequence[Move], graph: DependencyGraph, *, probe: Inputs | None = None
) -> UndoLog:
    """Apply moves to a model, without an optimizer and without comparing outputs.

    All moves refer to the model as it stands. Parameters and buffers stay the same objects, with their hooks and Python
    attributes; they get data of the new shape, in the same dtype, device and memory format, and gradients follow by
    position. A backward pass through a forward pass from before the change raises.

    Args:
        model: the model or any copy of it, changed in place.
        moves: of any kind; several may touch the same tensor.
        graph: of the model or a copy with the same shapes.
        probe: inputs from which new BatchNorm channels take their running statistics; None leaves them at 0 and 1.

    Returns:
        A log with which the change can be taken back.

    Raises:
        SennError: a move doesn't fit; the model is as it was.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import senn
        >>> from senn.surgery import Widen, apply_moves
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> graph = senn.analyze(model, torch.zeros(4, 3))
        >>> log = apply_moves(model, [Widen("0", 1, {"0.weight": torch.ones(1, 3), "0.bias": torch.ones(1)})], graph)
        >>> model[0].out_features, tuple(model[2].weight.shape)
        (3, (1, 3))
        >>> log.undo()
        >>> model[0].out_features
        2
    """
    log = prepare(model, plan(model, moves, graph))
    try:
        log.commit()
        if probe is not None:
            calibrate_batch_norm(model, log, probe)
        log.finish()
    except BaseException:
        log.undo()
        raise
    return log


@torch.no_grad()
def prepare(model: nn.Module, todo: SurgeryPlan) -> UndoLog:
    """Make all new objects and data that a plan asks for; the model isn't touched before `UndoLog.commit`.

    Args:
        model: the model or any copy of it.
        todo: the plan.

    Returns:
        A log of exchanges to be committed.

    Raises:
        SennError: the plan doesn't fit this copy.
    """
    log = UndoLog(model)
    olds: dict[str, Tensor] = {}
    for name, shape in todo.shapes.items():
        olds[name] = old = find_tensor(model, name)
        if old.shape != shape:
            found, wanted = tuple(old.shape), tuple(shape)
            raise SennError(
                f"'{name}' has shape {found} in one copy of the model, {wanted} in another"
            )
    # Values first, for all tensors: a compensation reads one and writes two.
    _refuse_ties(olds)
    values = new_values(model, todo, olds)
    for name, old in olds.items():
        layouts, value = todo.layouts[name], like_strides(old, values[name])
        log.resized[old] = Resized(
            name=name,
            layouts=layouts,
            old=Data.of(old),
            new=Data(values=value, gradient=new_gradient(name, old, value, layouts)),
        )
    _rewrite_attributes(model, todo, log)
    for move in todo.inserts:
        _insert(model, move, log)
    if todo.appends:
        _append(model, todo.appends, log)
    log.uncalibrated = _uncalibrated(model, todo)
    return log


def _refuse_ties(olds: Mapping[str, Tensor]) -> None:
    # One tensor under two names that both change size has no defined result.
    names: dict[int, str] = {}
    for name, old in olds.items():
        if id(old) in names:
            first = names[id(old)]
            raise UnsupportedError(
                f"'{first}' and '{name}' are one tied parameter, which can't be resized twice"
            )
        names[id(old)] = name


def _rewrite_attributes(model: nn.Module, todo: SurgeryPlan, log: UndoLog) -> None:
    """Log new values of Python numbers: plain integers, items of tuples, and the eps of norms."""
    items: dict[tuple[str, str], dict[int | None, int]] = defaultdict(dict)
    for (path, attribute, item), change in todo.attributes.items():
        items[path, attribute][item] = change
    for (path, attribute), changes in items.items():
        # Of a `__dict__`, without `setattr`: a property of that name would compute who knows what.
        held, key = holder_of(model, SizeAttribute(module=path, name=attribute, per_unit=1))
        old = held.get(key)
        new = _changed(old, changes)
        if new is None:
            raise UnsupportedError(
                f"attribute '{attribute}' of '{path}' is no plain integer and can't be rewritten"
            )
        log.swaps.append((held, key, old, new))
    for (path, attribute), factor in todo.factors.items():
        held = model.get_submodule(path).__dict__
        value = held[attribute]
        log.swaps.append((held, attribute, value, value * factor))


def _changed(old: Any, changes: Mapping[int | None, int]) -> Any:
    """Return the new value of a number, a tuple of numbers or a table of labels; None if it is neither."""
    if isinstance(old, tuple | list) and None not in changes:
        return type(old)(value + changes.get(number, 0) for number, value in enumerate(old))
    if isinstance(old, int) and not isinstance(old, bool) and None in changes:
        return old + changes[None]
    if isinstance(old, dict) and None in changes:
        # Numbers of classes by label, or labels by number: new ones are called as transformers calls them.
        added = {f"LABEL_{number}": number for number in range(len(old), len(old) + changes[None])}
        by_number = any(isinstance(key, int) for key in old)
        return {
            **old,
            **({number: label for label, number in added.items()} if by_number else added),
        }
    return None


def _insert(model: nn.Module, move: Insert, log: UndoLog) -> None:
    """Log a layer before a map: `Sequential(layer..., map)` under the map's name, so that nothing else is renamed."""
    name = move.insertion_point
    path, _, key = name.rpartition(".")
    parent, linear = model.get_submodule(path), model.get_submodule(name)
    if not isinstance(linear, BEFORE):
        raise UnsupportedError(f"'{name}' is a {type(linear).__name__} in one copy of the model")
    layer = copy.deepcopy(move.layer).train(linear.training)
    layer.to(linear.weight.device, linear.weight.dtype)
    # A plain Sequential is a list of layers, and is joined into one; a subclass may have a forward of its own.
    modules = tuple(layer.children()) if type(layer) is nn.Sequential else (layer,)
    stack = nn.Sequential(*modules, linear)
    stack.training = linear.training  # not `train()`, which would reach into the map
    log.swaps.append((parent._modules, key, linear, stack))
    weight = cast(nn.Parameter, linear.weight)
    neighbors = {parameter: weight for module in modules for parameter in module.parameters()}
    log.inserted.append(
        Inserted(insertion_point=name, modules=modules, neighbors=neighbors, after=False)
    )


def _append(model: nn.Module, appends: Sequence[Addition], log: UndoLog) -> None:
    """Log copies after residual blocks, all at once: copies in one list move each other up."""
    additions = []
    for block, module in appends:
        original = model.get_submodule(block.module)
        added = _moved_to(copy.deepcopy(module), original)
        # A parameter that the block has none like joins that of its last output parameter.
        last = cast(nn.Parameter, get_tensor(model, block.output_params[-1]))
        own = dict(original.named_parameters())
        neighbors = {new: own.get(name, last) for name, new in added.named_parameters()}
        additions.append((block, added))
        log.inserted.append(
            Inserted(
                insertion_point=block.module, modules=(added,), neighbors=neighbors, after=True
            )
        )
    log.swaps += insert_copy_after(model, additions, log.swaps)


def _moved_to(added: nn.Module, block: nn.Module) -> nn.Module:
    """Give a module the device, dtypes and modes of a block, part by part where names are the same."""
    modes = {name: module.training for name, module in block.named_modules()}
    for name, module in added.named_modules():
        module.training = modes.get(name, block.training)
    last = next(reversed([*block.parameters()]))
    tensors = {**dict(block.named_parameters()), **dict(block.named_buffers())}
    for name, tensor in [*added.named_parameters(), *added.named_buffers()]:
        like = tensors.get(name, last)
        dtype = like.dtype if tensor.is_floating_point() else None  # counters stay integers
        tensor.data = tensor.data.to(like.device, dtype)
    return added


def _uncalibrated(model: nn.Module, todo: SurgeryPlan) -> list[tuple[nn.Module, Tensor]]:
    """Return norms with new channels whose running statistics no move gives, and where these channels stand."""
    found: list[tuple[nn.Module, Tensor]] = []
    for name, entries in todo.entries.items():
        path, _, key = name.rpartition(".")
        if key != "running_mean":
            continue
        neutral = [entry for entry in entries if entry.fill == "neutral"]
        added = [torch.arange(entry.offset, entry.offset + entry.count) for entry in neutral]
        if added:
            order = todo.layouts[name][0].order
            places = torch.isin(order, torch.cat(added)).nonzero().flatten()
            found.append((model.get_submodule(path), places))
    return found
