"""Incremental training (`partial_fit`): rows as they come, without a planned end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from senn._records import reading_state
from senn.checkpoint.model_state import State
from senn.errors import DivergenceError
from senn.nn import MLP, Ensemble, SinhOutput
from senn.schedule import GrowthSchedule
from senn.training.batches import Rows
from senn.training.heavy_targets import network_in
from senn.training.round_records import Record, RoundRecorder
from senn.training.threads import step_flops
from senn.training.train_config import Task, TrainConfig
from senn.training.train_step import TrainStep


class IncrementalTrainer:
    """Trains and grows one network pass by pass, at a constant learning rate.

    Args:
        model: the network; it stays the same object.
        recipe: optimizer, batch size and growth; its schedule, stopping and averaging belong to a planned run.
        task: `classification` or `regression`; decides on the loss.

    Raises:
        SennError: the optimizer or the policy is unknown.
    """

    def __init__(self, model: MLP | Ensemble | SinhOutput, recipe: TrainConfig, task: Task) -> None:
        self.model = model
        self.recipe = recipe
        learning, self._transform = network_in(model)
        self.learner = TrainStep(learning, recipe, task, samples=0)
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.step = self.passes = 0
        self.rounds = GrowthSchedule(recipe)

    def partial_fit(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> list[Record]:
        """Pass once over some rows.

        A round that has become due takes place at the end of the pass, on its rows. The price of a parameter goes by
        all the rows seen so far.

        Args:
            x: (n, d) inputs.
            y: (n,) classes, or (n, k) numbers.
            weight: (n,) positive; None for equal weights.

        Returns:
            Records of the pass, as in `TrainResult.history` but without those of rounds.

        Raises:
            DivergenceError: the loss or a step is not finite.
        """
        if weight is not None:
            weight = None if (weight == weight[0]).all() else (weight / weight.mean()).to(x)
        if self._transform is not None:
            y = self._transform.transform(y)
        rows = Rows(x=x, y=y, weight=weight)
        # A parameter is worth its price if it helps on all rows seen so far, not on these alone.
        self.learner.samples += len(rows)
        self.passes += 1
        losses = []
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            # Dropout draws anew in each pass, and the same in a pass that is repeated from a saved state.
            torch.manual_seed(self.recipe.seed + self.passes)
            order = torch.randperm(len(rows), generator=self.generator)
            for batch in rows.take(order).batches(self.recipe.plan(len(rows)).batches):
                losses.append(self.learner.step(*batch))
                self.step += 1
            loss = torch.stack(losses).mean()
            if not torch.isfinite(loss):
                raise DivergenceError(
                    "the loss is not finite any more: the learning rate may be too high"
                )
            # After the pass, on some of its rows: rows of other passes are gone.
            grown = self._grow(rows.take(order[: self.recipe.max_scoring_samples]))
        record: Record = {
            "event": "epoch",
            "epoch": self.passes,
            "step": self.step,
            "train_loss": loss.item(),
            "architecture": list(self.model.hidden),
        }
        return [*grown, record]

    def step_flops(self, x: Tensor) -> int:
        """Count the floating-point operations of the forward pass of one step of a pass over rows.

        Args:
            x: (n, d) inputs.
        """
        return step_flops(self.model, x[:1], len(x), self.recipe)

    def state_dict(self) -> State:
        """Return all that passes change: nested plain values and tensors, copies.

        Raises:
            SennError: a parameter isn't finite.
        """
        return {
            "learner": self.learner.state_dict(),
            "generator": self.generator.get_state(),
            "rounds": self.rounds.state_dict(),
            "step": self.step,
            "passes": self.passes,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, with the same recipe; the network may still be as small as it began.

        Raises:
            SennError: it isn't the state of such a training.
        """
        with reading_state("this isn't the state of such a training"):
            self.learner.load_state_dict(state["learner"])
            self.generator.set_state(state["generator"])
            self.rounds.load_state_dict(state["rounds"])
            self.step, self.passes = int(state["step"]), int(state["passes"])

    def _grow(self, scored: Rows) -> list[Record]:
        moves = self.rounds.due(self.step)
        if not moves:
            return []
        records: list[Record] = []
        recorder = RoundRecorder(self.learner, records.append)
        recorder.run(
            lambda: self.learner.grow(scored.batches(1), moves), epoch=self.passes, step=self.step
        )
        # Passes may go on for ever, and a round's record holds every candidate.
        return [record for record in records if record["event"] != "growth_round"]
