"""What a weight reads and makes, however it is stored, viewed and multiplied.

A product sums over one axis of the weight's view, its inputs; another counts its outputs; those in front of a stack are
shared with the input and the output (experts, members of an ensemble, heads). Each dimension of the stored parameter
lies along one of these. Its positions along the inputs are columns that read units, those along the outputs rows that
make them; where two dimensions lie along the outputs (heads and their features), each pair is a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from senn.graph.tracing.labels import varying
from senn.graph.tracing.rules.pointwise import fix_along
from senn.graph.tracing.trace_recorder import TraceRecorder
from senn.graph.tracing.weight_view import WeightView


def columns_of(trace: TraceRecorder, source: Tensor, axis: int) -> tuple[Tensor, list[Tensor]]:
    """Determine what a linear map reads with each of its columns.

    Units that are read by one column, at other locations, are the same unit.

    Args:
        trace: the recorder.
        source: the input.
        axis: its dimension that counts features.

    Returns:
        (features,) long, the label of each column; and the label maps whose units vary along other dimensions only.
    """
    return _read(trace, source, [axis])


def _read(trace: TraceRecorder, source: Tensor, axes: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Determine what is read along some dimensions of an input, the last of which counts features.

    Returns:
        Labels of the sizes of these dimensions; and the label maps whose units vary along other dimensions only.
    """
    elsewhere = []
    sizes = [source.shape[axis] for axis in axes]
    columns = torch.zeros(sizes, dtype=torch.long, device=source.device)
    for label_map in trace.labels_of(source):
        if not bool(label_map.any()):
            continue
        dims = varying(label_map)
        if dims and dims.isdisjoint(axes):
            if trace.record.is_made(label_map):
                elsewhere.append(label_map)
            continue
        stacked = dims & set(axes[:-1])
        if (
            axes[-1] in dims and stacked
        ):  # features of each member of a stack: a unit is one of each
            label_map = fix_along(trace, label_map, stacked)
        front = label_map.movedim(list(axes), list(range(-len(axes), 0)))
        locations = front.reshape(-1, *sizes)
        first = locations.amax(0)  # the label at some location where there is one
        trace.record.merge(locations, first.expand_as(locations))
        sometimes_none = (locations == 0).any(0)
        trace.record.refuse(
            first[sometimes_none], f"its units meet a tensor that has no units in {trace.place}"
        )
        if bool((columns != 0).any()):
            trace.record.merge(columns, first)
        columns = torch.where(columns != 0, columns, first)
    return columns, elsewhere


def spread(labels: Tensor, axis: int, like: Tensor) -> Tensor:
    """Return a label map with labels along one axis.

    Args:
        labels: (features,) long.
        axis: the axis.
        like: a tensor of the shape that the label map gets.
    """
    shape = [1] * like.dim()
    shape[axis] = len(labels)
    # A copy, not an expanded view: units may be written into the label map later.
    return labels.to(like.device).view(shape).expand(like.shape).clone()


@dataclass(frozen=True, kw_only=True)
class Axes:
    """Which dimension of a weight's view is which.

    Attributes:
        inputs: its dimension that is summed over.
        outputs: its dimension that counts outputs.
        stack: its dimensions in front, which input and output have at the same place.
        source: dimension of the input that is summed over.
        made: dimension of the output that counts outputs.
    """

    inputs: int
    outputs: int
    source: int
    made: int
    stack: tuple[int, ...] = ()


def apply_weight(
    trace: TraceRecorder,
    view: WeightView,
    source: Tensor,
    output: Tensor,
    axes: Axes,
    *,
    plain: bool = True,
) -> list[Tensor] | None:
    """Record that a weight is multiplied with an input.

    Args:
        trace: the recorder.
        view: the weight, in the shape in which it is multiplied.
        source: the input.
        output: the product.
        axes: which dimension is which.
        plain: False if the product can't be recorded for scoring.

    Returns:
        Label maps of the product; None if the weight lies across inputs and outputs.
    """
    stack = [axis for axis in axes.stack if view.dims(axis)]
    read, made = stored_dims(trace, view, axes.inputs, axes.outputs)
    if not read or not made:
        return None
    stacked = sorted({dim for axis in stack for dim in view.dims(axis)})
    if not {*read, *made}.isdisjoint(stacked):
        return None
    columns, elsewhere = _read(trace, source, [*stack, axes.source])
    trace.weight_use(
        view,
        stored_columns(trace, view, columns, [*stack, axes.inputs], [*stacked, *read]),
        source,
        in_dim=read[-1],
        out_dim=made[-1],
        axis=axes.source,
        plain=plain and len(view.positions) == 2,
    )
    rows = made_rows(trace, view, [*stack, axes.outputs], [*stacked, *made])
    shape = [1] * output.dim()
    for axis, size in zip([*stack, axes.made], rows.shape, strict=True):
        shape[axis] = size
    # A copy, not an expanded view: units may be written into the label map later.
    label_maps = [rows.to(output.device).view(shape).expand(output.shape).clone()]
    # Units along other dimensions (tokens, heads) pass a linear map: they are locations to it.
    for label_map in elsewhere:
        across = label_map.amax(axes.source, keepdim=True)
        label_maps.append(across.expand(output.shape).clone())
    return label_maps


