"""Balance of new units: as long incoming weights beside their outgoing ones as the existing units have.

A natural step asks of a unit with a small activation for long outgoing weights. An optimizer that moves every entry
equally far would then move the function by the unit's incoming weights many times as fast as by those of existing
units, and by its outgoing ones many times as slowly. Where a unit is positively homogeneous, as with ReLU, incoming
weights and biases times s and outgoing weights over s give the same function, and s is free to choose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from senn.surgery.reindex import NewPositions

ROUNDING = 1e-5
"""Relative change of the loss that is taken for rounding: a unit that isn't homogeneous changes it by more."""


def existing_ratio(positions: Sequence[NewPositions]) -> float:
    """Return the length of the incoming weights of a group's existing units over that of their outgoing ones.

    Args:
        positions: where the new units stand.

    Returns:
        Ratio of the median lengths; NaN where there are none.
    """
    incoming, outgoing = _weights(positions, "producer"), _weights(positions, "consumer")
    if not incoming or not outgoing:
        return math.nan
    below = _existing_length(outgoing)
    return _existing_length(incoming) / below if below else math.nan


def balance(positions: Sequence[NewPositions], ratio: float, loss: Callable[[], float]) -> bool:
    """Balance the new units of a group, unless that changes the loss.

    Args:
        positions: where the units stand, with their natural step in the outgoing weights.
        ratio: of the lengths of incoming and outgoing weights; not above 0, or NaN, leaves them as they are.
        loss: loss of the model as it is.

    Returns:
        True if they are balanced now; otherwise everything is as it was.
    """
    if not ratio > 0:
        return False
    before = loss()
    with _kept_unless_confirmed(positions) as confirm:
        rescale(positions, ratio)
        if abs(loss() - before) <= ROUNDING * abs(before):
            confirm()
            return True
    return False


def rescale(positions: Sequence[NewPositions], ratio: float) -> None:
    """Multiply incoming weights of new units, and divide outgoing ones, so that their lengths have a ratio.

    Args:
        positions: where the units stand.
        ratio: of the lengths of incoming and outgoing weights; not above 0, or NaN, leaves them as they are.
    """
    if not ratio > 0:
        return
    scale = (
        ratio
        * _new_lengths(_weights(positions, "consumer"))
        / _new_lengths(_weights(positions, "producer"))
    ).sqrt()
    # A unit without a step stays as it is.
    scale = torch.where((scale > 0) & scale.isfinite(), scale, torch.ones_like(scale))
    for one in positions:
        if one.coupled.role == "producer":
            _multiply(one, scale)
        elif one.coupled.role == "consumer":
            _multiply(one, 1 / scale)


def _weights(positions: Sequence[NewPositions], role: str) -> list[NewPositions]:
    # A bias has no direction: it follows its weights.
    return [one for one in positions if one.coupled.role == role and one.tensor.dim() > 1]


def _squares(one: NewPositions) -> Tensor:
    """Squared length of the weights at each position, (positions,)."""
    rows = one.tensor.detach().movedim(one.coupled.dim, 0).flatten(1)
    return rows.double().square().sum(1).cpu()


def _new_lengths(several: Sequence[NewPositions]) -> Tensor:
    """Length of each new unit's weights, (units,)."""
    squares = [_squares(one)[one.index].sum(1) for one in several]
    return torch.stack(squares).sum(0).sqrt()


def _existing_length(several: Sequence[NewPositions]) -> float:
    """Median length of an existing unit's weights."""
    total = 0.0
    for one in several:
        squares = _squares(one)
        is_old = torch.ones(len(squares), dtype=torch.bool)
        is_old[one.index.flatten()] = False
        if is_old.any():
            # of a position, times a unit's number of positions
            total += one.index.shape[1] * float(squares[is_old].median())
    return math.sqrt(total)


def _multiply(one: NewPositions, scale: Tensor) -> None:
    """Multiply all entries of each new unit by its factor."""
    shape = [1] * one.tensor.dim()
    shape[one.coupled.dim] = -1
    data, index = one.tensor.data, one.index.flatten().to(one.tensor.device)
    factor = scale.repeat_interleave(one.index.shape[1]).view(shape).to(data)
    data.index_copy_(one.coupled.dim, index, data.index_select(one.coupled.dim, index) * factor)


@contextmanager
def _kept_unless_confirmed(positions: Sequence[NewPositions]) -> Iterator[Callable[[], None]]:
    """Bring back the new units' numbers at the end, unless what is yielded has been called."""
    confirmed: list[bool] = []
    former = [
        one.tensor.detach().index_select(one.coupled.dim, one.index.flatten().to(one.tensor.device))
        for one in positions
    ]
    try:
        yield lambda: confirmed.append(True)
    finally:
        if not confirmed:
            for one, values in zip(positions, former, strict=True):
                index = one.index.flatten().to(values.device)
                one.tensor.data.index_copy_(one.coupled.dim, index, values)
