"""Policies: rules that accept or refuse candidates. Pure functions of records.

References:
    Mitchell, Menzenbach, Kersting & Mundt 2023, *Self-Expanding Neural Networks*, arXiv 2307.04526, section 3.3.
    Akaike 1974, *A new look at the statistical model identification*, IEEE Transactions on Automatic Control 19.
    Schwarz 1978, *Estimating the dimension of a model*, The Annals of Statistics 6.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from senn import _deprecated
from senn._validate import Rule, check_fields, fraction, number, one_of, positive, whole
from senn.policies.candidate import BirthKind, Candidate, Kind, SizeUnit


@_deprecated.aliased
class Policy:
    """Base class of policies: subclass it and override `choose`.

    Attributes:
        uses_joint_score: True if the policy compares gains with eta, which is then measured for the network as a whole.
        uses_flops: True if the policy reads the operations of candidates (`Candidate.flops`), which are then counted.
        birth: how what it accepts begins, unless a grower's `birth` says otherwise.

    >>> class Greedy(Policy):
    ...     def choose(self, candidates, accepted):
    ...         best = max(candidates, key=self.margin, default=None)
    ...         return best if best is not None and self.margin(best) > 0 else None
    >>> Greedy().choose([], []) is None
    True
    """

    uses_joint_score: ClassVar[bool] = False
    uses_flops: bool = False
    birth: ClassVar[BirthKind] = "stepped"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Honor overrides of methods by their old names."""
        super().__init_subclass__(**kwargs)
        _deprecated.honor_overrides(cls, "Policy")

    def choose(
        self, candidates: Sequence[Candidate], accepted: Sequence[Candidate]
    ) -> Candidate | None:
        """Choose the candidate to accept next.

        Args:
            candidates: what is on offer, with figures that count what was accepted; may be empty.
            accepted: candidates accepted in this round so far, in order.

        Returns:
            One of `candidates` (or a copy of one), or None to end the round.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method `choose`")

    def price(self, parameters: float, samples: int) -> float:
        """Price new parameters; the default is free.

        Args:
            parameters: net number of new parameters, whole unless operations stand for them (`Candidate.size_in`);
                negative for pruning.
            samples: number of training samples.

        Returns:
            Least decrease that justifies them, in nats per sample.
        """
        return 0.0

    def price_of(self, candidate: Candidate) -> float:
        """Price a candidate in the unit of its expected decrease: nats per sample, or the loss's own unit."""
        price = self.price(candidate.parameters, candidate.samples)
        return price * candidate.price_unit

    def margin(self, candidate: Candidate) -> float:
        """Return by how much a candidate exceeds its price, in the unit of its expected decrease."""
        return candidate.expected_decrease - self.price_of(candidate)

    def reason(self, candidate: Candidate, accepted: Sequence[Candidate]) -> str:
        """Explain why a candidate with a positive margin was refused.

        Args:
            candidate: the refused candidate.
            accepted: candidates accepted in its round.

        Returns:
            A few words, empty without a reason.
        """
        return ""

    def min_decrease(self, kind: Kind, parameters: int, samples: int) -> float:
        """Return the least decrease with which a change could be accepted.

        Changes that can't reach it, even if they removed the whole loss, aren't scored.

        Args:
            kind: kind of the change.
            parameters: net number of new parameters.
            samples: number of training samples.

        Returns:
            A decrease in nats per sample; by default the price.
        """
        return self.price(parameters, samples)

    def for_pruning_round(self) -> Policy:
        """Return the policy for a round in which nothing can be added; by default this one."""
        return self


