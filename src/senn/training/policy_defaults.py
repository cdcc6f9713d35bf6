"""Settings of training that follow from the policy where they aren't given: start, rounds, candidates, the policy."""

from __future__ import annotations

from dataclasses import dataclass

from senn.candidates.candidate_config import CandidateConfig
from senn.errors import SennError
from senn.policies import PaperPolicy, Policy, PricePolicy


class DefaultRounds(tuple[float, ...]):
    """Rounds that weren't given, and so follow from the policy, also when that is replaced."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True)
class PolicyDefaults:
    """What goes with a policy.

    Attributes:
        policy: the policy, with the settings that suit training on tables.
        addition_rounds: rounds of additions, as fractions of the steps of growth.
        pruning_rounds: rounds in which units can only go.
        candidates: what is offered in a `senn.nn.MLP`.
        hidden: widths of the hidden layers of a table's network at the start.
        moves: moves that a network makes which starts with these.
        shortcut: True if its inputs also reach its outputs through one linear map.
        activation: name of its activation.
        removes_from_best: True if rounds of removals begin with the weights of the best epoch at the present size.
    """

    policy: Policy
    addition_rounds: DefaultRounds
    pruning_rounds: DefaultRounds
    candidates: CandidateConfig
    hidden: tuple[int, ...]
    moves: tuple[str, ...]
    shortcut: bool
    activation: str
    removes_from_best: bool


PRICE = PolicyDefaults(
    policy=PricePolicy(),
    # With two rounds (0.02, 0.16) or 64 candidates in each, a run takes a quarter less time, and on ten tables nets
    # ended .001 to .003 lower, with a standard error of .0014 (benchmarks/table_sizes.py --tuning --recipe): they buy
    # fewer units.
    addition_rounds=DefaultRounds((0.005, 0.01, 0.02, 0.04, 0.08, 0.16)),
    pruning_rounds=DefaultRounds((0.4,)),
    candidates=CandidateConfig(),
    # On tables nets from two layers of 64 units, which keep their depth, end better than those from two units or one
    # layer, and than those that may insert layers, and vary less in size (benchmarks/table_sizes.py --tuning).
    hidden=(64, 64),
    moves=("width", "prune"),
    shortcut=True,
    activation="relu",
    removes_from_best=True,
)
# The method of the paper, with the values of its authors' code for half-moons and regression (figures 2 and 3): tau,
# alpha, layer_cost and a hundred candidates with 300 steps of ascent; rational units, identity layers only, growth from
# one hidden unit all through training. No shortcut: eta would count it from the start, so that the first unit would
# have to outdo all of a linear model. `prune_fraction` is ours: theirs, 3e-4, is for layers of hundreds of channels.
PAPER = PolicyDefaults(
    policy=PaperPolicy(prune_fraction=0.01),
    addition_rounds=DefaultRounds(number / 20 for number in range(1, 20)),
    pruning_rounds=DefaultRounds((number + 0.5) / 20 for number in range(1, 19)),
    candidates=CandidateConfig(
        units=100, residual_units=0, ascent_steps=300, activation="Rational"
    ),
    hidden=(1,),
    moves=("width", "depth", "prune"),
    shortcut=False,
    activation="rational",
    removes_from_best=False,
)

BY_NAME = {"price": PRICE, "paper": PAPER}


def policy_defaults(policy: Policy | str | None) -> PolicyDefaults:
    """Find the settings that go with a policy.

    Args:
        policy: an object, a name, or None for the price policy.

    Raises:
        SennError: no policy has that name.
    """
    if policy is None:
        return PRICE
    if not isinstance(policy, str):
        return PAPER if isinstance(policy, PaperPolicy) else PRICE
    if policy not in BY_NAME:
        raise SennError(f"unknown policy {policy!r}; known are {', '.join(sorted(BY_NAME))}")
    return BY_NAME[policy]
