"""When a network is considered for growth, and for which moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Timing(Protocol):
    """The fields of a training configuration that say when rounds take place."""

    @property
    def grow(self) -> bool:
        """False for a network that keeps its size."""

    @property
    def growth_steps(self) -> int:
        """Growth takes place in the first so many steps."""

    @property
    def addition_rounds(self) -> tuple[float, ...]:
        """Rounds of additions, as fractions of these steps."""

    @property
    def pruning_rounds(self) -> tuple[float, ...]:
        """Rounds of removals, as fractions of these steps."""


ADDITIONS, REMOVALS = ("width", "depth"), ("prune",)


class GrowthSchedule:
    """When a net is considered, and for what: additions early and often, removals later.

    Gains are largest in the first few dozen steps of a run, and a unit that comes late finds a net that has settled
    without it. What units are worth shows when they have been trained.

    Args:
        recipe: at which fractions of the steps; a `senn.training.TrainConfig`, for one.
        steps: of the whole run; None where that has no planned end: the last round of each kind then comes again, each
            time twice as late, or three times where the other kind has its round at that step.
    """

    def __init__(self, recipe: Timing, steps: int | None = None) -> None:
        total = recipe.growth_steps if steps is None else min(steps, recipe.growth_steps)
        planned: dict[int, tuple[str, ...]] = {
            max(1, round(fraction * total)): REMOVALS for fraction in recipe.pruning_rounds
        }
        planned |= {max(1, round(fraction * total)): ADDITIONS for fraction in recipe.addition_rounds}
        self._left = sorted(planned.items()) if recipe.grow else []
        self._goes_on = steps is None

    @property
    def next(self) -> int | None:
        """The step of the next round; None if there is none any more."""
        return self._left[0][0] if self._left else None

    def waiting(self, step: int) -> bool:
        """Whether it is time for a round after that step."""
        return self.next is not None and self.next <= step

    def due(self, step: int) -> tuple[str, ...]:
        """Moves that are to be considered after that step; none if it isn't time for a round.

        Rounds that lie before the step and were never asked for are left out but for the last.
        """
        moves: tuple[str, ...] = ()
        while self.waiting(step):
            at, moves = self._left.pop(0)
            if self._goes_on and all(other != moves for _, other in self._left):
                again = 3 * at if any(taken == 2 * at for taken, _ in self._left) else 2 * at
                self._left = sorted([*self._left, (again, moves)])
        return moves

    def state_dict(self) -> dict[str, Any]:
        """The rounds that are left: nested plain values."""
        return {"left": [[step, [*moves]] for step, moves in self._left]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._left = [(int(step), tuple(moves)) for step, moves in state["left"]]
