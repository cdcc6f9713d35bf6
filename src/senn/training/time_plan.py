"""A limit of a run's time: the run plans as many steps as there is time for, and ends as a whole run does."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from senn.collectives import Communicator
from senn.schedule import GrowthSchedule
from senn.training.run_state import RunState
from senn.training.train_config import TrainConfig

ENDING = 0.02
"""Share of the limit that is left for what comes after the last step: copies, records."""

# Measured on wine and digits: 1.7 and 1.4 times a round of removals.
FRONTIER = 2.0
"""Most that `kept_frontier` takes, in rounds."""

# A round has two backward passes in the place of one, a forward pass through a wider copy, and factorizations.
ROUND = 10
"""What a round is taken to cost before one has been timed, in training passes over the rows that it scores."""

_MEMORY = 0.98
"""Weight of a step beside the one after it, in the mean time of a step: the last fifty or so count."""

_LONGER = 1.1
"""Factor by which more steps must be possible than are planned before a plan that was shortened gets longer again."""


class TimePlan:
    """Plans a run's steps so that the run ends within its limit of time.

    Steps, validations and rounds are timed apart. What they have taken so far says how many steps there is still time
    for: with fewer than planned, the schedule of the learning rate and the rounds that are left are those of a run of
    that length. A run that has time for all of its steps is as it would be without a limit.

    Args:
        recipe: configuration of the run.
        state: position of the run, whose configuration is shortened.
        rounds: rounds that are left, which move with it.
        scored: number of rows that a round scores, as a share of an epoch's.
        communicator: processes that make the same run: all go by the clock of the first.
    """

    def __init__(
        self,
        recipe: TrainConfig,
        state: RunState,
        rounds: GrowthSchedule,
        *,
        scored: float,
        communicator: Communicator,
    ) -> None:
        self.recipe, self.state, self.rounds = recipe, state, rounds
        self.limit, self.communicator = recipe.max_seconds, communicator
        self._scored = scored
        self._planned = state.config
        self._whole, self._own = state.config, state.config
        self._reason = state.reason
        self._last, self._is_warm = 0.0, False
        self._step_seconds = self._steps = 0.0
        self._pace = self._validation = self._round = 0.0
        self._rounds_with_time = rounds.remaining

    def start(self) -> None:
        """Begin to measure, with a new run or with one that is resumed."""
        if self.limit is not None:
            self._last = self.now()

    def spent(self, kind: Literal["step", "validation", "round"]) -> None:
        """Book the time since the last call, and plan anew.

        Args:
            kind: what it was spent on.
        """
        if self.limit is None:
            return
        now = self.now()
        passed, self._last = now - self._last, now
        if kind == "validation":
            self._validation = passed
        elif kind == "round":
            self._round = max(self._round, passed)
            # A network of another size has another pace; the former one stands until the next step.
            self._step_seconds = self._steps = 0.0
        else:
            self._book_step(passed)
        self._plan(now)

    def has_time_for_round(self) -> bool:
        """Return True if a round that is due can take place."""
        return self.limit is None or self._rounds_with_time > 0

    def has_time_for_frontier(self) -> bool:
        """Return True if the network that is kept can be measured at smaller sizes."""
        if self.limit is None:
            return True
        return self._affords_frontier and self.now() + self._frontier_cost <= self.limit

    def left_for_members(self) -> float | None:
        """Return the seconds that further networks may take; None for no limit."""
        return None if self.limit is None else (1 - ENDING) * self.limit - self.now()

    def now(self) -> float:
        """Return the seconds since the run began, by the clock of the first process."""
        seconds = self.state.seconds
        if self.communicator.is_single:
            return seconds
        return float(self.communicator.broadcast_object("read the clock", seconds))

    def _book_step(self, passed: float) -> None:
        # The first step of a process takes longer than those after it.
        if self._is_warm:
            self._step_seconds = _MEMORY * self._step_seconds + passed
            self._steps = _MEMORY * self._steps + 1
            self._pace = self._step_seconds / self._steps
        self._is_warm = True

    @property
    def _round_cost(self) -> float:
        guess = ROUND * self._pace * self._scored * self._planned.batches
        return self._round or guess

    @property
    def _frontier_cost(self) -> float:
        return FRONTIER * self._round_cost

    @property
    def _affords_frontier(self) -> bool:
        # No more than a quarter of the time for what is only measured: training has the rest.
        assert self.limit is not None
        return self.recipe.frontier and self._frontier_cost <= self.limit / 4

    def _plan(self, now: float) -> None:
        assert self.limit is not None
        state = self.state
        if state.config is not self._own:  # cut short for another reason, or resumed
            self._whole, self._own, self._reason = state.config, state.config, state.reason
            self._move_rounds(state.config.steps)
        per_step = self._pace + self._validation / self._planned.batches
        ending = ENDING * self.limit + self._validation
        if self._affords_frontier:
            ending += self._frontier_cost
        left, rounds = self.limit - now - ending, self.rounds.remaining
        wanted = self._whole.steps - state.step
        if wanted * per_step + rounds * self._round_cost <= left:
            self._rounds_with_time = rounds
            self._set_steps(self._whole.steps)
            return
        if self._round_cost > 0:
            # Growth may have half of the time: a large network that isn't trained is worth nothing.
            rounds = min(rounds, int(max(left, 0.0) / 2 / self._round_cost))
        self._rounds_with_time = rounds
        affordable = (left - rounds * self._round_cost) / per_step if per_step > 0 else 0.0
        self._set_steps(state.step + max(0, min(int(affordable), wanted)))

    def _set_steps(self, steps: int) -> None:
        """Plan so many steps, unless that would only follow the noise of the clock."""
        state, former = self.state, self.state.config
        # A learning rate that has begun to fall doesn't rise again.
        falls = self.recipe.lr_factor(state.step / former.steps) < 1 and (
            self.recipe.schedule == "tail"
        )
        is_longer = steps > _LONGER * former.steps or steps == self._whole.steps
        if steps == former.steps or (steps > former.steps and (falls or not is_longer)):
            return
        share = self._move_rounds(steps)
        epochs = max(state.epoch, math.ceil(steps / former.batches))
        state.config = self._own = replace(
            self._whole,
            steps=steps,
            epochs=epochs,
            growth_end=round(share * self._planned.growth_end),
        )
        state.reason = self._reason
        if steps < self._whole.steps:
            state.reason = (
                f"{steps:,} of {self._whole.steps:,} steps were planned, to end within "
                f"{self.limit:g} s"
            )

    def _move_rounds(self, steps: int) -> float:
        """Move the rounds that are left to where a run of so many steps has them; return the share of the planned."""
        most = self.recipe.growth_steps
        share = min(steps, most) / max(min(self._planned.steps, most), 1)
        self.rounds.share = share
        return share
