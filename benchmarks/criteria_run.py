"""A run of `criteria.py`: one net through all of its steps, with what it costs and what became of its births."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from criteria_arms import WHEN, Arm, policy, units_at_birth
from criteria_tasks import Task
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import senn

PARITY_AFTER = 20
"""Steps after a birth at which gradients of new and old units are compared."""


class Run:
    """One net through all of its steps.

    Args:
        task: the task.
        arm: what chooses.
        when: name of the moments of growth.
        birth: how units are born.
        seed: of everything drawn.
        flops: operations after which it ends; None for the task's number of steps.
    """

    def __init__(
        self, task: Task, arm: Arm, *, when: str, birth: str, seed: int, flops: float | None
    ) -> None:
        torch.manual_seed(seed)
        self.task, self.arm, self.birth, self.seed = task, arm, birth, seed
        self.model = task.build(task.final() if arm.final else task.start)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=task.lr, weight_decay=0.01)
        self.training_flops = self.looking_flops = self._step_flops = 0.0
        self.training_seconds = self.looking_seconds = 0.0
        self.jumps: list[float] = []
        self.parity: list[float] = []
        self.former: dict[str, int] = {}
        self.steps = task.steps
        if flops is not None:
            self.steps = round(flops / self._measured_step(torch.arange(task.batch)))
        self.when = when
        self.rounds = {round(part * self.steps) for part in WHEN[when]} if arm.grows else set()
        self.generator = torch.Generator().manual_seed(7919 * seed + 1)
        self.grower = self._make_grower()

    def run(self) -> dict[str, Any]:
        """Train and grow; returns the record's figures."""
        batches = self.task.batches(self.seed)
        for step in range(self.steps):
            if step in self.rounds:
                self.former = self._widths()
                self._grow()
            self._step(next(batches), step)
            if step - PARITY_AFTER in self.rounds:
                self.parity.append(self._gradient_ratio())
        return {
            **self.task.figures(self.model),
            "widths": [*self._widths().values()],
            "steps": self.steps,
            "jumps": self.jumps,
            "parity": self.parity,
            "promised": [event.expected_decrease for event in self.grower.events],
            "realized": [event.realized_decrease for event in self.grower.events],
            "training flops": self.training_flops,
            "looking flops": self.looking_flops,
            "training seconds": self.training_seconds,
            "looking seconds": self.looking_seconds,
        }

    def _widths(self) -> dict[str, int]:
        return {name: len(self.model.get_submodule(name).weight) for name in self.task.start}

    def _gradient_ratio(self) -> float:
        """Length of the gradient of new units' incoming weights over that of the others', mean over places."""
        ratios = []
        for name, count in self.former.items():
            lengths = self.model.get_submodule(name).weight.grad.flatten(1).norm(dim=1)
            ratios.append(float(lengths[count:].mean() / lengths[:count].mean()))
        return sum(ratios) / len(ratios)

    def _make_grower(self) -> senn.Grower:
        task = self.task
        count = units_at_birth(task, self.when)
        units = None if self.arm.draws == "pool" else count
        return senn.Grower(
            self.model,
            self.optimizer,
            loss=task.loss,
            moves=("width",),
            samples=len(task.rows[0]),
            candidate_config=senn.CandidateConfig(units=units, initializer=self.arm.make(task)),
            seed=self.seed,
            birth="stepped" if self.birth == "stepped" else "silent",
        )

    def _measured_step(self, rows: Tensor) -> float:
        """Operations of one step at the present widths."""
        x, y, *_ = self.task.rows
        with FlopCounterMode(display=False) as counter:
            self.task.loss(self.model(x[rows]), y[rows]).backward()
        self.optimizer.zero_grad()
        self._step_flops = float(counter.get_total_flops())
        return self._step_flops

    def _step(self, rows: Tensor, step: int) -> None:
        if not self._step_flops:
            self._measured_step(rows)
        started = time.process_time()
        x, y, *_ = self.task.rows
        # constant, then down over the last third
        rate = self.task.lr * min(1.0, 3 * (1 - step / self.steps), (step + 1) / 20)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.zero_grad()
        self.task.loss(self.model(x[rows]), y[rows]).backward()
        self.optimizer.step()
        self.training_flops += self._step_flops
        self.training_seconds += time.process_time() - started

    def _grow(self) -> None:
        started = time.process_time()
        task, x, y = self.task, *self.task.rows[:2]
        # drawn by number alone, so that all arms see the same rows in a round
        count = min(self.arm.looks * task.looked_at, len(x))
        rows = torch.randperm(len(x), generator=self.generator)[:count]
        grower = self.grower
        grower.policy = policy(task, self.arm, when=self.when, generator=self.generator)
        with FlopCounterMode(display=False) as counter:
            grower.observe(x[rows], y[rows])
        events = grower.grow()
        if self.birth == "own":
            with torch.no_grad():
                before = float(task.loss(self.model(x[rows]), y[rows]))
                for event in events:
                    drawn = grower.candidate_set.widen[event.place].values
                    self._born(event.place, drawn)
                after = float(task.loss(self.model(x[rows]), y[rows]))
            self.jumps.append(after - before)
        else:
            self.jumps.append(events[0].loss_after - events[0].loss_before)
        self.looking_flops += counter.get_total_flops()
        self.looking_seconds += time.process_time() - started
        self._step_flops = 0.0

    def _born(self, place: str, drawn: Mapping[str, Tensor]) -> None:
        """Let an arm give its units outgoing weights, with incoming ones as it drew them."""
        module, weight = self.model.get_submodule(place), drawn[f"{place}.weight"].flatten(1)
        new = slice(-units_at_birth(self.task, self.when), None)
        # Units that the map reads may have come in the same round: theirs are the last columns. The library may have
        # scaled units, and chose them in an order of its own.
        now = module.weight[new].flatten(1)[:, : weight.shape[1]]
        units = (F.normalize(now) @ F.normalize(weight).mT).argmax(1)
        now.copy_(weight[units])  # a view of the weight
        module.bias[new] = drawn[f"{place}.bias"][units]
        initializer: Any = self.grower.candidate_config.initializer
        initializer.born(self.model, place, units)
