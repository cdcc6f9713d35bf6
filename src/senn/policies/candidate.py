"""Candidates of a growth round as records, the moves that make them, and limits of size."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from senn import _deprecated
from senn._validate import Rule, check, check_fields, each, text, whole
from senn.errors import SennError

Kind = Literal["widen", "insert", "prune"]

MOVES: dict[str, Kind] = {"width": "widen", "depth": "insert", "prune": "prune"}
"""Moves that a grower may make, with the kind of candidate that makes each."""


def check_moves(
    moves: Sequence[str] | None, allowed: Sequence[str] = tuple(MOVES)
) -> tuple[str, ...]:
    """Validate names of moves.

    Args:
        moves: names from `MOVES`; None means all that are allowed.
        allowed: names that may be returned.

    Returns:
        Those of `moves` that are allowed, in the order of `moves`.

    Raises:
        SennError: a name is unknown, or `moves` is a string.
    """
    check("moves", moves, each(text()).or_none())
    unknown = [move for move in moves or () if move not in MOVES]
    if unknown:
        raise SennError(f"moves may hold {', '.join(MOVES)}, and {unknown[0]!r} is none of them")
    return tuple(allowed) if moves is None else tuple(move for move in moves if move in allowed)


BirthKind = Literal["stepped", "silent", "plain", "best"]
"""How new units and layers begin: with their natural step, or with outgoing weights of zero as in the paper; or copies
of blocks with all that the block has, and everything else with its step; or in whichever of these ways the loss on
held-out rows is lowest."""

Criterion = Literal["held_out_gain", "gain_lower_bound"]
"""Figure by which the units of a candidate were selected."""

SizeUnit = Literal["parameters", "flops"]
"""What of a network a price is for."""

CandidateKey = tuple[Kind, str, int | None, Criterion]
"""Kind, place, layer number and criterion: unique among the candidates that are offered together."""


@_deprecated.aliased
@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One scored change of the network.

    Attributes:
        kind: `widen`, `insert` or `prune`.
        place: name of the channel group, or of the linear map before which a layer is inserted.
        detail: what exactly changes, as text (`residual ReLU`, `identity PReLU`, unit numbers).
        units: number of units added or removed.
        width: width of the place after the change.
        parameters: net change of the number of parameters; negative for pruning.
        flops: net change of the floating-point operations of a forward pass, per sample; negative for pruning. None
            where they aren't counted: a limit (`max_flops`) or a price (`PricePolicy(unit="flops")`) asks for them.
        flops_per_parameter: operations of the network's forward pass, per sample, for each of its parameters, before
            the round; None where they aren't counted. 2 for a plain MLP without biases.
        gain: exact K-FAC gain, in the unit of eta; for pruning, minus the cost.
        gain_lower_bound: D', a lower bound of the gain (Theorem 3.2); equal to `gain` where there is none.
        held_out_gain: gain of a step that was fitted on one fold of the samples, evaluated on the other.
        held_out_stderr: standard error of `held_out_gain` over the samples that it was evaluated on.
        eta: expansion score of the network, accepted candidates of this round included.
        score_limit: lambda, which eta of all parameters together can't exceed; the sum over the linear maps can.
        samples: number of training samples, for the price.
        loss_per_nat: change of the loss that is one nat per sample (`LossMetric.loss_per_nat`).
        dispersion: how much of the loss counts as one nat, for a loss that isn't known as a likelihood
            (`LossMetric.dispersion`): its decreases are in its own unit. None where they are in nats.
        cross_fold_gain: gain with a product of both folds in place of each square, so that the noise of few samples
            adds nothing to it on average; negative for pruning, NaN where there is none.
        layer_number: number of the layer among those that could be inserted at the place; None for units and for
            copies of blocks.
        criterion: figure by which its units were selected; one place may have a best candidate by each figure.

    >>> wider = Candidate(
    ...     kind="widen", place="0", detail="", units=2, width=6, parameters=18, gain=0.4, gain_lower_bound=0.3,
    ...     held_out_gain=0.2, held_out_stderr=0.05, eta=1.0, score_limit=2.0, samples=1000,
    ... )
    >>> wider.key, wider.expected_decrease
    (('widen', '0', None, 'held_out_gain'), 0.1)
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
    dispersion: float | None = None
    cross_fold_gain: float = math.nan
    layer_number: int | None = None
    criterion: Criterion = "held_out_gain"
    flops: int | None = None
    flops_per_parameter: float | None = None

    @property
    def key(self) -> CandidateKey:
        """Key that is unique among the candidates offered together; copies share it."""
        return self.kind, self.place, self.layer_number, self.criterion

    @property
    def expected_decrease(self) -> float:
        """Expected decrease of the loss per sample, in nats if it is a likelihood; negative for pruning."""
        # eta = g^T F^-1 g is twice what a natural gradient step takes off the quadratic model of the loss
        gain = self.gain if self.kind == "prune" else self.held_out_gain
        return gain / (2 * self.loss_per_nat)

    @property
    def price_unit(self) -> float:
        """What one nat of a price comes to in the unit of `expected_decrease`: 1 where that is in nats."""
        return 1.0 if self.dispersion is None else self.dispersion

    def size_in(self, unit: SizeUnit) -> float:
        """Return the net change of size, in parameters.

        Args:
            unit: `parameters` for their number; `flops` for the number that has as many operations as the change, at as
                many operations a parameter as the network has. So a share of the network's operations counts as the
                same share of its parameters.

        Raises:
            SennError: operations are asked for, and aren't counted.

        """
        if unit == "parameters":
            return self.parameters
        if self.flops is None or self.flops_per_parameter is None:
            raise SennError(f"the operations of the candidate at {self.place!r} aren't counted")
        # A network without a single operation has none to price.
        return self.flops / self.flops_per_parameter if self.flops_per_parameter else 0.0


def price_of(policy: Any, candidate: Candidate) -> float:
    """Price a candidate, in the unit of its expected decrease.

    Args:
        policy: a policy, which need not be a subclass of `Policy`: then it may price parameters only.
        candidate: the candidate.
    """
    own = getattr(policy, "price_of", None)
    if own is not None:
        return float(own(candidate))
    return float(policy.price(candidate.parameters, candidate.samples) * candidate.price_unit)


def policy_rule(*, named: bool = False) -> Rule:
    """Build the rule for policies; with `named`, names of policies are allowed, too."""

    def allows(value: Any) -> bool:
        # A policy need not be a subclass of Policy. NumPy's scalars have a method `choose`, so one name isn't enough.
        is_policy = all(hasattr(value, name) for name in ("choose", "price", "margin"))
        return (is_policy and not isinstance(value, type)) or (named and isinstance(value, str))

    return Rule(
        expected="a policy such as PricePolicy()" + (", its name" if named else ""), allows=allows
    )


def width_rule() -> Rule:
    """Build the rule for limits of widths: one number, or one for each of some places."""
    number, name, limit = whole(low=1), text(), whole(low=0)

    def allows(value: Any) -> bool:
        if isinstance(value, Mapping):
            return all(name.allows(key) and limit.allows(one) for key, one in value.items())
        return number.allows(value)

    return Rule(
        expected="a whole number of at least 1, or a mapping from places to whole numbers",
        allows=allows,
    )


@dataclass(frozen=True)
class Budget:
    """Limits of a model's size that hold for every policy.

    Args:
        max_params: most parameters of the whole model; None for no limit.
        max_width: most units of one channel group, or a mapping from places to that: places that it leaves out have no
            limit, and one at or above its own can't grow. None for no limit.
        round_to: divisor of all widths after growth.
        max_flops: most floating-point operations of one forward pass, per sample (`senn.flops`); None for no limit.

    Raises:
        SennError: an argument is out of range.
    """

    max_params: int | None = None
    max_width: int | Mapping[str, int] | None = None
    round_to: int = 1
    max_flops: int | None = None

    _RANGES: ClassVar[Mapping[str, Rule]] = {
        "max_params": whole(low=1).or_none(),
        "max_width": width_rule().or_none(),
        "round_to": whole(low=1),
        "max_flops": whole(low=1).or_none(),
    }

    def __post_init__(self) -> None:
        check_fields(self, self._RANGES)

    def allows(self, candidate: Candidate, parameters: int, flops: int | None = None) -> bool:
        """Return True if a candidate fits into the budget.

        Args:
            candidate: the change; pruning always fits, also where a limit has been lowered below the current size.
            parameters: number of parameters of the model, with the changes accepted in this round.
            flops: operations of its forward pass with these; None where they aren't counted, and then no addition fits
                a limit of them.
        """
        if candidate.kind == "prune":
            return True
        counted = flops is not None and candidate.flops is not None
        after = flops + candidate.flops if counted else None  # type: ignore[operator]
        return self.allows_width(candidate) and self.allows_size(
            parameters + candidate.parameters, after
        )

    def allows_size(self, parameters: int, flops: int | None) -> bool:
        """Return True if a model of that size is within the limits.

        Args:
            parameters: their number.
            flops: operations of its forward pass; None where they can't be counted.
        """
        if self.max_params is not None and parameters > self.max_params:
            return False
        return self.max_flops is None or (flops is not None and flops <= self.max_flops)

    def allows_width(self, candidate: Candidate) -> bool:
        """Return True if an addition leaves its place within the limit of widths."""
        limit = self.max_width
        if isinstance(limit, Mapping):
            limit = limit.get(candidate.place)
        return limit is None or candidate.width <= limit

    def check_places(self, known: Collection[str]) -> None:
        """Refuse limits of places that there aren't.

        Args:
            known: names of all places, also of those that can't change.

        Raises:
            SennError: `max_width` names another.
        """
        named = self.max_width if isinstance(self.max_width, Mapping) else ()
        for name in named:
            if name not in known:
                raise SennError(
                    f"max_width names {name!r}, which is no place of this model; places are {', '.join(known)}"
                )
