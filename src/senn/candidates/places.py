"""Places where units could be added, as an initializer sees them, and what it may answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from senn.candidates.initializers import NewUnits, PlaceActivations, PlaceGradients, ReaderRows
from senn.errors import SennError
from senn.graph import ChannelGroup, LinearMap, get_tensor
from senn.kfac.batch_layout import BatchLayout
from senn.kfac.capture import capture
from senn.kfac.layer_statistics import LayerRows
from senn.kfac.loss_metric import LossMetric
from senn.pytree import Inputs, Output, Targets

FittedSamples = Callable[[], tuple[Inputs, Targets, Tensor | None]]
"""Gives the samples on which steps are fitted, with their weights; gathered from all ranks, so only where asked for."""

Gradients = Callable[[str, Sequence[str]], PlaceGradients]
"""Reads the rows of a map, and of the maps that read its units."""


def gradient_reader(
    model: nn.Module,
    maps: Mapping[str, LinearMap],
    *,
    samples: FittedSamples,
    metric: LossMetric,
    layouts: Mapping[str, BatchLayout],
    output: Output | None,
) -> Gradients:
    """Build the function that reads rows at a place, with their gradients.

    Args:
        model: the model, read only.
        maps: linear maps that can be read, by name.
        samples: gives the samples.
        metric: the loss.
        layouts: by map, how its rows belong to samples.
        output: finds the outputs in what the model returns; None where that is clear.
    """

    def read(name: str, readers: Sequence[str]) -> PlaceGradients:
        inputs, targets, weights = samples()
        # A generator of its own: whether an initializer asks for gradients must not change what is drawn next.
        rows = capture(
            model,
            [*dict.fromkeys((name, *readers))],
            inputs,
            targets,
            metric,
            generator=torch.Generator().manual_seed(0),
            weights=None if weights is None else weights / weights.mean(),
            find=output,
            layouts={one: layouts[one] for one in (name, *readers)},
        ).rows
        own = rows[name]
        # A grouped reader has a label for each group, and behind pooling there are other locations.
        aligned = {
            reader: rows[reader]
            for reader in readers
            if reader in rows and rows[reader].locations == own.locations
        }
        width = own.a.shape[1] - (maps[name].bias is not None)
        return PlaceGradients(
            x=_live(own.a[:, :width], own.live),
            readers={reader: _reader_rows(one, own.live) for reader, one in aligned.items()},
        )

    return read


def _reader_rows(rows: LayerRows, live: Tensor | None) -> ReaderRows:
    return ReaderRows(
        a=_live(rows.a, live),
        output_grad=_live(rows.output_grad, live),
        pseudo_grad=_live(rows.pseudo_grad, live),
    )


def _live(rows: Tensor, live: Tensor | None) -> Tensor:
    return rows if live is None else rows[live]


def outgoing_shapes(
    model: nn.Module, group: ChannelGroup, maps: Mapping[str, LinearMap]
) -> dict[str, tuple[int, int]]:
    """Shapes of what reads a group: by readable map its outputs and the columns that each unit has.

    Args:
        model: the model.
        group: the group.
        maps: linear maps that can be read, by name.
    """
    shapes: dict[str, tuple[int, int]] = {}
    for dim in group.dims_of("consumer"):
        if dim.map not in maps:
            continue
        one = maps[dim.map]
        outputs = get_tensor(model, one.weight).shape[one.out_dim]
        columns = dim.index.shape[1] * one.kernel_numel
        _, known = shapes.get(one.name, (outputs, 0))  # a map may read a group in two places
        shapes[one.name] = (outputs, known + columns)
    return shapes


def checked(units: NewUnits, place: PlaceActivations, count: int) -> NewUnits:
    """Check what an initializer drew, and bring it to the dtype of the place.

    Args:
        units: what was drawn.
        place: where.
        count: number of units that were asked for.

    Raises:
        SennError: shapes or names don't fit the place, or a number isn't finite.
    """
    rows = count * place.rows_per_unit
    _check_tensor("weights", units.weight, (rows, place.x.shape[1]), place)
    if units.bias is not None:
        _check_tensor("biases", units.bias, (rows,), place)
    for name, values in units.outgoing.items():
        if name not in place.outgoing_shapes:
            raise SennError(
                f"the initializer gave outgoing weights at {name!r}, which doesn't read the units of {place.group!r}"
            )
        outputs, columns = place.outgoing_shapes[name]
        _check_tensor(f"outgoing weights at {name!r}", values, (outputs, count * columns), place)
    return NewUnits(
        weight=units.weight.detach().to(place.x),
        bias=None if units.bias is None else units.bias.detach().to(place.x),
        outgoing={name: one.detach() for name, one in units.outgoing.items()},
    )


def _check_tensor(
    what: str, values: Tensor, shape: tuple[int, ...], place: PlaceActivations
) -> None:
    if tuple(values.shape) != shape:
        raise SennError(
            f"the initializer gave {what} of shape {tuple(values.shape)} for {place.group!r}, where {shape} is needed"
        )
    if not torch.isfinite(values).all():
        raise SennError(f"the initializer gave {what} for {place.group!r} that aren't finite")
