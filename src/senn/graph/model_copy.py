"""Copies of models, also of those with states that have a gradient history, or parts that can't be looked into."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from senn import pytree
from senn.errors import UnsupportedError, in_one_line
from senn.graph.input_checks import opaque_reason

_REGISTERS = (dict, OrderedDict, set)
"""Types of the registers of a module, most of which are empty: hooks, buffers."""


class OpaquePart(nn.Module):
    """A part of a copied model that runs, and can't be looked into: compiled, quantized.

    Args:
        part: the part.
        reason: why it is one, as the rest of a sentence that begins with it.
    """

    def __init__(self, part: nn.Module, reason: str) -> None:
        super().__init__()
        self._held = (part,)  # not registered: nobody outside shall see its parameters
        self.reason = reason

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the part, in the mode of now."""
        (part,) = self._held
        if part.training != self.training:
            part.train(self.training)
        return part(*args, **kwargs)


def copy_model(model: nn.Module) -> nn.Module:
    """Copy a model, its modes and hooks included.

    Args:
        model: any module. A tensor that it holds with a gradient history (the state of a recurrent or spiking net) is
            copied without it: torch can't copy one with it.

    Returns:
        The copy, which shares no parameter with the model. A part of it that can't be looked into is an `OpaquePart`.

    Raises:
        UnsupportedError: some part of it can't be copied; the message names it.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        reason = opaque_reason(module)
        if reason is not None and module is not model:
            memo[id(module)] = OpaquePart(_copy_of(module), reason)
            continue
        held = {**vars(module), "_modules": None}  # modules inside have their own turn
        for value in held.values():
            if type(value) in _REGISTERS and not value:  # `deepcopy` takes a dozen calls for each
                memo[id(value)] = type(value)()
                continue
            for tensor in _tensors(value):
                if not tensor.is_leaf:
                    memo[id(tensor)] = tensor.detach().clone()
    kept = {**memo}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        place = _culprit(model, kept)
        what = f"its module {place} can't be" if place else "it can't be"
        raise UnsupportedError(
            f"the model can't be copied, {what}: {in_one_line(error)}"
        ) from error


def _copy_of(part: nn.Module) -> nn.Module:
    """Copy a part; one that can't be copied serves the model and its copies, which only run it."""
    try:
        return copy.deepcopy(part)
    except Exception:
        return part


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors that an attribute holds; those of registers are leaves, and copied anyway."""
    if isinstance(value, Tensor):
        return [value]
    # Most attributes are numbers, names and empty registers: looking into each one costs more than the copy itself.
    is_empty = isinstance(value, dict | list | tuple | set) and not value
    if is_empty or value is None or isinstance(value, int | float | str):
        return []
    # Registers hold tensors and None alone: a pytree of each would take as long as the copy.
    if type(value) is dict and all(
        one is None or isinstance(one, Tensor) for one in value.values()
    ):
        return [one for one in value.values() if one is not None]
    try:
        return pytree.tensor_leaves(value)
    except Exception:  # an object that only looks like a container
        return []


def _culprit(model: nn.Module, memo: dict[int, Any]) -> str:
    """Return the name of the innermost module that can't be copied; empty for the model's own attributes."""
    modules: list[tuple[str, nn.Module]] = [*model.named_modules()]
    for name, module in reversed(modules):
        try:
            copy.deepcopy(module, {**memo})
        except Exception:
            return name
    return ""
