"""Parameters seen from another side: transposed, reshaped, sliced, expanded, but with the same entries.

A forward rarely applies a weight as it is stored: `linear` transposes it, `einsum` permutes and flattens it, an expert
is one slice of a stack, a depthwise filter is squeezed. Every entry of such a view is an entry of the parameter. Which
one, is known by carrying the operations out on positions, as they are on labels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from senn.graph.tracing.labels import varying
from senn.graph.tracing.recorded import Call

_UNMOVED = frozenset(["detach", "alias", "clone", "to_copy", "lift_fresh"])
# By a number: zero columns stay zero, and each row is made of its own entries.
_SCALING = frozenset(["mul", "div", "neg"])
_MOVING = frozenset(
    (
        *("view", "unsafe_view", "reshape", "reshape_alias", "t", "transpose", "permute", "expand"),
        *("unsqueeze", "squeeze", "select", "slice", "split", "split_with_sizes", "unbind"),
        *("flip", "roll", "repeat", "index", "index_select", "diagonal", "unfold"),
    )
)


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightView:
    """A tensor whose entries are those of a parameter.

    Attributes:
        name: full name of the parameter.
        positions: for each dimension of the parameter, the position along it of every entry of the view; of the view's
            shape.
        whole: True if the view is the parameter, or its transpose.
        flipped: True if it is transposed, that is an odd number of times.
    """

    name: str
    positions: tuple[Tensor, ...]
    whole: bool = True
    flipped: bool = False

    @staticmethod
    def of(name: str, tensor: Tensor) -> WeightView:
        """Return the view of a parameter that is the parameter itself.

        Args:
            name: its full name.
            tensor: the parameter.
        """
        positions = []
        for dim, size in enumerate(tensor.shape):
            shape = [1] * tensor.dim()
            shape[dim] = size
            # Expanded: a large table takes no memory but that of one row.
            along = torch.arange(size, device=tensor.device).view(shape)
            positions.append(along.expand(tensor.shape))
        return WeightView(name=name, positions=tuple(positions))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the view."""
        return tuple(self.positions[0].shape)

    def axes_of(self, dim: int) -> set[int]:
        """Return the dimensions of the view along which a dimension of the parameter lies."""
        return {*self._axes[dim]}

    @cached_property
    def _axes(self) -> list[set[int]]:
        return [varying(positions) for positions in self.positions]

    def dims(self, axis: int) -> list[int]:
        """Return the dimensions of the parameter that lie along a dimension of the view."""
        return [dim for dim in range(len(self.positions)) if axis in self.axes_of(dim)]

    def positions_along(self, dim: int, axis: int) -> Tensor:
        """Return the positions along a dimension of the parameter that lie along a dimension of the view.

        Args:
            dim: the parameter's dimension.
            axis: the view's dimension.
        """
        return self.positions[dim].movedim(axis, 0).flatten(1)[:, 0]

    def entries(self, labels: Tensor) -> Tensor:
        """Return what belongs to the view's entries.

        Args:
            labels: of the parameter's shape, or with size 1 along some of its dimensions.
        """
        index = [
            torch.zeros_like(positions) if labels.shape[dim] == 1 else positions
            for dim, positions in enumerate(self.positions)
        ]
        return labels[tuple(index)]


def views_of(call: Call, view: WeightView) -> list[WeightView] | None:
    """Describe the outputs of an operation on a weight as views of it.

    Args:
        call: an operation whose first argument is the weight, or a view of it.
        view: that argument.

    Returns:
        One view for each output; None if the outputs are no longer the weight.
    """
    if call.operation in _UNMOVED:
        return [view]
    if call.operation in _SCALING and _is_number(call.args[1:]):
        return [replace(view, whole=False)]
    if call.operation not in _MOVING:
        return None
    moved = [_carried(call, positions) for positions in view.positions]
    outputs = [
        replace(view, positions=positions, whole=False) for positions in zip(*moved, strict=True)
    ]
    if any(one.shape != tuple(out.shape) for one, out in zip(outputs, call.outputs, strict=True)):
        return None  # a view as another dtype
    turns = _turns(call, view) if view.whole else None
    if turns is not None:
        return [replace(outputs[0], whole=True, flipped=view.flipped != turns)]
    return outputs


def _is_number(factors: tuple[Any, ...]) -> bool:
    return all(not isinstance(factor, Tensor) or factor.dim() == 0 for factor in factors)


def _carried(call: Call, positions: Tensor) -> list[Tensor]:
    """Carry out an operation on positions in place of the weight."""
    others = call.args[1:]
    try:
        return pytree.tree_leaves(call.func(positions, *others, **call.kwargs))
    except RuntimeError:
        if call.operation not in ("view", "unsafe_view"):
            raise
        return [
            positions.reshape(others[0])
        ]  # expanded positions have other strides than the weight


def _turns(call: Call, view: WeightView) -> bool | None:
    """Return whether an operation transposes a matrix (True) or leaves the weight as it is (False); else None."""
    operation, args = call.operation, call.args
    matrix = len(view.shape) == 2
    if matrix and operation == "t":
        return True
    if matrix and operation == "transpose":  # whose dimensions may be negative, or the same
        return bool((args[1] - args[2]) % 2)
    if matrix and operation == "permute":
        return bool(args[1][0] % 2)
    same = operation in ("view", "reshape", "expand") and tuple(call.outputs[0].shape) == view.shape
    return False if same else None
