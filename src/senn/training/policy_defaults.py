"""Settings of training that follow from the policy where they aren't given: rounds, ascent, the policy by name."""

from __future__ import annotations

from dataclasses import dataclass

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
        ascent_steps: steps of gradient ascent of candidates, in a `senn.nn.MLP`.
    """

    policy: Policy
    addition_rounds: DefaultRounds
    pruning_rounds: DefaultRounds
    ascent_steps: int


PRICE = PolicyDefaults(
    policy=PricePolicy(),
    addition_rounds=DefaultRounds((0.005, 0.01, 0.02, 0.04, 0.08, 0.16)),
    pruning_rounds=DefaultRounds((0.4,)),
    ascent_steps=0,
)
# The paper considers growth throughout training, and moves candidates uphill before it scores them. Its tau is 0.007
# for images (appendix) where growth starts from a small net that knows little; here eta counts the linear shortcut from
# the start, so that with tau = 1 the first unit would have to outdo all of it.
PAPER = PolicyDefaults(
    policy=PaperPolicy(tau=0.1, prune_fraction=0.1),
    addition_rounds=DefaultRounds(number / 20 for number in range(1, 14)),
    pruning_rounds=DefaultRounds((0.38, 0.68)),
    ascent_steps=30,
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
