"""Constructing layers from JSON: by the table of constructors, and by nothing else.

The JSON may be forged. So only classes of the table are called, with arguments that the table names, on the meta
device.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from math import isfinite
from typing import Any

import torch
from torch import nn

from senn.checkpoint.constructors import (
    CONSTRUCTORS,
    CONTAINERS,
    KNOWN,
    Shapes,
    class_name,
    constructor_arguments,
)
from senn.errors import SennError, UnsupportedError

# JSON has no infinities; a text of the same letters is no argument of any layer.
_INFINITE = {"inf": float("inf"), "-inf": float("-inf")}


def json_arguments(module: nn.Module) -> dict[str, Any] | None:
    """`constructor_arguments` as JSON has them; None if they can't be read back or said in JSON.

    A layer among the arguments becomes a table of its `class` and `arguments`. A layer of the table that its owner has
    altered has no arguments: it takes the owner to build another.

    Returns:
        Values by the constructor's names, or None.
    """
    try:
        return {name: _to_json(value) for name, value in constructor_arguments(module).items()}
    except (UnsupportedError, TypeError):
        return None


def _to_json(value: Any) -> Any:
    """Convert an argument: tuples to lists, infinities to names, layers to tables of class and arguments."""
    if isinstance(value, tuple | list):
        return [_to_json(item) for item in value]
    if isinstance(value, float) and not isfinite(value):
        return {number: name for name, number in _INFINITE.items()}[value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    # The layer that a stack repeats, the norm at its end, an activation that is a module.
    if type(value) in CONSTRUCTORS:
        arguments = {name: _to_json(one) for name, one in constructor_arguments(value).items()}
        return {"class": class_name(value), "arguments": arguments}
    raise TypeError(f"{value!r} is not plain")


def construct(
    name: str,
    arguments: Mapping[str, Any] | None,
    *,
    parts: Collection[str],
    shapes: Shapes,
    tensors: int,
) -> nn.Module:
    """Construct a layer of the table, without memory for its tensors.

    Args:
        name: as `class_name` gives it.
        arguments: of its constructor, from a file that may be forged; None for a container.
        parts: names of the children that it should have.
        shapes: of its own tensors, by name.
        tensors: number of tensors that it and its children should have.

    Returns:
        The layer, on the meta device.

    Raises:
        UnsupportedError: the class isn't in the table.
        SennError: its constructor doesn't take these arguments.

    >>> construct("torch.nn.PReLU", {"num_parameters": 3}, parts=(), shapes={"weight": (3,)}, tensors=1)
    PReLU(num_parameters=3)
    """
    cls = KNOWN.get(name)
    if cls is None or (cls in CONSTRUCTORS and arguments is None):
        raise UnsupportedError(f"a {name} can't be built from its description")
    # On the meta device a forged size of a billion takes no memory; what was built is compared before it gets any.
    with torch.device("meta"), warnings.catch_warnings():
        # What a constructor finds unusual was said when the model was first built.
        warnings.simplefilter("ignore")
        if cls in CONTAINERS:
            return CONTAINERS[cls](parts, shapes)
        return _call_constructor(name, arguments, max(tensors, 1))


def _call_constructor(name: str, arguments: Any, tensors: int) -> nn.Module:
    cls = KNOWN.get(name)
    if cls is None or cls not in CONSTRUCTORS or not isinstance(arguments, dict):
        raise SennError(f"these are no arguments of a {name}")
    if set(arguments) - set(CONSTRUCTORS[cls]):
        raise SennError(f"these are no arguments of a {name}")
    # Each layer of a stack has a tensor at least: a forged number of them doesn't keep the constructor busy.
    layers = [value for key, value in arguments.items() if key.endswith("_layers")]
    if not all(isinstance(number, int) and number <= tensors for number in layers):
        raise SennError(f"these are no arguments of a {name} with {tensors} tensors")
    try:
        return cls(**{key: _from_json(value, tensors) for key, value in arguments.items()})
    except SennError:
        raise
    except Exception as error:  # a constructor may fail in any way on arguments that nobody checked
        raise SennError(" ".join(str(error).split())) from error


def _from_json(value: Any, tensors: int) -> Any:
    if isinstance(value, list):
        return tuple(_from_json(item, tensors) for item in value)
    if isinstance(value, dict):
        if set(value) != {"class", "arguments"} or not isinstance(value["class"], str):
            raise SennError("one of the arguments is neither a plain value nor a layer")
        return _call_constructor(value["class"], value["arguments"], tensors)
    return _INFINITE.get(value, value) if isinstance(value, str) else value
