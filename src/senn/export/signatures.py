"""Arguments of constructors as source has to give them: sizes as single numbers, defaults left out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from senn.checkpoint.constructors import CONSTRUCTORS, constructor_arguments
from senn.errors import UnsupportedError

# Plain numbers that say what they are.
_POSITIONAL = {"p", "num_parameters", "negative_slope"}
# A single number stands for all of a tuple's.
_SIZES = {"kernel_size", "stride", "padding", "dilation", "output_padding", "output_size", "normalized_shape", "size"}


class Name(str):
    """Source of its own, no text."""


def is_layer(module: nn.Module) -> bool:
    """True if a module is exactly of a class that `torch.nn` offers."""
    return getattr(nn, type(module).__name__, None) is type(module)


def source_arguments(module: nn.Module) -> dict[str, Any]:
    """All arguments of the constructor of a layer of torch.nn, by name, in the signature's order.

    Raises:
        UnsupportedError: the layer doesn't keep one of them.
    """
    kind = type(module).__name__
    try:
        found = constructor_arguments(module)
    except UnsupportedError as error:
        raise UnsupportedError(f"a {kind} can't be written as source: {error}") from error
    return {name: _in_source(kind, name, found[name]) for name in _signature(module) if name in found}


def explicit_arguments(module: nn.Module) -> tuple[list[Any], dict[str, Any]]:
    """Those of the arguments that source can't leave out: positional ones, and by keyword what isn't the default."""
    found, signature = source_arguments(module), _signature(module)
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    for name, value in found.items():
        default = signature[name].default
        if default is inspect.Parameter.empty:
            positional.append(value)
        elif isinstance(value, nn.Module) or _differs(value, default):
            if name == "stride" and default is None and value == found.get("kernel_size"):
                continue  # as pooling has it
            if name in _POSITIONAL and not keywords:
                positional.append(value)
            else:
                keywords[name] = value
    return positional, keywords


def _differs(value: Any, default: Any) -> bool:
    default = {F.relu: "relu", F.gelu: "gelu"}.get(default, default) if callable(default) else default
    return bool(value != default) or type(value) is bool is not type(default)


def _signature(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    """The parameters of the constructor that the table of constructors knows."""
    cls = type(module)
    recurrent = isinstance(module, nn.RNNBase)  # whose subclasses take anything
    known = dict(inspect.signature(nn.RNNBase.__init__ if recurrent else cls.__init__).parameters)
    known["nonlinearity"] = known.get(
        "nonlinearity", inspect.Parameter("nonlinearity", inspect.Parameter.KEYWORD_ONLY, default="tanh")
    )
    return {name: one for name, one in known.items() if name in CONSTRUCTORS.get(cls, ())}


def _in_source(kind: str, name: str, value: Any) -> Any:
    if name == "activation" and callable(value) and not isinstance(value, nn.Module):
        return _function(kind, value)
    if isinstance(value, tuple | list):
        value = tuple(value)
        if name in _SIZES and value and len(set(value)) == 1 and type(value[0]) is int:
            return value[0]
    return value


def _function(kind: str, function: Any) -> str:
    """Where torch has a function."""
    name = getattr(function, "__name__", "")
    for place, holder in (("torch", torch), ("F", F)):
        if name and getattr(holder, name, None) is function:
            return Name(f"{place}.{name}")
    raise UnsupportedError(f"a {kind} can't be written as source: its activation {name or function!r} isn't torch's")
