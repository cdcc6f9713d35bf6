"""Constructor arguments as source code gives them: sizes as single numbers, defaults left out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from senn.checkpoint.constructors import CONSTRUCTORS, constructor_arguments
from senn.errors import UnsupportedError

# Optional arguments whose number says what it is: `nn.Dropout(0.1)`, but `nn.Softplus(beta=2.0)`.
_POSITIONAL = {"p", "num_parameters", "negative_slope"}
# Arguments of which a single number stands for all of a tuple's: `kernel_size=3` for `(3, 3)`.
_SIZES = {
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "output_padding",
    "output_size",
    "normalized_shape",
    "size",
}


class Name(str):
    """Source code of its own (`torch.tanh`), where an ordinary string is a text to be quoted."""


def is_layer(module: nn.Module) -> bool:
    """Return True if a module's class is exactly one that `torch.nn` offers."""
    return getattr(nn, type(module).__name__, None) is type(module)


def source_arguments(module: nn.Module) -> dict[str, Any]:
    """Read back all constructor arguments of a layer of torch.nn, as source code gives them.

    Returns:
        Values by name, in the order of the constructor's signature.

    Raises:
        UnsupportedError: the layer doesn't keep one of them, or its constructor isn't known.

    >>> source_arguments(nn.MaxPool2d((2, 2)))["kernel_size"]
    2
    """
    kind = type(module).__name__
    try:
        arguments = constructor_arguments(module)
    except UnsupportedError as error:
        raise UnsupportedError(f"a {kind} can't be written as source: {error}") from error
    return {
        name: _in_source(kind, name, arguments[name])
        for name in _signature(module)
        if name in arguments
    }


def explicit_arguments(module: nn.Module) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments that source code has to give.

    Returns:
        Positional ones, and by keyword those that differ from their default.

    Raises:
        UnsupportedError: the layer doesn't keep one of its arguments, or its constructor isn't known.

    >>> explicit_arguments(nn.Conv2d(3, 8, 3, padding=1))
    ([3, 8, 3], {'padding': 1})
    """
    arguments, signature = source_arguments(module), _signature(module)
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    for name, value in arguments.items():
        default = signature[name].default
        if default is inspect.Parameter.empty:
            positional.append(value)
        elif isinstance(value, nn.Module) or _differs(value, default):
            if name == "stride" and default is None and value == arguments.get("kernel_size"):
                continue  # pooling takes the kernel's size for a stride of None
            if name in _POSITIONAL and not keywords:
                positional.append(value)
            else:
                keywords[name] = value
    return positional, keywords


def _differs(value: Any, default: Any) -> bool:
    if callable(default):
        default = {F.relu: "relu", F.gelu: "gelu"}.get(default, default)
    # True == 1, but `bias=True` isn't `bias=1`
    return bool(value != default) or type(value) is bool is not type(default)


def _signature(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a layer's constructor that the table of constructors knows, by name, in order."""
    cls = type(module)
    # Subclasses of RNNBase declare `*args, **kwargs` and hand them on.
    init = nn.RNNBase.__init__ if isinstance(module, nn.RNNBase) else cls.__init__
    known = dict(inspect.signature(init).parameters)
    if cls is nn.RNN:
        # RNN takes it out of its keywords, so no signature has it.
        keyword = inspect.Parameter.KEYWORD_ONLY
        known["nonlinearity"] = inspect.Parameter("nonlinearity", keyword, default="tanh")
    return {name: one for name, one in known.items() if name in CONSTRUCTORS.get(cls, ())}


def _in_source(kind: str, name: str, value: Any) -> Any:
    if name == "activation" and callable(value) and not isinstance(value, nn.Module):
        return _function_name(kind, value)
    if isinstance(value, tuple | list):
        value = tuple(value)
        is_uniform = len(set(value)) == 1 and type(value[0]) is int
        if name in _SIZES and is_uniform:
            return value[0]
    return value


def _function_name(kind: str, function: Any) -> Name:
    """Return the name under which torch offers a function."""
    name = getattr(function, "__name__", "")
    for place, holder in (("torch", torch), ("F", F)):
        if name and getattr(holder, name, None) is function:
            return Name(f"{place}.{name}")
    raise UnsupportedError(
        f"a {kind} can't be written as source: its activation {name or function!r} isn't torch's"
    )
