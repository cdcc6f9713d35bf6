"""The autograd graph of a loss at one batch's outputs: gradient rows, products with the Hessian, operations in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from senn.errors import UnsupportedError

FRACTIONS = (0.0, *(4.0**-n for n in range(4, 0, -1)))
"""Of the outputs, at which a loss shows the scale of its curvature: dense where a softmax goes from uniform to one."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LossGraph:
    """A loss at the outputs of one batch, differentiable twice as far as its operations are.

    Attributes:
        name: of the loss, for messages.
        leaf: (N, ...) outputs, the graph's only input that counts.
        value: the loss, a scalar.
        rows: gradient rows (N, m), N dL/dy_i.
        at: builds the graph of the same loss at other outputs of that shape.
    """

    name: str
    leaf: Tensor
    value: Tensor
    rows: Tensor
    at: Callable[[Tensor], LossGraph]

    def toward_zero(self) -> Iterator[LossGraph]:
        """Build graphs of the same loss at fractions of the outputs, zero among them.

        Where a sample is fitted perfectly, its curvature is a difference of numbers that are larger by far: softmax
        probabilities of almost 1, say. On the way from outputs of zero these numbers show in the curvature.
        """
        outputs = self.leaf.detach()
        return (self.at(fraction * outputs) for fraction in FRACTIONS)

    @cached_property
    def rounding(self) -> float:
        """Rounding of a product with normal rows, whatever the curvature of the sample itself."""
        u = random_rows(self.rows)
        products = (graph.product(u).abs() for graph in (self, *self.toward_zero()))
        # the gradient at zero may be infinite: that of a logarithm of the outputs
        scale = max(float(torch.where(p.isfinite(), p, 0.0).max()) for p in products)
        return 100 * torch.finfo(self.rows.dtype).eps * scale

    def without_rounding(self, values: Tensor) -> Tensor:
        """Set eigenvalues that are zero but for rounding to zero.

        Args:
            values: eigenvalues of the Hessians of samples, or of blocks of them, (..., n).

        Raises:
            UnsupportedError: one is negative by more than rounding, so the loss isn't convex in the outputs.
        """
        # the rounding of n backward passes, relative to the largest eigenvalue of each
        noise = 100 * torch.finfo(self.rows.dtype).eps * values.abs().amax(-1, keepdim=True)
        lowest = float(values.min())
        if (values < -noise).any() and lowest < -self.rounding:
            raise UnsupportedError(
                f"the loss {self.name} is not convex in the outputs: use metric='euclidean'"
            )
        return torch.where(values <= noise, 0.0, values)

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


def random_rows(rows: Tensor) -> Tensor:
    """Draw normal rows of the shape of `rows`, the same ones each time."""
    # a generator of its own: looking at a loss leaves the global random state alone
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows.shape, generator=generator).to(rows)


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
