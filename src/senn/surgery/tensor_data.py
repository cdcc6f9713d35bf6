"""Exchange of a tensor's data, so that the tensor stays the same object for everybody who holds it.

An optimizer's groups and state, kept lists of parameters, averages, hooks and weak references all know a Parameter as
an object. So a Parameter that changes size gets other data: `parameter.data = values`. Two things remain for autograd,
which has recorded the former shape: saved tensors are checked by version, and gradients are summed up by a node of the
graph that remembers the shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge, increment_version

from senn.errors import SennError


@dataclass(frozen=True, eq=False, kw_only=True)
class Data:
    """What a tensor holds.

    Attributes:
        values: its entries, detached.
        gradient: `.grad`, the very object.
    """

    values: Tensor
    gradient: Tensor | None

    @classmethod
    def of(cls, tensor: Tensor) -> Data:
        """Record what a tensor holds now, without a copy."""
        # Only of a Parameter: torch warns where `.grad` of another kind of tensor is read.
        gradient = tensor.grad if isinstance(tensor, nn.Parameter) else None
        return cls(values=tensor.data, gradient=gradient)

    def put_into(self, tensor: Tensor) -> None:
        """Let a tensor hold this from now on."""
        if isinstance(tensor, nn.Parameter):
            tensor.grad = None  # torch wants a gradient to have its tensor's shape
        tensor.data = self.values
        if isinstance(tensor, nn.Parameter):
            tensor.grad = self.gradient

    def is_like(self, tensor: Tensor) -> bool:
        """Return True if a tensor has this shape, dtype and device."""
        mine, its = self.values, tensor
        return (mine.shape, mine.dtype, mine.device) == (its.shape, its.dtype, its.device)


def outdate_graphs(tensor: Tensor, name: str) -> None:
    """Make a backward pass fail that goes through a forward pass from before a change of a tensor's shape.

    Args:
        tensor: a Parameter or buffer with its new data.
        name: its full name, for the message.
    """
    # Where an operation has saved the tensor, autograd compares versions and raises.
    increment_version(tensor)
    if not tensor.is_leaf or not (tensor.is_floating_point() or tensor.is_complex()):
        return
    # The node that sums up gradients (AccumulateGrad) lives as long as some graph does, and remembers the shape. A new
    # forward pass must not find it again, and torch forgets it only where data of another dtype or device is set. This
    # is for frozen tensors too: they may have such a node from before.
    if tensor.requires_grad:
        with torch.inference_mode(False):
            node = get_gradient_edge(tensor).node
        node.register_prehook(_refusal(name))
    values = tensor.data
    other = torch.complex128 if tensor.is_complex() else torch.float64
    if tensor.dtype == other:
        other = torch.complex64 if tensor.is_complex() else torch.float32
    tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = values


def _refusal(name: str) -> Callable[[Any], None]:
    def refuse(_: Any) -> None:
        raise SennError(
            f"this backward pass goes through a forward pass from before '{name}' changed size: run the forward pass "
            "again"
        )

    return refuse
