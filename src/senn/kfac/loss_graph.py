"""The autograd graph of a loss at one batch's outputs: gradient rows, products with the Hessian, operations in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from senn.errors import UnsupportedError


@dataclass(frozen=True, eq=False, kw_only=True)
class LossGraph:
    """A loss at the outputs of one batch, differentiable twice as far as its operations are.

    Attributes:
        name: of the loss, for messages.
        leaf: (N, ...) outputs, the graph's only input that counts.
        value: the loss, a scalar.
        rows: gradient rows (N, m), N dL/dy_i.
    """

    name: str
    leaf: Tensor
    value: Tensor
    rows: Tensor

    def product(self, u: Tensor) -> Tensor:
        """Multiply rows u (N, m) by the Hessians of all samples in one backward pass, since samples don't mix.

        Raises:
            UnsupportedError: an operation of the loss has no second derivative.
        """
        if not self.rows.requires_grad:
            return torch.zeros_like(u)
        try:
            (result,) = torch.autograd.grad(
                self.rows, self.leaf, u, retain_graph=True, allow_unused=True
            )
        except RuntimeError as error:
            raise _only_once(self.name, str(error)) from error
        return torch.zeros_like(u) if result is None else result.reshape(u.shape)

    def check_twice(self) -> None:
        """Refuse functions whose backward pass is marked as one that can't be differentiated.

        Autograd takes what they return for a constant where that is all it is asked for, so their curvature would be
        missing without a word.

        Raises:
            UnsupportedError: the loss holds one.
        """
        for node in _nodes(self.value.grad_fn):
            function = getattr(node, "_forward_cls", None)
            backward = getattr(function, "backward", None)
            # `once_differentiable` wraps the method, and torch has no other mark of it
            if hasattr(backward, "__wrapped__"):
                own = getattr(function, "__name__", "a function of it")
                raise _only_once(self.name, f"{own} is once_differentiable")

    def operations(self, *names: str) -> list[Any]:
        """Find operations by the names of their autograd nodes, such as `LogSoftmaxBackward0`."""
        return [node for node in _nodes(self.value.grad_fn) if node.name() in names]

    def slope(self, edge: GradientEdge) -> Tensor | None:
        """Differentiate the loss with respect to what an operation returned; None if it doesn't depend on that."""
        (slope,) = torch.autograd.grad(self.value, edge, retain_graph=True, allow_unused=True)
        return None if slope is None else slope.detach()

    def pull(self, edge: GradientEdge, numbers: Tensor) -> Tensor | None:
        """Pull numbers at an operation's input back to the outputs, J^T numbers, of the shape of `leaf`."""
        (pulled,) = torch.autograd.grad(
            [edge], self.leaf, [numbers], retain_graph=True, allow_unused=True
        )
        return None if pulled is None else pulled.detach()


def _only_once(name: str, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"the loss {name} cannot be differentiated twice ({why}): use metric='euclidean', which needs first "
        "derivatives only"
    )


def _nodes(start: Any) -> Iterator[Any]:
    """Walk an autograd graph, each node once."""
    seen, left = {start}, [start]
    while left:
        node = left.pop()
        yield node
        # the losses' own graph only: outputs are cut off from the network
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                left.append(before)