@_deprecated.aliased
@dataclass(frozen=True)
class PaperPolicy(Policy):
    """Policy of the paper (section 3.3).

    Accepts while eta_p / eta_c > 1 + tau and eta_p - eta_c > alpha lambda. eta_p is the expansion score with the
    proposed change, eta_c the current one, which counts what this round has accepted. Neither is taken to exceed
    lambda, so Theorem 3.1 holds: a round makes fewer than 1 + (ln lambda - ln alpha) / ln(1 + tau) additions.

    Args:
        tau: relative improvement required, above 0.
        alpha: absolute improvement required, as a fraction of lambda (so it is scale free), between 0 and 1.
        layer_cost: divisor of a layer's gain before it is compared (`layer_cost_mul` in the authors' code).
        prune_fraction: prune a unit if that costs less than this fraction of the present eta, as the authors' code for
            convolutions does; 0 never prunes. Theirs is 3e-4, where thousands of channels share eta.

    Raises:
        SennError: an argument is out of range.

    >>> PaperPolicy(tau=0.5).prune_fraction
    0.0
    >>> PaperPolicy(tau=-1)
    Traceback (most recent call last):
    senn.errors.SennError: tau must be a number above 0, not -1
    """

    # With alpha's default, a round makes at most 9 additions: 1 + ln 400 / ln 2 = 9.6.
    # Half of tau allows 15, twice of it 6.
    tau: float = 1.0
    alpha: float = 2.5e-3
    layer_cost: float = 2.0
    prune_fraction: float = 0.0
    uses_joint_score: ClassVar[bool] = True
    birth: ClassVar[BirthKind] = "silent"

    _RANGES: ClassVar[Mapping[str, Rule]] = {
        "tau": positive(),
        "alpha": fraction(open_low=True, open_high=True),
        "layer_cost": positive(),
        "prune_fraction": number(low=0),
    }

    def __post_init__(self) -> None:
        check_fields(self, self._RANGES)

    def score(self, candidate: Candidate) -> float:
        """Return Delta eta' of an addition: its lower bound, capped where eta reaches lambda."""
        gain = candidate.gain_lower_bound / (self.layer_cost if candidate.kind == "insert" else 1.0)
        # Theorem 3.1 needs eta <= lambda, which an estimate from few samples may exceed.
        return min(candidate.eta + gain, candidate.score_limit) - candidate.eta

    def accepts(self, candidate: Candidate) -> bool:
        """Return True if an addition passes both tests, or if pruning is cheap enough."""
        return self.margin(candidate) > 0

    def margin(self, candidate: Candidate) -> float:
        """Return by how much the stricter of the two tests is passed, in nats per sample."""
        c = candidate
        if c.kind == "prune":
            # The mirror image of eta_p / eta_c > 1 + tau: a cost, too, is compared with what the network can still do.
            return (c.gain + self.prune_fraction * max(c.eta, 0.0)) / (2 * c.loss_per_nat)
        # eta_p / eta_c > 1 + tau and eta_p - eta_c > alpha lambda, both as thresholds of eta_p - eta_c
        threshold = max(self.tau * max(c.eta, 0.0), self.alpha * c.score_limit)
        return (self.score(c) - threshold) / (2 * c.loss_per_nat)

    def choose(
        self, candidates: Sequence[Candidate], accepted: Sequence[Candidate]
    ) -> Candidate | None:
        """Choose the passing addition with the largest score; without one, the cheapest passing pruning.

        Args:
            candidates: what is on offer.
            accepted: ignored; the figures of `candidates` count them.

        Returns:
            A candidate, or None if none passes.
        """
        passing = [c for c in candidates if self.accepts(c)]
        additions = [c for c in passing if c.kind != "prune"]
        if additions:
            return max(additions, key=self.score)
        return max(passing, key=lambda c: c.gain, default=None)


