"""Hooks on parameters that change size: what they hold of the former shape fails now, by name, and not in training."""

from __future__ import annotations

import gc

import torch
from torch import Tensor
from torch.optim import Optimizer

from senn.errors import SurgeryError, in_one_line, warn
from senn.surgery.undo import UndoLog


@torch.no_grad()
def try_gradient_hooks(log: UndoLog) -> None:
    """Call the gradient hooks of resized parameters once, on zeros of the new shape.

    A hook that multiplies by a mask of the former shape (frozen units of a former task) is found in no other way before
    the next backward pass.

    Args:
        log: of the changed model.

    Raises:
        SurgeryError: one of them fails.
    """
    for parameter, change in log.resized.items():
        hooks = parameter._backward_hooks
        if not parameter.requires_grad or not hooks:
            continue
        gradient = torch.zeros_like(parameter)
        for hook in [*hooks.values()]:
            try:
                result = hook(gradient)
            except Exception as error:
                reason = in_one_line(error)
            else:
                gradient = gradient if result is None else result
                found = tuple(gradient.shape)
                reason = "" if found == parameter.shape else f"it returns the shape {found}"
            if reason:
                raise SurgeryError(
                    f"a gradient hook of '{change.name}' doesn't fit its new shape {tuple(parameter.shape)} "
                    f"({reason}): let the hook follow the parameter's shape, or leave the module alone (ignore)"
                )


def check_steps_in_backward(log: UndoLog) -> None:
    """Refuse a change of parameters that an optimizer in a hook steps, if it wasn't given: its state would be left.

    Args:
        log: of the changed model, whose optimizers have followed.

    Raises:
        SurgeryError: an optimizer has state of a former shape.
    """
    for inserted in log.inserted:
        if any(map(_is_stepped, inserted.neighbors.values())):
            warn(
                f"the layer {inserted.what} has no post-accumulate hook, unlike the parameters beside it: if an "
                "optimizer steps in these hooks, register one for each of the layer's parameters",
            )
    stepped = {one: change for one, change in log.resized.items() if _is_stepped(one)}
    if not stepped:
        return
    # Nobody but the garbage collector knows all optimizers; by type, since some objects only pretend.
    for optimizer in [one for one in gc.get_objects() if issubclass(type(one), Optimizer)]:
        for parameter, change in stepped.items():
            former = change.old.values.shape
            # One whose construction has failed may still be around, without any attribute.
            state = getattr(optimizer, "state", {}).get(parameter, {}).values()
            shapes = {value.shape for value in state if isinstance(value, Tensor)}
            if former != parameter.shape and former in shapes:
                raise SurgeryError(
                    f"'{change.name}' has a post-accumulate hook, and an optimizer that wasn't given "
                    f"({type(optimizer).__name__}) has state of its former shape: give every optimizer that steps in "
                    "such hooks, optimizer=[...]"
                )


def _is_stepped(tensor: Tensor) -> bool:
    return bool(getattr(tensor, "_post_accumulate_grad_hooks", None))
