"""Greedy choice of candidate units: one after the other, each at its best after those before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from senn.policies import Criterion
from senn.scoring.gains import Gains, LayerGains


@dataclass(frozen=True, eq=False)
class Group:
    """Candidate units as one linear map reads them.

    Attributes:
        layer_gains: the account of the map.
        columns: of each unit, (units, p).
        onto: orthonormal basis of what the map makes of changes of its input, (m, r); None for all of its outputs.
    """

    layer_gains: LayerGains
    columns: Tensor
    onto: Tensor | None = None

    def copied(self) -> Group:
        """The same, to try acceptances on."""
        return replace(self, layer_gains=self.layer_gains.clone())


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Units that were chosen one after the other, what they gain together, and by which figure they were chosen."""

    units: tuple[int, ...]
    gains: Gains
    criterion: Criterion


CRITERIA: tuple[Criterion, ...] = ("held_out_gain", "gain_lower_bound")


def best_choices(groups: Sequence[Group], units: int, accepted: Sequence[int]) -> list[Choice]:
    """Greedy choices of `units` more units: once by held-out gain less its standard error, once by the bound."""
    found: list[Choice] = []
    left = torch.tensor([unit for unit in range(len(groups[0].columns)) if unit not in accepted])
    if len(left) < units:
        return found
    first = _figures(groups, left)
    for criterion in CRITERIA:
        choice = _greedy(groups, left, first, units, criterion)
        if not found or found[0].units != choice.units:
            found.append(choice)
    return found


def _greedy(groups: Sequence[Group], rest: Tensor, figures: Tensor, units: int, criterion: Criterion) -> Choice:
    """Choose units of `rest` one after the other, each at its best after those before it.

    Args:
        groups: the maps that read them.
        rest: numbers of the units that are left, (n,).
        figures: of these, as of `_figures`, (4, n).
        units: how many to choose.
        criterion: the figure to choose them by.
    """
    chosen: list[int] = []
    total = Gains()
    trial = [group.copied() for group in groups] if units > 1 else list(groups)
    while True:
        best = int(_worth(figures, criterion).argmax())
        chosen.append(int(rest[best]))
        gain, bound, held_out, stderr = figures[:, best].tolist()
        total += Gains(gain=gain, gain_lower_bound=bound, held_out_gain=held_out, held_out_stderr=stderr)
        for group in trial:
            agreed = group.layer_gains.cross_fold_gain(group.columns[chosen[-1:]], group.onto)
            total += Gains(cross_fold_gain=float(agreed))
        if len(chosen) == units:
            return Choice(units=tuple(chosen), gains=total, criterion=criterion)
        for group in trial:
            group.layer_gains.eliminate(group.columns[chosen[-1]], group.onto)
        rest = torch.cat([rest[:best], rest[best + 1 :]])
        figures = _figures(trial, rest)


SHORTLIST = 32
"""Units of the largest gain whose held-out gain, which needs rows, is computed."""


def _figures(groups: Sequence[Group], units: Tensor) -> Tensor:
    """Gain, bound, held-out gain and its standard error of each unit, (4, units), summed over the maps that read it.

    Held-out gains of units that are not on the shortlist are minus infinity.
    """
    total = torch.zeros(4, len(units), dtype=torch.float64)
    for group in groups:
        columns = group.columns[units]
        gains = group.layer_gains.gain(columns, group.onto), group.layer_gains.gain_lower_bound(columns, group.onto)
        total[:2] += torch.stack(gains)
    short = total[0].topk(min(SHORTLIST, len(units))).indices
    short = torch.cat([short, total[1].argmax()[None]])
    heldout = torch.zeros(2, len(short), dtype=torch.float64)
    for group in groups:
        heldout += torch.stack(group.layer_gains.held_out_gain(group.columns[units[short]], group.onto))
    total[2] = -torch.inf
    total[2:, short] = heldout
    return total


def _worth(figures: Tensor, criterion: Criterion) -> Tensor:
    """What units are chosen by, (units,): a held-out gain counts less its standard error."""
    return figures[1] if criterion == "gain_lower_bound" else figures[2] - figures[3]
