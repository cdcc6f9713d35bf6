"""Balance of new units: as long incoming weights beside their outgoing ones as the existing units have.

A natural step asks of a unit with a small activation for long outgoing weights. An optimizer that moves every entry
equally far would then move the function by the unit's incoming weights many times as fast as by those of its elders,
and by its outgoing ones many times as slowly. Where a unit is positively homogeneous, as with ReLU, incoming weights
and biases times s and outgoing weights over s give the same function, and s is free to choose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from senn.surgery.reindex import NewPositions

ROUNDING = 1e-5
"""Relative change of the loss that is taken for rounding: a unit that isn't homogeneous changes it by more."""


def balance(positions: Sequence[NewPositions], loss: Callable[[], float]) -> bool:
    """Balance the new units of a group, unless that changes the loss.

    Args:
        positions: where the units stand, with their natural step in the outgoing weights.
        loss: loss of the model as it is.

    Returns:
        True if they are balanced now; otherwise everything is as it was.
    """
    incoming = [one for one in positions if one.coupled.role == "producer"]
    outgoing = [one for one in positions if one.coupled.role == "consumer"]
    # A bias has no direction: it follows its weights.
    weights = [one for one in incoming if one.tensor.dim() > 1]
    if not weights or not outgoing:
        return False
    new_in, old_in = _lengths(weights)
    new_out, old_out = _lengths(outgoing)
    if not bool((new_in > 0).all()) or not old_in > 0 or not old_out > 0:
        return False
    scale = (old_in / old_out * new_out / new_in).sqrt()
    # A unit without a step stays as it is.
    scale = torch.where((scale > 0) & scale.isfinite(), scale, torch.ones_like(scale))
    before = loss()
    with _kept_unless_confirmed(positions) as confirm:
        for one in incoming:
            _multiply(one, scale)
        for one in outgoing:
            _multiply(one, 1 / scale)
        if abs(loss() - before) <= ROUNDING * abs(before):
            confirm()
            return True
    return False


def _lengths(several: Sequence[NewPositions]) -> tuple[Tensor, float]:
    """Lengths of each new unit's weights, (units,), and the median length of the others'."""
    new: Tensor | float = 0.0
    old: Tensor | float = 0.0
    for one in several:
        rows = one.tensor.detach().movedim(one.coupled.dim, 0).flatten(1).double().square().sum(1)
        own = one.index.flatten().to(rows.device)
        is_old = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        is_old[own] = False
        k = one.index.shape[1]
        new = new + rows[own].view(-1, k).sum(1).cpu()
        # A position of an existing unit, times its number of positions.
        old = old + (k * rows[is_old].median().cpu() if bool(is_old.any()) else 0.0)
    assert isinstance(new, Tensor)
    return new.sqrt(), float(torch.as_tensor(old).sqrt())


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
