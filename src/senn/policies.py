"""When and where to change the network: records in, a decision out. Pure functions of the records.

A *candidate* is a change at its best at one place, scored by the menu. A policy picks one or none; the menu then
brings all figures up to date and asks again. Gains are in eta's unit (twice the loss's); prices and promises are in
nats per sample, into which `Candidate.nat` turns a loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from senn import _deprecated
from senn._validate import Rule, check, check_fields, each, fraction, number, positive, text, whole
from senn.errors import SennError

__all__ = [
    "Budget",
    "Candidate",
    "PaperPolicy",
    "Policy",
    "PricePolicy",
]

Kind = Literal["widen", "insert", "prune"]

MOVES: dict[str, Kind] = {"width": "widen", "depth": "insert", "prune": "prune"}
"""Moves that a grower may make, and the kind of candidate that makes each."""


def check_moves(moves: Sequence[str] | None, allowed: Sequence[str] = tuple(MOVES)) -> tuple[str, ...]:
    """Validate names of moves.

    Args:
        moves: names from `MOVES`; None means all that are allowed.
        allowed: names that may come back.

    Returns:
        those of `moves` that are allowed, in the order of `moves`.

    Raises:
        SennError: a name is unknown.
    """
    check("moves", moves, each(text()).or_none())
    unknown = [move for move in moves or () if move not in MOVES]
    if unknown:
        raise SennError(f"moves may hold {', '.join(MOVES)}, and {unknown[0]!r} is none of them")
    return tuple(allowed) if moves is None else tuple(move for move in moves if move in allowed)


def policy_rule(*, named: bool = False) -> Rule:
    """Allow policies, by what they can do; if `named`, names of policies too."""

    def allows(value: Any) -> bool:
        # a policy need not be a subclass; NumPy's numbers have a method `choose`, too
        is_object = not isinstance(value, type) and all(hasattr(value, name) for name in ("choose", "price", "margin"))
        return is_object or (named and isinstance(value, str))

    return Rule(expected="a policy such as PricePolicy()" + (", its name" if named else ""), allows=allows)


Criterion = Literal["held_out_gain", "gain_lower_bound"]
"""Figures by which the units of a candidate can have been chosen."""

CandidateKey = tuple[Kind, str, int | None, Criterion]
"""Kind, place, number of the layer, criterion: unique among the candidates that are offered at one time."""


@_deprecated.aliased
@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One scored change of the network.

    Attributes:
        kind: `widen`, `insert` or `prune`.
        place: the space's name, or the linear map's before which a layer goes.
        detail: what exactly, for people (`residual ReLU`, `identity PReLU`, unit numbers).
        units: how many units come or go.
        width: the place's width after the change.
        parameters: net change of the number of parameters, negative for pruning.
        gain: exact K-FAC gain in eta (negative for pruning: minus the cost).
        gain_lower_bound: lower bound of the gain (Theorem 3.2); equal to `gain` where there is none.
        held_out_gain: gain of a step fitted on one half of the samples, valued on the other.
        held_out_stderr: standard error of `heldout` over the samples that it was valued on.
        eta: the network's expansion score now, accepted candidates of this round included.
        score_limit: lambda, what eta cannot exceed.
        samples: number of training samples, for the price.
        loss_per_nat: how much of the loss one nat per sample is (`LossMetric.nat`).
        cross_fold_gain: gain as the two halves agree on it (negative for pruning): a product of what one and the
            other say
            where `gain` has a square, so that the noise of few samples adds nothing to it on average; NaN for none.
        layer_number: which of the layers that could go to the place it is; None for units and for copies of blocks.
        criterion: the figure by which its units were chosen: at one place the best by one and the best by the other
            may be two candidates.
    """

    kind: Kind
    place: str
    detail: str
    units: int
    width: int
    parameters: int
    gain: float
    gain_lower_bound: float
    held_out_gain: float
    held_out_stderr: float
    eta: float
    score_limit: float
    samples: int
    loss_per_nat: float = 1.0
    cross_fold_gain: float = math.nan
    layer_number: int | None = None
    criterion: Criterion = "held_out_gain"

    @property
    def key(self) -> CandidateKey:
        """What tells the candidate from all others that are offered with it, in equal records and copies too."""
        return self.kind, self.place, self.layer_number, self.criterion

    @property
    def expected_decrease(self) -> float:
        """Decrease of the loss to count on, in nats per sample: half the held-out gain; for pruning, less than zero."""
        return (self.gain if self.kind == "prune" else self.held_out_gain) / (2 * self.loss_per_nat)