def stored_dims(
    trace: TraceRecorder, view: WeightView, inputs: int, outputs: int
) -> tuple[list[int], list[int]]:
    """Find which dimensions of a stored parameter lie along the inputs and along the outputs of its view.

    Args:
        trace: the recorder.
        view: the view.
        inputs: its dimension of inputs.
        outputs: its dimension of outputs.

    Returns:
        The dimensions of the parameter; none for either if some lie along both.
    """
    found = {axis: view.dims(axis) for axis in (inputs, outputs)}
    if set(found[inputs]) & set(found[outputs]):
        return [], []
    # A dimension of size 1 lies nowhere. What is left over is told by its size, and by its place.
    rank, sizes = len(view.positions), trace.tensors[view.name].shape
    taken = {dim for axis in range(len(view.shape)) for dim in view.dims(axis)}
    for axis in (outputs, inputs):
        free = [dim for dim in range(rank) if dim not in taken]
        if found[axis] or not free:
            continue
        place = rank - 1 - axis if view.flipped else axis
        found[axis] = [min(free, key=lambda dim: (sizes[dim] != 1, dim != place))]
        taken |= set(found[axis])
    return found[inputs], found[outputs]


def _positions(view: WeightView, axes: Sequence[int], dims: Sequence[int]) -> list[Tensor]:
    """Return the positions of each dimension of a parameter along some axes of its view, 0 for those not in `dims`."""
    found = []
    for dim, positions in enumerate(view.positions):
        for axis in range(len(view.shape)):
            if axis not in axes:
                positions = positions.narrow(axis, 0, 1)
        flat = positions.movedim(list(axes), list(range(len(axes))))
        flat = flat.reshape([view.shape[axis] for axis in axes])
        found.append(flat if dim in dims else torch.zeros_like(flat))
    return found


def stored_columns(
    trace: TraceRecorder,
    view: WeightView,
    columns: Tensor,
    axes: Sequence[int],
    dims: Sequence[int],
) -> Tensor:
    """Bring the labels that a view reads to the stored parameter.

    Args:
        trace: the recorder.
        view: the view.
        columns: the labels, of the sizes of `axes`.
        axes: dimensions of the view.
        dims: dimensions of the parameter that lie along them.

    Returns:
        (size,) long if there is one such dimension; else of the parameter's rank, with size 1 along the others.
    """
    sizes = trace.tensors[view.name].shape
    shape = [size if dim in dims else 1 for dim, size in enumerate(sizes)]
    place = torch.zeros_like(columns)
    for size, positions in zip(shape, _positions(view, axes, dims), strict=True):
        place = place * size + positions
    place, labels = place.flatten(), columns.flatten()
    stored = columns.new_zeros(torch.Size(shape).numel())
    stored = stored.scatter_reduce(0, place, labels, "amax")
    # Columns that hold the same entries of the parameter read the same units, or none.
    trace.record.merge(labels, stored[place])
    trace.record.refuse(
        stored[place][labels == 0],
        f"its units meet a tensor that has no units in {trace.place}",
    )
    return stored if len(dims) == 1 else stored.view(shape)


def made_rows(
    trace: TraceRecorder, view: WeightView, axes: Sequence[int], dims: Sequence[int]
) -> Tensor:
    """Return the labels of what a view makes.

    Args:
        trace: the recorder.
        view: the view.
        axes: its dimensions along which outputs lie.
        dims: dimensions of the parameter that lie along them.

    Returns:
        Labels of the sizes of `axes`.
    """
    labels = trace.produces(view.name, dims)
    return labels[tuple(_positions(view, axes, dims))]
