"""Greedy choice of candidate units: one after the other, each at its best after those before it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from senn.policies import Criterion
from senn.scoring.changes import Change, Gains, Prices, ScoredCandidate
from senn.scoring.gains import LayerGains
from senn.scoring.joint_gains import JointGains

CRITERIA: tuple[Criterion, ...] = ("held_out_gain", "gain_lower_bound")
"""Figures by which units are chosen: one for `PricePolicy`, the other for the paper's rule (section 3.3)."""

SHORTLIST = 32
"""Units of the largest bound whose held-out gain, which needs rows, is computed.

The cost of a choice grows with it; a much shorter list may miss the best unit, since noise reorders the gains.
"""

# rows of the tensor that `_figures` returns
_GAIN, _BOUND, _HELD_OUT, _STDERR = range(4)


@dataclass(frozen=True, eq=False)
class Consumer:
    """Candidate units as one linear map reads them.

    Attributes:
        layer_gains: gains of the map's columns.
        columns: columns of each unit, (units, p).
        output_basis: (m, r) orthonormal basis of the outputs that can change; None for all of them.
    """

    layer_gains: LayerGains | JointGains
    columns: Tensor
    output_basis: Tensor | None = None

    def clone(self) -> Consumer:
        """A copy to try eliminations on."""
        return replace(self, layer_gains=self.layer_gains.clone())


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Units chosen together.

    Attributes:
        units: in the order in which they were chosen.
        gains: sums over the units, each after those before it.
        criterion: the figure that they were chosen by.
    """

    units: tuple[int, ...]
    gains: Gains
    criterion: Criterion


def best_choices(
    consumers: Sequence[Consumer], count: int, accepted: Sequence[int]
) -> list[Choice]:
    """Choose further units, once by each criterion.

    Args:
        consumers: the maps that read the units; gains add over them.
        count: number of units to choose.
        accepted: numbers of the units that are part of the network already.

    Returns:
        one choice if both criteria agree, two if they don't, none if there are too few units left.
    """
    found: list[Choice] = []
    left = torch.tensor([unit for unit in range(len(consumers[0].columns)) if unit not in accepted])
    if len(left) < count:
        return found
    first = _figures(consumers, left)
    for criterion in CRITERIA:
        choice = _greedy(consumers, left, first, count, criterion)
        # Often both criteria agree; the policy then gets one candidate.
        if not found or found[0].units != choice.units:
            found.append(choice)
    return found


def scored_choices(
    change: Change, choices: Iterable[Choice], prices: Prices
) -> list[ScoredCandidate]:
    """Make one candidate of a change for each choice of its units.

    Args:
        change: the change, whichever units are chosen.
        choices: units that were chosen, each time by another criterion.
        prices: figures of the round.
    """
    found = []
    for choice in choices:
        candidate = change.scored(choice.gains, prices, choice.criterion)
        found.append(ScoredCandidate(candidate, choice.units, change.layer_number))
    return found


def _greedy(
    consumers: Sequence[Consumer], left: Tensor, figures: Tensor, count: int, criterion: Criterion
) -> Choice:
    """Choose `count` of the units `left` (n,), given their figures (4, n)."""
    chosen: list[int] = []
    total = Gains()
    # a single unit changes nothing that would have to be tried out
    trial = [consumer.clone() for consumer in consumers] if count > 1 else list(consumers)
    while True:
        best = int(_worth(figures, criterion).argmax())
        chosen.append(int(left[best]))
        gain, bound, held_out, stderr = figures[:, best].tolist()
        total += Gains(
            gain=gain, gain_lower_bound=bound, held_out_gain=held_out, held_out_stderr=stderr
        )
        for consumer in trial:
            agreed = consumer.layer_gains.cross_fold_gain(
                consumer.columns[chosen[-1:]], consumer.output_basis
            )
            total += Gains(cross_fold_gain=float(agreed))
        if len(chosen) == count:
            return Choice(units=tuple(chosen), gains=total, criterion=criterion)
        for consumer in trial:
            consumer.layer_gains.eliminate(consumer.columns[chosen[-1]], consumer.output_basis)
        left = torch.cat([left[:best], left[best + 1 :]])
        figures = _figures(trial, left)


def _figures(consumers: Sequence[Consumer], units: Tensor) -> Tensor:
    """Gain, lower bound, held-out gain and standard error of each unit, (4, n), summed over the consumers.

    Held-out gains of units that aren't on the shortlist are minus infinity.
    """
    total = torch.zeros(4, len(units), dtype=torch.float64)
    for consumer in consumers:
        columns = consumer.columns[units]
        gain = consumer.layer_gains.gain(columns, consumer.output_basis)
        bound = consumer.layer_gains.gain_lower_bound(columns, consumer.output_basis)
        total[:_HELD_OUT] += torch.stack([gain, bound])
    largest = total[_BOUND].topk(min(SHORTLIST, len(units))).indices
    # where all are alike, another one may be called the largest
    listed = torch.cat([largest, total[_BOUND].argmax()[None]])
    held_out = torch.zeros(2, len(listed), dtype=torch.float64)
    for consumer in consumers:
        columns = consumer.columns[units[listed]]
        held_out += torch.stack(consumer.layer_gains.held_out_gain(columns, consumer.output_basis))
    total[_HELD_OUT] = -torch.inf
    total[_HELD_OUT:, listed] = held_out
    return total


def _worth(figures: Tensor, criterion: Criterion) -> Tensor:
    """Figure to choose units by, (n,); a held-out gain counts less its standard error, times what is new in a unit.

    A gain is the same whatever the size of what is new: a natural step stretches that as far as it takes. Training
    doesn't, so of two units with one gain the better one is that of which more is new. Of a single column the lower
    bound over the gain is just that share, of what the existing units don't predict of it.
    """
    if criterion == "gain_lower_bound":
        return figures[_BOUND]
    # the best of many units is partly the luckiest one
    worth = figures[_HELD_OUT] - figures[_STDERR]
    share = figures[_BOUND] / figures[_GAIN].clamp_min(1e-300)
    # what costs a standard error isn't made up for by being small
    return torch.where(worth > 0, worth * share.clamp(0, 1), worth)
