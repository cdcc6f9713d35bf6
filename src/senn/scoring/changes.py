"""Changes of a model as scored candidates."""

from __future__ import annotations

from dataclasses import dataclass

from senn.policies import Candidate, Criterion, Kind
from senn.scoring.gains import Gains, Prices


@dataclass(frozen=True, eq=False)
class ScoredCandidate:
    """A candidate with what accepting it means.

    Attributes:
        candidate: its record.
        units: numbers of the units that would come or go.
        layer: number of the layer that would be inserted; None for other changes.
    """

    candidate: Candidate
    units: tuple[int, ...]
    layer: int | None = None


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of the model, not scored yet; attributes as of `Candidate`."""

    kind: Kind
    place: str
    detail: str
    units: int
    width: int
    parameters: int
    layer_number: int | None = None

    def scored(
        self, gains: Gains, prices: Prices, criterion: Criterion = "held_out_gain"
    ) -> Candidate:
        """Make the candidate of the change.

        Args:
            gains: what it gains.
            prices: what that is compared with.
            criterion: the figure that its units were chosen by.
        """
        return Candidate(
            **vars(self),
            gain=gains.gain,
            gain_lower_bound=gains.gain_lower_bound,
            held_out_gain=gains.held_out_gain,
            held_out_stderr=gains.held_out_stderr,
            cross_fold_gain=gains.cross_fold_gain,
            eta=prices.eta,
            score_limit=prices.score_limit,
            samples=prices.samples,
            loss_per_nat=prices.loss_per_nat,
            criterion=criterion,
        )