@_deprecated.aliased
class Policy:
    """A rule for when and where; subclass it and override `choose`.

    Attributes:
        uses_joint_score: whether the rule compares gains with eta, which is then measured for the network as a whole.
    """

    uses_joint_score: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Hear overrides of old names too."""
        super().__init_subclass__(**kwargs)
        _deprecated.honor_overrides(cls, "Policy")

    def choose(self, candidates: Sequence[Candidate], accepted: Sequence[Candidate]) -> Candidate | None:
        """The candidate to accept now, given those already accepted in this round; None ends the round."""
        raise NotImplementedError(f"{type(self).__name__} needs a method `choose`")

    def price(self, parameters: int, samples: int) -> float:
        """What that many new parameters must promise at least, in nats per sample: nothing."""
        return 0.0

    def margin(self, candidate: Candidate) -> float:
        """By how much a candidate exceeds what is asked of it, in nats per sample; negative where it falls short."""
        return candidate.expected_decrease - self.price(candidate.parameters, candidate.samples)

    def reason(self, candidate: Candidate, accepted: Sequence[Candidate]) -> str:
        """Why a candidate of a margin above zero is refused beside those accepted in its round: a few words."""
        return ""

    def min_decrease(self, kind: Kind, parameters: int, samples: int) -> float:
        """Least promise, in nats per sample, with which a change of that kind could be accepted; others go unscored."""
        return self.price(parameters, samples)

    def for_pruning_round(self) -> Policy:
        """The rule for a round in which nothing can be added: the same."""
        return self


@_deprecated.aliased
@dataclass(frozen=True)
class PaperPolicy(Policy):
    """The paper's rule: accept while eta_p / eta_c > 1 + tau and eta_p - eta_c > alpha (section 3.3).

    eta_c counts what was accepted in this round already, and no eta is believed above lambda, so that Theorem 3.1
    holds: fewer than 1 + (ln lambda - ln alpha) / ln(1 + tau) additions a round.

    Args:
        tau: relative improvement asked, above 0.
        alpha: absolute improvement asked, as a fraction of lambda (scale free), between 0 and 1.
        layer_cost: a layer's gain is divided by this before it is compared (the reference's `layer_cost_mul`).
        prune_fraction: a unit goes when removing it costs less than this fraction of alpha; 0 never prunes.

    Raises:
        SennError: an argument is out of range.
    """

    tau: float = 1.0
    alpha: float = 2.5e-3
    layer_cost: float = 2.0
    prune_fraction: float = 0.0
    uses_joint_score: ClassVar[bool] = True

    _RANGES: ClassVar[Mapping[str, Rule]] = {
        "tau": positive(),
        "alpha": fraction(open_low=True, open_high=True),
        "layer_cost": positive(),
        "prune_fraction": number(low=0),
    }

    def __post_init__(self) -> None:
        check_fields(self, self._RANGES)

    def score(self, candidate: Candidate) -> float:
        """Delta eta' of an addition as the rule sees it: the bound, capped at lambda, layers discounted."""
        gain = candidate.gain_lower_bound / (self.layer_cost if candidate.kind == "insert" else 1.0)
        return min(candidate.eta + gain, candidate.score_limit) - candidate.eta

    def accepts(self, candidate: Candidate) -> bool:
        """Whether both tests pass; of a removal, whether it is cheap enough."""
        return self.margin(candidate) > 0

    def margin(self, candidate: Candidate) -> float:
        """By how much the stricter of both tests is passed, in nats per sample."""
        c = candidate
        if c.kind == "prune":
            return (c.gain + self.prune_fraction * self.alpha * c.score_limit) / (2 * c.loss_per_nat)
        asked = max(self.tau * max(c.eta, 0.0), self.alpha * c.score_limit)
        return (self.score(c) - asked) / (2 * c.loss_per_nat)

    def choose(self, candidates: Sequence[Candidate], accepted: Sequence[Candidate]) -> Candidate | None:
        """The addition with the largest score, if it passes; else the cheapest pruning, if it is cheap enough."""
        passing = [c for c in candidates if self.accepts(c)]
        additions = [c for c in passing if c.kind != "prune"]
        if additions:
            return max(additions, key=self.score)
        return max(passing, key=lambda c: c.gain, default=None)


