"""Steps at which a network is considered for growth, and for which moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

ADDITION_MOVES = ("width", "depth")
PRUNING_MOVES = ("prune",)


class ScheduleConfig(Protocol):
    """Fields of a training configuration that say when rounds take place."""

    @property
    def grow(self) -> bool:
        """False for a network that keeps its size."""

    @property
    def growth_steps(self) -> int:
        """Number of steps, from the first one on, in which growth takes place."""

    @property
    def addition_rounds(self) -> tuple[float, ...]:
        """Rounds of additions, as fractions of `growth_steps`."""

    @property
    def pruning_rounds(self) -> tuple[float, ...]:
        """Rounds of pruning, as fractions of `growth_steps`."""


class GrowthSchedule:
    """Rounds of a run: additions early and often, pruning later.

    Gains are largest in the first few dozen steps of a run, and a unit that comes late finds a network that has settled
    without it. How much a unit is worth shows only after it has been trained. See docs/criteria.md for the experiments.

    Args:
        recipe: fractions of the steps at which rounds take place, such as a `senn.training.TrainConfig`.
        steps: optimizer steps of the whole run. None if the run has no planned end: the last round of each kind then
            recurs, each time after twice as many steps, or three times as many where the other kind has a round at that
            step.

    Attributes:
        share: length of the run as it is, as a share of the one that was planned: rounds lie at so much of their steps.

    Example:
        >>> from senn.schedule import GrowthSchedule
        >>> from senn.training import TrainConfig
        >>> schedule = GrowthSchedule(TrainConfig(addition_rounds=(0.1, 0.2), pruning_rounds=(0.5,)), steps=100)
        >>> [(step, schedule.due(step)) for step in (5, 10, 20, 50)]
        [(5, ()), (10, ('width', 'depth')), (20, ('width', 'depth')), (50, ('prune',))]
    """

    def __init__(self, recipe: ScheduleConfig, steps: int | None = None) -> None:
        total = recipe.growth_steps if steps is None else min(steps, recipe.growth_steps)

        def step_of(fraction: float) -> int:
            return max(1, round(fraction * total))

        planned: dict[int, tuple[str, ...]] = {}
        for fraction in recipe.pruning_rounds:
            planned[step_of(fraction)] = PRUNING_MOVES
        # Additions come second: where both fall on one step, they take it.
        for fraction in recipe.addition_rounds:
            planned[step_of(fraction)] = ADDITION_MOVES
        self._left = sorted(planned.items()) if recipe.grow else []
        self._recurs = steps is None
        self.share = 1.0

    @property
    def remaining(self) -> int:
        """Number of rounds that are left."""
        return len(self._left)

    @property
    def next(self) -> int | None:
        """Step of the next round; None if none is left."""
        return max(1, round(self.share * self._left[0][0])) if self._left else None

    def waiting(self, step: int) -> bool:
        """Return True if a round is due after optimizer step number `step`."""
        return self.next is not None and self.next <= step

    def due(self, step: int) -> tuple[str, ...]:
        """Take the round that is due after optimizer step number `step` off the schedule.

        Of several rounds that lie before the step and were never asked for, only the last takes place.

        Returns:
            Moves that the round considers, for `Grower.grow(moves=...)`; empty if no round is due.
        """
        moves: tuple[str, ...] = ()
        while self.waiting(step):
            at, moves = self._left.pop(0)
            last_of_its_kind = all(other != moves for _, other in self._left)
            if self._recurs and last_of_its_kind:
                # Doubled intervals: a long run has O(log steps) rounds. Tripled where the other kind has taken that
                # step, or the two would meet again and again and one kind would never take place.
                taken = {other for other, _ in self._left}
                again = 3 * at if 2 * at in taken else 2 * at
                self._left = sorted([*self._left, (again, moves)])
        return moves

    def state_dict(self) -> dict[str, Any]:
        """Return the rounds that are left, as nested plain values."""
        return {"left": [[step, [*moves]] for step, moves in self._left]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._left = [(int(step), tuple(moves)) for step, moves in state["left"]]