@_deprecated.aliased
@dataclass(frozen=True)
class PricePolicy(Policy):
    """Policy that puts a price on parameters: q new ones must gain more than kappa q / N nats.

    kappa = 1 is the price of Akaike's criterion (1974), kappa = ln(N) / 2 that of Schwarz's (1978), the description
    length; N is the number of training samples. Half the *held-out* gain, in nats per sample, is compared with the
    price, so fitted noise buys nothing.

    The best of many candidates is partly the luckiest, all the more with few and noisy samples, so `confidence`
    standard errors are taken off.

    A gain is that of one step, and training makes more of a unit. So units are cheap to add early, and those that turn
    out to be worth less than `retention_factor` times their price are pruned in later rounds that only prune. In rounds
    that add as well, a unit is pruned only below `hysteresis` times the price; otherwise it would be added again.

    Args:
        kappa: price of one parameter, in nats times training samples.
        confidence: standard errors taken off an expected decrease, at least 0.
        layer_cost: divisor of a layer's expected decrease, as in the authors' code: training realizes it more slowly.
        hysteresis: fraction of the price below which a unit is pruned in rounds that also add; below 1.
        retention_factor: fraction of the price below which a unit is pruned in rounds that only prune.
        max_places_per_round: most places that the additions of one round may change; None for all that pay. Gains of
            different maps may count the same decrease twice, which a block-diagonal Fisher can't see: what a round adds
            is measured together, on held-out samples, before it stays.
        unit: what is priced: `parameters`, or `flops`, the operations of a forward pass. Then a change that brings a
            hundredth of the network's operations costs as much as a hundredth of its parameters: a unit of an early
            convolution, whose weights are used at every pixel, has the price of the time that it takes. In a plain MLP,
            where each weight is used once a sample, both units agree but for biases.
        window: for data that change while training goes on, the number of samples after which what was learned serves
            no more: N is this at most. None for data that stay as they are.

    Raises:
        SennError: an argument is out of range.

    >>> policy = PricePolicy(kappa=1.0)
    >>> policy.price(parameters=10, samples=1000)
    0.01
    >>> policy.min_decrease("insert", parameters=10, samples=1000)
    0.2
    """

    # A hundredth of Akaike's: the gain is that of one step, and training makes more of a unit.
    kappa: float = 0.01
    # Of candidates that gain nothing, noise lifts 16 % above 0 (a tail of the normal distribution);
    # with half a standard error 31 %, with two 2 %.
    confidence: float = 1.0
    layer_cost: float = 20.0
    hysteresis: float = 0.02
    retention_factor: float = 5.0
    max_places_per_round: int | None = 1
    unit: SizeUnit = "parameters"
    window: int | None = None

    _RANGES: ClassVar[Mapping[str, Rule]] = {
        "kappa": positive(),
        "confidence": number(low=0),
        "layer_cost": positive(),
        "hysteresis": fraction(open_high=True),
        "retention_factor": number(low=0),
        "max_places_per_round": whole(low=1).or_none(),
        "unit": one_of("parameters", "flops"),
        "window": whole(low=1).or_none(),
    }

    def __post_init__(self) -> None:
        check_fields(self, self._RANGES)

    @property
    def uses_flops(self) -> bool:  # type: ignore[override]
        """True if operations are priced."""
        return self.unit == "flops"

    def price_of(self, candidate: Candidate) -> float:
        """Price a candidate's parameters or operations, in the unit of its expected decrease."""
        size = candidate.size_in(self.unit)
        return self.price(size, candidate.samples) * candidate.price_unit

    def price(self, parameters: float, samples: int) -> float:
        """Price new parameters at kappa q / N.

        Args:
            parameters: q, net number of new parameters.
            samples: N, number of training samples.

        Returns:
            A decrease in nats per sample.
        """
        # The criteria charge kappa per parameter for the log-likelihood of all N samples; a mean loss is 1 / N of it.
        counted = samples if self.window is None else min(samples, self.window)
        return self.kappa * parameters / max(counted, 1)

    def min_decrease(self, kind: Kind, parameters: int, samples: int) -> float:
        """Return the price, times `layer_cost` for a layer; 0 if operations are priced: parameters don't tell these.

        Args:
            kind: kind of the change.
            parameters: net number of new parameters.
            samples: number of training samples.

        Returns:
            A decrease in nats per sample.
        """
        if self.uses_flops:
            return 0.0
        return self.price(parameters, samples) * (self.layer_cost if kind == "insert" else 1.0)

    def for_pruning_round(self) -> _RetentionPolicy:
        """Return a policy that prunes what is worth less than `retention_factor` times its price."""
        return _RetentionPolicy(self)

    def margin(self, candidate: Candidate) -> float:
        """Return the margin, in the unit of expected decreases.

        For additions: the expected decrease, less standard errors, less the price. For pruning: the refund less the
        cost.
        """
        price = self.price_of(candidate)
        if candidate.kind == "prune":  # both are negative
            return candidate.expected_decrease - self.hysteresis * price
        stderr = candidate.held_out_stderr / (2 * candidate.loss_per_nat)
        decrease = candidate.expected_decrease - self.confidence * stderr
        if candidate.kind == "insert":
            # The gain of a layer is that of its best step; gradient descent takes longer to get there than for units.
            decrease /= self.layer_cost
        return decrease - price

    def choose(
        self, candidates: Sequence[Candidate], accepted: Sequence[Candidate]
    ) -> Candidate | None:
        """Choose the candidate with the largest positive margin, where this round may still change.

        Args:
            candidates: what is on offer.
            accepted: candidates accepted in this round so far.

        Returns:
            A candidate, or None if no margin is positive.
        """
        return _best([c for c in candidates if self._is_open(c, accepted)], self)

    def reason(self, candidate: Candidate, accepted: Sequence[Candidate]) -> str:
        """Explain a refusal by `max_places_per_round`.

        Args:
            candidate: the refused candidate.
            accepted: candidates accepted in its round.

        Returns:
            A few words, empty if the candidate's place could have changed.
        """
        if self._is_open(candidate, accepted):
            return ""
        most = self.max_places_per_round
        return "one place a round" if most == 1 else f"{most} places a round"

    def _is_open(self, candidate: Candidate, accepted: Sequence[Candidate]) -> bool:
        """Return True if this round may change the candidate's place."""
        if candidate.kind == "prune" or self.max_places_per_round is None:
            return True
        # Further units for a place that has changed are fine: their gains have been updated for what was accepted.
        taken = {c.place for c in accepted if c.kind != "prune"}
        return len(taken) < self.max_places_per_round or candidate.place in taken


@dataclass(frozen=True)
class _RetentionPolicy(Policy):
    """A price policy in rounds that only prune."""

    prices: PricePolicy

    def price(self, parameters: float, samples: int) -> float:
        """Price parameters as the price policy does."""
        return self.prices.price(parameters, samples)

    def price_of(self, candidate: Candidate) -> float:
        """Price a candidate as the price policy does."""
        return self.prices.price_of(candidate)

    def choose(
        self, candidates: Sequence[Candidate], accepted: Sequence[Candidate]
    ) -> Candidate | None:
        """Choose the pruning that saves most, if it saves anything."""
        return _best([c for c in candidates if c.kind == "prune"], self)

    def margin(self, candidate: Candidate) -> float:
        """Return what pruning saves, in nats per sample; minus infinity for additions."""
        if candidate.kind != "prune":  # none is offered, but a user may ask
            return -math.inf
        price = self.price_of(candidate)
        return candidate.expected_decrease - self.prices.retention_factor * price


def _best(candidates: Sequence[Candidate], policy: Policy) -> Candidate | None:
    """Return the candidate with the largest margin if that is positive, else None."""
    best = max(candidates, key=policy.margin, default=None)
    return best if best is not None and policy.margin(best) > 0 else None
