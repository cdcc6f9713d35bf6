"""Training on rows as they come, without a planned end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from senn._records import reading_state
from senn.checkpoint.model_state import State
from senn.errors import DivergenceError
from senn.nn import MLP
from senn.schedule import GrowthSchedule
from senn.training.batches import Rows
from senn.training.round_records import Record, RoundRecorder
from senn.training.train_config import Task, TrainConfig
from senn.training.train_step import TrainStep


class IncrementalTrainer:
    """Trains and grows one net pass by pass, at a constant learning rate.

    Args:
        model: the net to go on with; it stays the same object.
        recipe: optimizer, batch size and growth; its schedule, stopping and averaging belong to a planned run.
        task: decides on the loss.
    """

    def __init__(self, model: MLP, recipe: TrainConfig, task: Task) -> None:
        self.model = model
        self.recipe = recipe
        self.learner = TrainStep(model, recipe, task, samples=0)
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.step = self.passes = 0
        self.rounds = GrowthSchedule(recipe)

    def partial_fit(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> list[Record]:
        """One pass over rows x (n, d) with targets y and weights (n,); what happened, as in `Run.history`.

        A round that has come due takes place at the end of a pass, on its rows (`GrowthSchedule`, without a planned
        end); the price of a parameter goes by all the rows seen so far.

        Raises:
            DivergenceError: the loss or a step is not finite.
        """
        if weight is not None:
            weight = None if (weight == weight[0]).all() else (weight / weight.mean()).to(x)
        rows = Rows(x=x, y=y, weight=weight)
        self.learner.samples += len(rows)
        self.passes += 1
        losses = []
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(self.recipe.seed + self.passes)
            order = torch.randperm(len(rows), generator=self.generator)
            for batch in rows.take(order).batches(self.recipe.plan(len(rows)).batches):
                losses.append(self.learner.step(*batch))
                self.step += 1
            loss = torch.stack(losses).mean()
            if not torch.isfinite(loss):
                raise DivergenceError("The loss is not finite any more: the learning rate may be too high.")
            record = {"event": "epoch", "epoch": self.passes, "step": self.step, "train_loss": loss.item()}
            grown = self._grow(rows.take(order[: self.recipe.max_scoring_samples]))
        return [*grown, {**record, "architecture": list(self.model.hidden)}]

    def state_dict(self) -> State:
        """All that passes change: nested plain values and tensors, copies."""
        return {
            "learner": self.learner.state_dict(),
            "generator": self.generator.get_state(),
            "rounds": self.rounds.state_dict(),
            "step": self.step,
            "passes": self.passes,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken: with the same recipe, and a net that may still be as small as it began.

        Raises:
            SennError: it isn't the state of such a training.
        """
        with reading_state("this isn't the state of such a training"):
            self.learner.load_state_dict(state["learner"])
            self.generator.set_state(state["generator"])
            self.rounds.load_state_dict(state["rounds"])
            self.step, self.passes = int(state["step"]), int(state["passes"])

    def _grow(self, probe: Rows) -> list[Record]:
        if not (moves := self.rounds.due(self.step)):
            return []
        records: list[Record] = []
        recorder = RoundRecorder(self.learner, records.append)
        recorder.run(lambda: self.learner.grow(probe.batches(1), moves), epoch=self.passes, step=self.step)
        return [record for record in records if record["event"] != "growth_round"]
