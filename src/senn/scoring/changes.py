"""Records of scored changes: what a change does, what it gains, and what that is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from senn.policies import Candidate, Criterion, Kind


@dataclass(frozen=True, kw_only=True)
class Gains:
    """Gains of one change in eta's unit, twice the loss's; `+` adds those of several units or maps.

    Attributes:
        gain: K-FAC gain D on all samples.
        gain_lower_bound: D' (paper, Theorem 3.2).
        held_out_gain: gain of a step fitted on one fold and valued on the other.
        held_out_stderr: standard error of `held_out_gain` over the samples of that fold.
        cross_fold_gain: gain that both folds agree on; NaN where it isn't known.
    """

    gain: float = 0.0
    gain_lower_bound: float = 0.0
    held_out_gain: float = 0.0
    held_out_stderr: float = 0.0
    cross_fold_gain: float = 0.0

    def __add__(self, other: Gains) -> Gains:
        """Sum every figure; standard errors add linearly, since all come from the same samples and may err together."""
        return Gains(
            gain=self.gain + other.gain,
            gain_lower_bound=self.gain_lower_bound + other.gain_lower_bound,
            held_out_gain=self.held_out_gain + other.held_out_gain,
            held_out_stderr=self.held_out_stderr + other.held_out_stderr,
            cross_fold_gain=self.cross_fold_gain + other.cross_fold_gain,
        )


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Figures of a round that gains are compared with; only `eta` changes while candidates are accepted.

    Attributes:
        samples: number of training samples.
        loss_per_nat: how much of the loss one nat per sample is.
        dispersion: as of `LossMetric.dispersion`.
        eta: the network's expansion score now.
        score_limit: lambda, which eta can't exceed.
    """

    samples: int
    loss_per_nat: float
    dispersion: float | None
    eta: float
    score_limit: float


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
            # The fields of `Change` are those of `Candidate`.
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
            dispersion=prices.dispersion,
            criterion=criterion,
        )
