"""Nested tensors (pytrees) that models take and return: torch's pytree, with dataclasses and mappings of any type.

Inputs are a tensor (one positional argument), a tuple of positional arguments, a mapping of keyword arguments, or
`Arguments` for both. Where samples of a batch are selected, tensors with one entry per sample are indexed, and all
others are passed whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from senn.errors import SennError, UnsupportedError

Inputs = Any
"""A tensor, a tuple of positional arguments, a mapping of keyword arguments, or `Arguments`."""

Targets = Any
"""What the loss takes beside the outputs: a tensor, or a nesting of tensors whose first dimensions count samples."""

Output = Callable[[Any], Tensor]
"""Function from what the model returns to the tensor that the loss takes."""

Prepare = Callable[[Any], Sequence[Any]]
"""Function from a batch of any kind to inputs, targets and perhaps weights."""


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
    """Return the positional and keyword arguments that the inputs stand for."""
    if isinstance(inputs, Arguments):
        return inputs.args, inputs.kwargs
    if isinstance(inputs, tuple):
        return inputs, {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs,), {}


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Call a model.

    Args:
        model: any module.
        inputs: as in the module's docstring.

    Returns:
        Whatever the model returns.
    """
    args, kwargs = arguments(inputs)
    return model(*args, **kwargs)


def tensor_leaves(tree: Any) -> list[Tensor]:
    """Return all tensors of a pytree, in order.

    >>> import torch
    >>> [leaf.shape[0] for leaf in tensor_leaves({"a": torch.zeros(2), "b": [torch.zeros(3), "text"]})]
    [2, 3]
    """
    found: list[Tensor] = []
    map_leaves(found.append, tree)
    return found


def map_leaves(change: Callable[[Tensor], Any], tree: Any) -> Any:
    """Apply a function to every tensor of a pytree.

    Args:
        change: function that is called with each tensor, in order.
        tree: nesting of tuples, lists, mappings, dataclasses, `Arguments` and classes registered with torch's pytree.

    Returns:
        The same nesting of the results; leaves that aren't tensors stay the same objects.
    """
    if isinstance(tree, Tensor):
        return change(tree)

    def change_leaf(leaf: Any) -> Any:
        return change(leaf) if isinstance(leaf, Tensor) else _map_within(change, leaf)

    # torch's pytree would turn a torch.Size into a plain tuple.
    return pytree.tree_map(change_leaf, tree, is_leaf=lambda node: isinstance(node, torch.Size))


def _map_within(change: Callable[[Tensor], Any], leaf: Any) -> Any:
    """Map over nestings that torch's pytree takes for leaves."""
    # torch compares exact types and knows no dataclasses.
    # Dataclasses before mappings: outputs of transformers are both, and only the first way keeps their fields.
    if isinstance(leaf, Arguments):
        return Arguments(*map_leaves(change, leaf.args), **map_leaves(change, leaf.kwargs))
    if dataclasses.is_dataclass(leaf) and not isinstance(
        leaf, type
    ):  # a dataclass itself counts as one, too
        names = [field.name for field in dataclasses.fields(leaf)]
        return dataclasses.replace(
            leaf, **{name: map_leaves(change, getattr(leaf, name)) for name in names}
        )
    if isinstance(leaf, Mapping):
        return type(leaf)({key: map_leaves(change, item) for key, item in leaf.items()})  # type: ignore[call-arg]
    if isinstance(leaf, tuple | list):
        return type(leaf)(map_leaves(change, item) for item in leaf)
    return leaf


def clone(inputs: Inputs) -> Inputs:
    """Copy inputs into memory of their own, which a forward pass may write to."""
    return map_leaves(lambda tensor: tensor.detach().clone(), inputs)


def count(inputs: Inputs) -> int:
    """Return the number of samples: the length of the first tensor that has one, or 0.

    Empty tensors (no series of exogenous variables, say) hold no sample each, so that another tensor is asked.
    """
    lengths = [len(tensor) for tensor in tensor_leaves(inputs) if tensor.dim()]
    return next((length for length in lengths if length), 0)


def count_samples(inputs: Inputs, targets: Targets) -> int:
    """Return the number of samples of a batch.

    Args:
        inputs: inputs of the batch.
        targets: targets of the batch.

    Raises:
        SennError: there are no tensors, targets disagree, or no input has an entry for each of them.

    >>> import torch
    >>> count_samples({"x": torch.zeros(4, 2), "scale": torch.ones(1)}, (torch.zeros(4), torch.zeros(4, 3)))
    4
    """
    lengths = [
        [len(tensor) for tensor in tensor_leaves(tree) if tensor.dim()]
        for tree in (inputs, targets)
    ]
    if not all(lengths):
        raise SennError(
            "a batch's inputs must be tensors (or a tuple, mapping or dataclass of them), and so must its targets: "
            f"these are a {type(inputs).__name__} and a {type(targets).__name__}"
        )
    found = lengths[1][0]
    if any(length != found for length in lengths[1]):
        several = " and ".join(map(str, lengths[1]))
        raise SennError(
            f"the targets of a batch need an entry for each sample in every tensor, and they have {several}"
        )
    if found not in lengths[0]:
        raise SennError(f"the batch has inputs for {count(inputs)} samples and targets for {found}")
    return found


def index_batch(inputs: Inputs, samples: slice | Tensor, of: int) -> Inputs:
    """Select samples of a batch.

    Args:
        inputs: the batch.
        samples: a slice, or the samples' numbers (int64).
        of: number of samples of the batch; tensors of another first dimension are passed whole.

    >>> import torch
    >>> index_batch((torch.arange(4), torch.zeros(2)), slice(0, 2), of=4)
    (tensor([0, 1]), tensor([0., 0.]))
    """

    def select(tensor: Tensor) -> Tensor:
        if not tensor.dim() or len(tensor) != of:
            return tensor
        if isinstance(samples, slice):
            return tensor[samples]
        return tensor.index_select(0, samples.to(tensor.device))

    return map_leaves(select, inputs)


def head(inputs: Inputs, number: int = 2) -> Inputs:
    """Select the first samples of a batch.

    Args:
        inputs: the batch.
        number: number of samples.
    """
    return index_batch(inputs, slice(0, number), count(inputs))


def prediction(result: Any, output: Output | None = None) -> Tensor:
    """Find the tensor that the loss takes in what a model returned.

    Args:
        result: a tensor, or a pytree with `logits` or with a single floating-point tensor.
        output: finds the tensor in any other result; None where that isn't needed.

    Returns:
        The outputs; (N, ...) for N samples.

    Raises:
        UnsupportedError: it isn't clear which tensor is meant, or there is none.
    """
    # The user's function first, as it may choose another tensor than `logits` (a model with two heads).
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