@_deprecated.aliased
@dataclass(frozen=True)
class PricePolicy(Policy):
    """A price per parameter: q new parameters must surely promise more than kappa q / N nats on held-out samples.

    kappa = 1 is Akaike's price, ln(N) / 2 the description length's. Half the *held-out* gain is compared with it, so a
    promise that comes from fitting noise buys nothing.

    The best of many candidates is partly the luckiest one, the more so the fewer and noisier the samples, so a promise
    counts less `confidence` standard errors.

    A promise is that of one step, and training makes more of a unit than that. So units are bought cheaply, early, and
    those that turn out to be worth less than `keep` times their price are sold in rounds of removals alone. Where
    additions are on offer too, a unit goes only below `hysteresis` times the price, or it would be bought again.

    Args:
        kappa: price of one parameter, in nats times training samples.
        confidence: standard errors taken off a promise, at least 0.
        layer_cost: a layer's promise is divided by this, as by the paper's code: training realises it more slowly.
        hysteresis: fraction of the price below which a unit is sold while others are bought, below 1.
        retention_factor: fraction of the price below which a unit is sold in a round of removals alone.
        max_places_per_round: to how many places the additions of one round may go: gains of different maps may
            promise one decrease twice, which the blocks of a block-diagonal Fisher cannot tell.

    Raises:
        SennError: an argument is out of range.
    """

    kappa: float = 0.01
    confidence: float = 1.0
    layer_cost: float = 20.0
    hysteresis: float = 0.02
    retention_factor: float = 5.0
    max_places_per_round: int = 1

    _RANGES: ClassVar[Mapping[str, Rule]] = {
        "kappa": positive(),
        "confidence": number(low=0),
        "layer_cost": positive(),
        "hysteresis": fraction(open_high=True),
        "retention_factor": number(low=0),
        "max_places_per_round": whole(low=1),
    }

    def __post_init__(self) -> None:
        check_fields(self, self._RANGES)

    def price(self, parameters: int, samples: int) -> float:
        """Kappa q / N, in nats per sample."""
        return self.kappa * parameters / max(samples, 1)

    def min_decrease(self, kind: Kind, parameters: int, samples: int) -> float:
        """The price; a layer's times `layer_cost`."""
        return self.price(parameters, samples) * (self.layer_cost if kind == "insert" else 1.0)

    def for_pruning_round(self) -> _RetentionPolicy:
        """Sell what is worth less than `keep` times its price."""
        return _RetentionPolicy(self)

    def margin(self, candidate: Candidate) -> float:
        """Sure promise less the price, in nats per sample; for pruning: the refund less the cost."""
        price = self.price(candidate.parameters, candidate.samples)
        if candidate.kind == "prune":
            return candidate.expected_decrease - self.hysteresis * price
        sure = candidate.expected_decrease - self.confidence * candidate.held_out_stderr / (2 * candidate.loss_per_nat)
        return (sure / self.layer_cost if candidate.kind == "insert" else sure) - price

    def choose(self, candidates: Sequence[Candidate], accepted: Sequence[Candidate]) -> Candidate | None:
        """The candidate with the largest margin above zero, in one of the `places` that this round may change."""
        best = max((c for c in candidates if self._open(c, accepted)), key=self.margin, default=None)
        return best if best is not None and self.margin(best) > 0 else None

    def reason(self, candidate: Candidate, accepted: Sequence[Candidate]) -> str:
        """The round's additions had gone to as many places as they may."""
        places = "one place" if self.max_places_per_round == 1 else f"{self.max_places_per_round} places"
        return "" if self._open(candidate, accepted) else f"{places} a round"

    def _open(self, candidate: Candidate, accepted: Sequence[Candidate]) -> bool:
        """Whether a candidate's place is one that this round may change."""
        taken = {c.place for c in accepted if c.kind != "prune"}
        return candidate.kind == "prune" or len(taken) < self.max_places_per_round or candidate.place in taken


@dataclass(frozen=True)
class _RetentionPolicy(Policy):
    """The rounds of removals of a price policy."""

    prices: PricePolicy

    def price(self, parameters: int, samples: int) -> float:
        """The policy's own."""
        return self.prices.price(parameters, samples)

    def choose(self, candidates: Sequence[Candidate], accepted: Sequence[Candidate]) -> Candidate | None:
        """The removal that saves most, if it saves anything."""
        best = max((c for c in candidates if c.kind == "prune"), key=self.margin, default=None)
        return best if best is not None and self.margin(best) > 0 else None

    def margin(self, candidate: Candidate) -> float:
        """What a removal saves; nothing is added in such a round."""
        if candidate.kind != "prune":
            return -math.inf
        return candidate.expected_decrease - self.prices.retention_factor * self.price(
            candidate.parameters, candidate.samples
        )


@dataclass(frozen=True)
class Budget:
    """Limits that no policy may cross.

    Args:
        max_params: most parameters of the whole model.
        max_width: most units of one space.
        round_to: widths after growth are multiples of this.

    Raises:
        SennError: an argument is out of range.
    """

    max_params: int | None = None
    max_width: int | None = None
    round_to: int = 1

    _RANGES: ClassVar[Mapping[str, Rule]] = {
        "max_params": whole(low=1).or_none(),
        "max_width": whole(low=1).or_none(),
        "round_to": whole(low=1),
    }

    def __post_init__(self) -> None:
        check_fields(self, self._RANGES)

    def allows(self, candidate: Candidate, parameters: int) -> bool:
        """Whether the candidate fits, with `parameters` in the model already, those accepted in this round included."""
        if candidate.kind == "prune":
            return True
        if self.max_params is not None and parameters + candidate.parameters > self.max_params:
            return False
        return self.max_width is None or candidate.width <= self.max_width
