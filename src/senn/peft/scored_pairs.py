"""Low-rank pairs with what could be added to them: scores, moves of surgery, and steps of what they add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from senn.graph import get_tensor
from senn.kfac.factors import KroneckerFactors
from senn.peft.allocation import PairScores, RankChange
from senn.peft.directions import Directions, best_directions, residual_rows, unit_compensation
from senn.peft.pairs import LowRankPair
from senn.peft.rank_records import RankEvent
from senn.peft.round_samples import Layouts, RoundSamples
from senn.scoring.birth_steps import BirthStep, ParameterEntries
from senn.surgery import Move, Prune, Receipt, Widen

MOST_CANDIDATES = 64
"""Possible new units of a pair in one round."""


_LEAST_VARIANCE = 1e-4
"""Share of a candidate's damped variance that it is taken to have at least."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ScoredPair:
    """A pair with its factors and what could be added to it.

    Attributes:
        pair: the pair.
        factors: of the adapted map, on the samples that steps are fitted on.
        down: A as it was scored, (rank, inputs), float64.
        damping: relative damping of the factors.
        candidates: possible new units.
        lengths: how much of each one's step to take, (k,).
        scores: what they and the existing units are worth.
    """

    pair: LowRankPair
    factors: KroneckerFactors
    down: Tensor
    damping: float
    candidates: Directions
    lengths: Tensor
    scores: PairScores

    def moves(self, change: RankChange) -> list[Move]:
        """Make the moves that carry out a change.

        Args:
            change: units that come and go.
        """
        moves: list[Move] = []
        if change.removed:
            units = torch.tensor(sorted(change.removed))
            kept = unit_compensation(self.factors, self.down, units, damping=self.damping)
            # a column for the constant, which nothing takes over by
            coefficients = torch.cat([kept, kept.new_zeros(len(kept), 1)], 1)
            moves.append(Prune(self.pair.down, tuple(units.tolist()), {self.pair.up: coefficients}))
        if change.added:
            rows = self.candidates.weight[change.added]
            values = {f"{self.pair.down}.weight": rows * self._scale(rows)}
            moves.append(Widen(self.pair.down, len(rows), values))
        return moves

    def _scale(self, rows: Tensor) -> Tensor:
        """Factor of each row, (k, 1), with which its unit varies as much as those that are there.

        An optimizer that moves all of B equally far then moves the outputs equally far through each unit.
        """
        variances = [((one @ self.factors.A) * one).sum(1) for one in (self.down, rows)]
        # With the damping a candidate varies by 1; where inputs hardly vary along it, rounding may leave less than 0.
        own = variances[1].clamp_min(_LEAST_VARIANCE)
        return (variances[0].mean() / own).sqrt()[:, None]

    def step(self, receipt: Receipt, change: RankChange) -> BirthStep:
        """Return the natural step of the new columns of B, at the scale that the new rows of A have.

        Args:
            receipt: what the surgery did.
            change: the change, with new units.
        """
        places = receipt.new_positions[self.pair.down]
        up = next(place for place in places if place.coupled.role == "consumer")
        index = up.index.flatten()
        entries = ParameterEntries(
            kind="widen",
            place=self.pair.down,
            name=f"{self.pair.up}.weight",
            dim=1,
            index=index,
            silent=up.tensor.detach().index_select(1, index.to(up.tensor.device)),
        )
        scale = self._scale(self.candidates.weight[change.added])[:, 0]
        step = (self.candidates.step * self.lengths)[:, change.added] / scale
        return BirthStep(entries=entries, step=step)

    def cost(self, change: RankChange) -> float:
        """Return by how much the loss is expected to rise where units go.

        Args:
            change: units that come and go.
        """
        return sum(max(self.scores.costs[unit], 0.0) for unit in change.removed)

    def event(self, change: RankChange) -> RankEvent:
        """Return the record of a change.

        Args:
            change: units that come and go.
        """
        difference = len(change.added) - len(change.removed)
        brings = sum(self.scores.decreases[number] for number in change.added)
        return RankEvent(
            place=self.pair.name,
            rank_before=self.pair.rank,
            rank=self.pair.rank + difference,
            added=len(change.added),
            removed=len(change.removed),
            gain=float(self.candidates.gains[change.added].sum()),
            expected_decrease=brings - self.cost(change),
            parameters=difference * self.pair.per_rank,
        )


def score_pairs(
    model: nn.Module,
    samples: RoundSamples,
    pairs: Sequence[LowRankPair],
    layouts: Layouts,
    *,
    damping: float,
    max_rank: int | None,
) -> dict[str, ScoredPair]:
    """Find and score the possible new units of pairs, and score those that are there.

    Args:
        model: read only.
        samples: of the round.
        pairs: the pairs.
        layouts: how their rows belong to samples.
        damping: relative damping of the factors.
        max_rank: most units of a pair; None for no limit.

    Returns:
        By name of the adapted layer.
    """
    factors = samples.factors(pairs, layouts)
    candidates: dict[str, Directions] = {}
    steps: dict[str, tuple[Tensor, Tensor]] = {}
    downs: dict[str, Tensor] = {}
    for pair in pairs:
        name, own = pair.name, factors[pair.name]
        down, up = (_weight(model, one) for one in (pair.down, pair.up))
        count = min(MOST_CANDIDATES, max_rank or MOST_CANDIDATES)
        new = candidates[name] = best_directions(own, down, count, damping=damping)
        rows = torch.cat([new.weight, residual_rows(own, down, damping=damping)])
        steps[name], downs[name] = (rows, torch.cat([new.step, up], 1)), down
    measured = samples.derivatives(pairs, layouts, steps)
    return {
        pair.name: _scored(
            pair,
            factors[pair.name],
            candidates[pair.name],
            measured=measured,
            down=downs[pair.name],
            damping=damping,
            max_rank=max_rank,
        )
        for pair in pairs
    }


def _weight(model: nn.Module, name: str) -> Tensor:
    return get_tensor(model, f"{name}.weight").detach().double()


def _scored(
    pair: LowRankPair,
    factors: KroneckerFactors,
    candidates: Directions,
    *,
    measured: Mapping[str, tuple[Tensor, Tensor]],
    down: Tensor,
    damping: float,
    max_rank: int | None,
) -> ScoredPair:
    new, (slopes, curvatures) = len(candidates.gains), measured[pair.name]
    lengths = candidates.lengths(curvatures[:new])
    # A step is subtracted; to remove a unit is to subtract its column.
    decreases = lengths * slopes[:new] - lengths**2 * curvatures[:new] / 2
    costs = curvatures[new:] / 2 - slopes[new:]
    scores = PairScores(
        per_rank=pair.per_rank,
        decreases=decreases.tolist(),
        costs=costs.tolist(),
        max_rank=max_rank,
    )
    return ScoredPair(
        pair=pair,
        factors=factors,
        down=down,
        damping=damping,
        candidates=candidates,
        lengths=lengths,
        scores=scores,
    )
