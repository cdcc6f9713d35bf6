"""What a loss is called with: outputs, targets and weights, checked and converted; its name in messages."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from senn import pytree
from senn.errors import SennError


def check_two_arguments(loss: Any) -> None:
    """Refuse a loss that needs other arguments than outputs and targets, and say how to make one that doesn't."""
    try:
        # a module's forward: `__call__` takes anything
        signature = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss)
    except (TypeError, ValueError):  # a builtin without a signature
        return
    try:
        signature.bind(None, None)
    except TypeError:
        needed = [
            one.name
            for one in signature.parameters.values()
            if one.default is one.empty and one.kind is not one.VAR_KEYWORD
        ]
        name = loss_name(loss)
        raise SennError(
            f"the loss {name} takes {', '.join(needed)}, and one of two arguments is needed: give a function of "
            f"(outputs, targets) that calls it, with what it needs taken from these two"
        ) from None


def loss_name(loss: Any) -> str:
    """Name a loss as its user would."""
    function = loss.func if isinstance(loss, functools.partial) else loss
    return str(getattr(function, "__name__", type(function).__name__))


def converted(output: Tensor, target: Any) -> tuple[Tensor, Any]:
    """Convert half precision to float32, and floating targets to the dtype of the outputs."""
    if output.ndim == 0 or len(output) == 0:
        raise SennError(
            f"the outputs have shape {tuple(output.shape)}, and (samples, ...) with samples > 0 is needed"
        )
    if not output.is_floating_point():
        raise SennError(f"the outputs are {output.dtype}, and floating-point numbers are needed")
    # exp(12) overflows in float16
    if output.dtype in (torch.float16, torch.bfloat16):
        output = output.float()
    dtype = output.dtype
    return output, pytree.map_leaves(lambda t: t.to(dtype) if t.is_floating_point() else t, target)


def shapes_of(target: Any) -> str:
    """Say the shape of targets, or the shapes of several."""
    if isinstance(target, Tensor):
        return f"shape {tuple(target.shape)}"
    return f"shapes {', '.join(str(tuple(leaf.shape)) for leaf in pytree.tensor_leaves(target))}"


def checked_weights(weight: Tensor, output: Tensor) -> Tensor:
    """Refuse sample weights that don't fit, and convert them to the dtype of the outputs."""
    if weight.shape != output.shape[:1]:
        raise SennError(f"sample weights need shape ({len(output)},), not {tuple(weight.shape)}")
    if not bool((torch.isfinite(weight) & (weight >= 0)).all()):
        raise SennError("sample weights must be finite and not negative")
    return weight.detach().to(output)


def check_class_weights(loss: Any, before: int, after: int) -> None:
    """Refuse a loss that has a number for each output, but none for new ones.

    Args:
        loss: a function, a `functools.partial` of one, or a module.
        before: number of outputs.
        after: number of outputs from now on.

    Raises:
        SennError: it has; the sentence names the numbers.
    """
    for name, value in _held(loss):
        if isinstance(value, Tensor) and value.dim() == 1 and len(value) == before:
            raise SennError(
                f"the loss {loss_name(loss)} has {before} numbers in {name!r}, one for each output: give it {after} "
                "before outputs are added"
            )


def _held(loss: Any) -> list[tuple[str, Any]]:
    """Return what a loss keeps beside its arguments, by name."""
    if isinstance(loss, functools.partial):
        return [*loss.keywords.items(), *_held(loss.func)]
    if isinstance(loss, nn.Module):
        return [*loss.named_parameters(), *loss.named_buffers(), *vars(loss).items()]
    owner = getattr(loss, "__self__", None)
    if isinstance(owner, nn.Module):
        return _held(owner)
    try:
        kept = inspect.getclosurevars(loss)
    except TypeError:  # no Python function
        return []
    return [*kept.nonlocals.items(), *kept.globals.items()]
