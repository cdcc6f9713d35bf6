"""Records of a surgery plan, and look-ups that fail with one sentence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from senn.errors import DivergenceError, SennError, UnsupportedError
from senn.graph.types import ChannelGroup, DependencyGraph, InsertionPoint, LinearMap
from senn.surgery.index_maps import IndexMap, IndexMapBuilder
from senn.surgery.moves import Insert, Move
from senn.surgery.repeat import Addition

BEFORE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Modules before which a layer can be inserted."""

Fill = Literal["given", "neutral", "mean", "scale", "zero", "cycle"]
"""Values of new entries: the move's, the module's neutral value, the mean of the old units or the root of their mean
square, 0, or the old in turn."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Entries:
    """New entries along one dimension of a tensor.

    Attributes:
        dim: the dimension.
        offset: number of the first new position.
        count: number of new positions.
        fill: what they are filled with.
        values: the entries, if given.
        index: (width, k) positions of the old units.
        gains: (full name, dimension, positions) of parameters that scale the units that these entries make. A mean is
            then one of what they make after that.
    """

    dim: int
    offset: int
    count: int
    fill: Fill
    values: Tensor | None
    index: Tensor
    gains: tuple[tuple[str, int, Tensor], ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Scale:
    """A factor of some entries of a tensor.

    Attributes:
        dim: the dimension along which they lie.
        positions: old and new positions, as numbered before they are put in order.
        factor: the factor.
    """

    dim: int
    positions: Tensor
    factor: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Compensation:
    """Update of a map whose columns leave: W_kept += W_gone @ C[:, :-1], b += W_gone @ C[:, -1].

    Attributes:
        map: the map.
        gone: columns of its old matrix that leave.
        kept: columns of its old matrix that stay.
        coefficients: C, (gone, kept + 1).
    """

    # Column numbers of the matrix before any move: `new_tensors` compensates before it cuts.
    map: LinearMap
    gone: Tensor
    kept: Tensor
    coefficients: Tensor


@dataclass(eq=False, kw_only=True)
class SurgeryPlan:
    """Joint effect of several moves on a model, by name.

    Attributes:
        moves: as asked for.
        shapes: old shape of every tensor that is replaced, by full name.
        builders: by full tensor name and dimension, what is asked of the dimension.
        layouts: by full tensor name and dimension, where positions go.
        entries: by full tensor name, new entries of producers and elementwise tensors.
        compensations: in the order of the moves.
        inserts: layers before maps, in the order of the moves.
        appends: blocks and what comes after them, in the order of the moves.
        attributes: by (module, attribute, item), how much is added.
        scales: by full tensor name, factors of its entries (weights of normalizations).
        factors: by (module, attribute), a factor of a floating-point attribute (their eps).
        new_outputs: by how many entries the model's outputs grow, at the end of one dimension.
    """

    # By name everywhere: one plan is carried out on the model and on each of its averaged copies.
    moves: tuple[Move, ...] = ()
    shapes: dict[str, torch.Size] = field(default_factory=dict)
    builders: dict[str, dict[int, IndexMapBuilder]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    layouts: dict[str, dict[int, IndexMap]] = field(default_factory=dict)
    entries: dict[str, list[Entries]] = field(default_factory=lambda: defaultdict(list))
    compensations: list[Compensation] = field(default_factory=list)
    inserts: list[Insert] = field(default_factory=list)
    appends: list[Addition] = field(default_factory=list)
    attributes: dict[tuple[str, str, int | None], int] = field(
        default_factory=lambda: defaultdict(int)
    )
    scales: dict[str, list[Scale]] = field(default_factory=lambda: defaultdict(list))
    factors: dict[tuple[str, str], float] = field(default_factory=dict)
    new_outputs: int = 0


def join(module: str, tensor: str) -> str:
    """Return the full name of a tensor, as in `state_dict`.

    Args:
        module: name of the module; empty for the model itself.
        tensor: name in the module.
    """
    return f"{module}.{tensor}" if module else tensor


def find_tensor(model: nn.Module, name: str) -> Tensor:
    """Return a plain parameter or buffer.

    Args:
        model: that holds it.
        name: its full name.

    Raises:
        SennError: the model has no such module.
        UnsupportedError: it is no plain parameter or buffer, but computed or of another class.
    """
    path, _, key = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise SennError(
            f"the model has no module '{path}': was its graph found on another model?"
        ) from None
    # Not by `getattr`, which finds what a parametrization computes as well.
    tensor = module._parameters.get(key, module._buffers.get(key))
    if tensor is None:
        raise UnsupportedError(f"'{name}' is not a plain parameter or buffer of the model")
    # Exact types: a subclass (DTensor, quantized) may have a shape of its own idea.
    if type(tensor) not in (nn.Parameter, Tensor) and type(tensor) is not nn.Buffer:
        raise UnsupportedError(f"'{name}' is a {type(tensor).__name__}, which can't be resized")
    return tensor


def find_group(graph: DependencyGraph, name: str) -> ChannelGroup:
    """Return a channel group by its name.

    Args:
        graph: that holds it.
        name: the group's.

    Raises:
        SennError: there is no such group.
    """
    try:
        return graph.group(name)
    except KeyError:
        known = ", ".join(repr(group.name) for group in graph.groups) or "none"
        raise SennError(f"there is no channel group '{name}' to resize; groups: {known}") from None


def find_insertion_point(graph: DependencyGraph, name: str) -> InsertionPoint:
    """Return an insertion point by the name of its map.

    Args:
        graph: that holds it.
        name: the map's.

    Raises:
        SennError: there is no such insertion point.
    """
    for point in graph.insertion_points:
        if point.module == name:
            return point
    known = ", ".join(repr(point.module) for point in graph.insertion_points) or "none"
    raise SennError(f"there is no insertion point '{name}' for a layer; insertion points: {known}")


def check_values(what: str, values: Tensor, shape: Sequence[int]) -> None:
    """Check the shape of values that a move gives, and that they are finite.

    Args:
        what: the values, in words.
        values: to be checked.
        shape: that they must have.

    Raises:
        SennError: they have another shape.
        DivergenceError: they are not finite.
    """
    if tuple(values.shape) != tuple(shape):
        raise SennError(f"{what} must have shape {tuple(shape)}, not {tuple(values.shape)}")
    # Without a probe nothing else would notice.
    if not values.isfinite().all():
        raise DivergenceError(f"{what} are not finite")
