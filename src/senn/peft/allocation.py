"""Which adapters get rank and which give it up, under a budget of parameters: records in, records out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class PairScores:
    """What a pair's units are worth, those that could come and those that are there.

    Attributes:
        per_rank: parameters of a unit.
        decreases: by possible new unit, the decrease of the loss that it is expected to bring, of either sign.
        costs: by existing unit, the rise of the loss that its removal is expected to bring.
        max_rank: most units; None for no limit.
    """

    per_rank: int
    decreases: Sequence[float]
    costs: Sequence[float]
    max_rank: int | None = None

    @property
    def params(self) -> int:
        """Parameters of the units that are there."""
        return self.per_rank * len(self.costs)


@dataclass(frozen=True, kw_only=True)
class RankChange:
    """Units of a pair that come and go.

    Attributes:
        added: numbers of new units, as in `PairScores.decreases`.
        removed: numbers of existing units.
    """

    added: list[int] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)


def allocate(
    scores: Mapping[str, PairScores], max_params: int, swap_margin: float
) -> dict[str, RankChange]:
    """Choose the units that come and go: by decrease for each parameter, the largest first.

    While nothing fits any more, a unit takes the place of others that are worth less. A pair keeps one of
    its units at least.

    Args:
        scores: by pair.
        max_params: most parameters of all units together. If there are more, the cheapest units go first.
        swap_margin: how many times what leaves has to be worth, for each parameter, before something takes its place.

    Returns:
        By pair, where anything changes.

    >>> scores = {
    ...     "a": PairScores(per_rank=10, decreases=[0.5, 0.4, -0.1], costs=[0.0]),
    ...     "b": PairScores(per_rank=10, decreases=[0.1], costs=[0.0, 0.2]),
    ... }
    >>> found = allocate(scores, max_params=40, swap_margin=2.0)
    >>> found["a"].added, found["a"].removed, found["b"].removed
    ([0, 1], [], [0])
    """
    plan = _Plan(scores, max_params)
    additions = sorted(
        (
            (decrease / one.per_rank, name, number)
            for name, one in scores.items()
            for number, decrease in enumerate(one.decreases)
            if decrease > 0
        ),
        key=lambda entry: -entry[0],
    )
    for _, name, number in plan.leaving(float("inf"), -plan.left_over):
        plan.remove(name, number)
    for worth, name, number in additions:
        if plan.is_full(name):
            continue
        leaving = plan.leaving(worth / swap_margin, scores[name].per_rank - plan.left_over)
        freed = sum(scores[other].per_rank for _, other, _ in leaving)
        if plan.left_over + freed >= scores[name].per_rank:
            for _, other, unit in leaving:
                plan.remove(other, unit)
            plan.add(name, number)
    return {name: one for name, one in plan.changes.items() if one.added or one.removed}


class _Plan:
    """Changes so far, and the parameters that are left."""

    def __init__(self, scores: Mapping[str, PairScores], max_params: int) -> None:
        self.scores = scores
        self.changes = {name: RankChange() for name in scores}
        self.left_over = max_params - sum(one.params for one in scores.values())
        self.removable = sorted(
            (
                (cost / one.per_rank, name, unit)
                for name, one in scores.items()
                for unit, cost in enumerate(one.costs)
            ),
            key=lambda entry: entry[0],
        )

    def rank(self, name: str) -> int:
        change = self.changes[name]
        return len(self.scores[name].costs) + len(change.added) - len(change.removed)

    def is_full(self, name: str) -> bool:
        limit = self.scores[name].max_rank
        return limit is not None and self.rank(name) >= limit

    def leaving(self, worth: float, needed: int) -> list[tuple[float, str, int]]:
        """Return the cheapest units, each worth less than that, which together free so many parameters or fewer."""
        found: list[tuple[float, str, int]] = []
        # one of the units that are there stays, also beside new ones: surgery empties no group
        left = {
            name: len(one.costs) - len(self.changes[name].removed) - 1
            for name, one in self.scores.items()
        }
        for one in self.removable:
            if needed <= 0 or one[0] >= worth:
                break
            if left[one[1]]:
                left[one[1]] -= 1
                needed -= self.scores[one[1]].per_rank
                found.append(one)
        return found

    def remove(self, name: str, unit: int) -> None:
        self.changes[name].removed.append(unit)
        self.removable = [one for one in self.removable if one[1:] != (name, unit)]
        self.left_over += self.scores[name].per_rank

    def add(self, name: str, number: int) -> None:
        self.changes[name].added.append(number)
        self.left_over -= self.scores[name].per_rank
