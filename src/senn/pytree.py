"""Nested tensors (pytrees) that models take and return: torch's pytree, with dataclasses and mappings of any type.

Inputs are a tensor (one positional argument), a tuple of positional arguments, a mapping of keyword arguments, or
`Arguments` for both. Wherever a batch is cut, the tensors that have one entry per sample are cut, the others passed
whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from senn.errors import UnsupportedError

Inputs = Any
"""A tensor, a tuple of positional arguments, a mapping of keyword arguments, or `Arguments`."""

Output = Callable[[Any], Tensor]
"""Finds, in what the model returns, the tensor that the loss takes."""


class Arguments:
    """Positional and keyword arguments of a model's forward.

    Args:
        *args: positional arguments.
        **kwargs: keyword arguments.

    >>> import senn, torch
    >>> inputs = senn.Arguments(torch.zeros(4, 2), scale=2.0)
    >>> inputs.args[0].shape, inputs.kwargs
    (torch.Size([4, 2]), {'scale': 2.0})
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.kwargs = kwargs


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments that the inputs stand for."""
    if isinstance(inputs, Arguments):
        return inputs.args, inputs.kwargs
    if isinstance(inputs, tuple):
        return inputs, {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs,), {}


def call(model: nn.Module, inputs: Inputs) -> Any:
    """What the model returns for these inputs."""
    args, kwargs = arguments(inputs)
    return model(*args, **kwargs)


def tensor_leaves(tree: Any) -> list[Tensor]:
    """All tensors of a nesting of tuples, lists, mappings, dataclasses and `Arguments`, in order."""
    found: list[Tensor] = []
    map_leaves(found.append, tree)
    return found


def map_leaves(change: Callable[[Tensor], Any], tree: Any) -> Any:
    """Build the same nesting with `change(tensor)` for every tensor in it.

    Args:
        change: called with each tensor, in order.
        tree: any nesting of tuples, lists, mappings, dataclasses, `Arguments` and what is registered with torch's
            pytree; whatever else it holds stays the same object.
    """

    def change_leaf(leaf: Any) -> Any:
        return change(leaf) if isinstance(leaf, Tensor) else _map_within(change, leaf)

    # torch's pytree would make a plain tuple of a torch.Size
    return pytree.tree_map(change_leaf, tree, is_leaf=lambda node: isinstance(node, torch.Size))


def _map_within(change: Callable[[Tensor], Any], leaf: Any) -> Any:
    """Map over what torch's pytree takes for a leaf: it looks at exact types, and knows no dataclasses."""
    if isinstance(leaf, Arguments):
        return Arguments(*map_leaves(change, leaf.args), **map_leaves(change, leaf.kwargs))
    if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
        names = [field.name for field in dataclasses.fields(leaf)]
        return dataclasses.replace(leaf, **{name: map_leaves(change, getattr(leaf, name)) for name in names})
    if isinstance(leaf, Mapping):
        return type(leaf)({key: map_leaves(change, item) for key, item in leaf.items()})  # type: ignore[call-arg]
    if isinstance(leaf, tuple | list):
        return type(leaf)(map_leaves(change, item) for item in leaf)
    return leaf


def clone(inputs: Inputs) -> Inputs:
    """Inputs of their own memory, which a forward pass may write to."""
    return map_leaves(lambda tensor: tensor.detach().clone(), inputs)


def count(inputs: Inputs) -> int:
    """Number of samples: the first dimension of the first tensor that has any; 0 without one."""
    return next((len(tensor) for tensor in tensor_leaves(inputs) if tensor.dim()), 0)


def index_batch(inputs: Inputs, samples: slice | Tensor, of: int) -> Inputs:
    """Some samples of a batch of `of` samples."""

    def cut(tensor: Tensor) -> Tensor:
        if not tensor.dim() or len(tensor) != of:
            return tensor
        return tensor[samples] if isinstance(samples, slice) else tensor.index_select(0, samples.to(tensor.device))

    return map_leaves(cut, inputs)


def head(inputs: Inputs, number: int = 2) -> Inputs:
    """The first samples of a batch."""
    return index_batch(inputs, slice(0, number), count(inputs))


def prediction(result: Any, output: Output | None = None) -> Tensor:
    """The tensor that the loss takes, in what a model returned.

    Args:
        result: a tensor, or a nesting of tensors of which `logits` or the only floating-point one is meant.
        output: finds it where that isn't clear.

    Raises:
        UnsupportedError: it isn't clear which tensor is meant, or there is none.
    """
    if output is not None:
        result = output(result)
    if isinstance(result, Tensor):
        return result
    named = result.get("logits") if isinstance(result, Mapping) else getattr(result, "logits", None)
    if isinstance(named, Tensor):
        return named
    floating = [tensor for tensor in tensor_leaves(result) if torch.is_floating_point(tensor)]
    if len(floating) == 1:
        return floating[0]
    what = f"{len(floating)} tensors" if floating else "no tensor"
    raise UnsupportedError(
        f"the model returns a {type(result).__name__} with {what}, and the loss takes one: say which by output=..."
    )
