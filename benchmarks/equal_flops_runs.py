"""Runs of `equal_flops.py`: the library's own, counted, and one that ends when its operations are spent.

Both keep the weights that do best on the validation rows, by the library's figure, and leave a curve: operations so
far, parameters, validation loss, validation score, one point for each validation.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from equal_flops_tasks import Problem
from flop_meter import Meter
from torch import Tensor, nn
from torch.nn import functional as F

from senn.checkpoint.module_shapes import describe_shapes
from senn.training import TrainConfig
from senn.training.batches import Inputs, Rows
from senn.training.threads import RunThreads
from senn.training.train_step import TrainStep
from senn.training.training_run import Training
from senn.training.validation import Validation, rank, validate

VALIDATIONS = (10, 120)
"""Fewest and most validations of a run that ends when its operations are spent."""


@torch.no_grad()
def evaluate(
    model: nn.Module, rows: Rows, problem: Problem, loss: Callable[..., Tensor]
) -> Validation:
    """Loss and score of a net on rows, as the library has them; where each row has many targets, means over them."""
    if rows.y.dim() == 1 or rows.y.is_floating_point():
        return validate(model, rows, problem.inputs, loss, problem.kind)
    training = model.training
    model.eval()
    output = torch.cat([model(x) for x in rows.x.split(256)])
    model.train(training)
    losses = F.cross_entropy(output, rows.y, reduction="none").mean(1)
    hits = (output.argmax(1) == rows.y).float().mean(1)
    return Validation(
        figures={"loss": losses.mean().item(), "accuracy": hits.mean().item()},
        row_losses=losses,
        misses=1 - hits,
        weight=torch.full((len(rows),), 1 / len(rows)),
    )


def score_of(figures: dict[str, float]) -> float:
    """Accuracy or R2 among the figures of a validation."""
    return figures.get("accuracy", figures.get("r2", math.nan))


def size_of(model: nn.Module) -> int:
    """Parameters; of a net that uses a part of its own, those in use."""
    used = getattr(model, "used_parameters", None)
    return sum(one.numel() for one in model.parameters()) if used is None else int(used)


class CountedTraining(Training):
    """The library's training loop, with its operations counted; it decides as it does without.

    Attributes:
        meter: counts.
        curve: a point for each epoch.
        births: for each round that widened, operations so far and units.
    """

    def __init__(
        self, problem: Problem, model: nn.Module, *, recipe: TrainConfig, threads: RunThreads
    ) -> None:
        self.meter, self.problem = Meter(), problem
        self.curve: list[list[float]] = []
        self.births: list[tuple[float, int]] = []
        rows, held_out, generator = problem.split(recipe.seed, recipe)
        super().__init__(
            model,
            rows,
            held_out,
            task=problem.kind,
            recipe=recipe,
            generator=generator,
            callbacks=(),
            inputs=problem.inputs,
            checkpointer=None,
            threads=threads,
        )
        take_step = self.learner.step

        def counted_step(x: Tensor, *targets: Tensor, stop: bool = False) -> Tensor:
            self.meter.take_step(self.model, self.learner.loss, x, *targets)
            return take_step(x, *targets, stop=stop)

        self.learner.step = counted_step  # type: ignore[method-assign]

    def grow(self, moves: Sequence[str]) -> None:
        """Run a round; everything in it is looking."""
        before = len(self.learner.events)
        with self.meter.counting("looking"):
            super().grow(moves)
        new = self.learner.events[before:]
        if added := sum(event.units for event in new if event.kind == "widen"):
            self.births.append((self.meter.total, added))

    def validate(self, model: nn.Module) -> Validation | None:
        """Validate, and count it."""
        assert self.held_out is not None
        with self.meter.counting("validation"):
            return evaluate(model, self.held_out, self.problem, self.learner.loss)

    def end_epoch(self, train_loss: float) -> bool:
        """End an epoch, with a point of the curve."""
        stop = super().end_epoch(train_loss)
        last = self.state.history[-1]
        if last["event"] == "epoch":
            self.curve.append(point(self.meter, self.model, last))
        return stop


def point(meter: Meter, model: nn.Module, record: dict[str, Any]) -> list[float]:
    """A point of a curve, from a record with `validation_loss` and `validation_score`."""
    return [meter.total, size_of(model), record["validation_loss"], record["validation_score"]]


def library_run(problem: Problem, model: nn.Module, recipe: TrainConfig) -> dict[str, Any]:
    """Train by the library's own loop, to its own end.

    Args:
        problem: the task.
        model: a fresh net, whose weights were drawn last: the global random state goes on from there.
        recipe: with the seed, and with or without growth.
    """
    started = time.process_time()
    with RunThreads(1, torch.device("cpu")) as threads:
        run = CountedTraining(problem, model, recipe=recipe, threads=threads)
        result = run.run()
    history = result.history
    kept = [one for one in history if one["event"] == "epoch" and one["epoch"] == result.best_epoch]
    return {
        "model": result.model,
        "loss": run.learner.loss,
        "flops": run.meter.total,
        "by kind": run.meter.spent,
        "parameters": result.parameters,
        "validation": result.validation,
        "steps": run.state.step,
        "epochs": history[-1]["epochs"],
        "kept epoch": kept[0]["epoch"] if kept else 0,
        "curve": run.curve,
        "births": run.births,
        "events": sum(one["event"] == "growth" for one in history),
        "faults": [one["text"] for one in history if one["event"] in ("rollback", "fault")],
        "seconds": time.process_time() - started,
    }


class BudgetedRun:
    """One net, trained until its operations are spent; its learning rate follows what is spent of them.

    Args:
        problem: the task.
        model: a fresh net.
        budget: operations of training and looking.
        seed: of everything drawn.
        validations: how often the net is validated, evenly.
        births: fractions of the budget at which `grow` is called with the run and the number of the birth.
        grow: changes the net; it counts as looking.
    """

    def __init__(
        self,
        problem: Problem,
        model: nn.Module,
        *,
        budget: float,
        seed: int,
        validations: int,
        births: Sequence[float] = (),
        grow: Callable[[BudgetedRun, int], None] | None = None,
    ) -> None:
        self.problem, self.model, self.budget = problem, model, budget
        self.meter, self.births, self.grow = Meter(), births, grow
        self.recipe = problem.recipe(seed=seed)
        self.rows, self.held_out, self.generator = problem.split(seed, self.recipe)
        fixed = replace(self.recipe, grow=False)
        self.learner = TrainStep(model, fixed, problem.kind, samples=len(self.rows))
        self.validations = min(max(validations, VALIDATIONS[0]), VALIDATIONS[1])
        is_large = len(self.held_out) >= 1000  # as the library chooses
        self.monitor = self.recipe.monitor or ("score" if is_large else "loss")
        self.curve: list[list[float]] = []
        self.best: tuple[nn.Module, dict[str, float]] | None = None

    def batches(self) -> Iterator[tuple[Tensor, ...]]:
        """Batches, epoch after epoch, as the library makes them."""
        count = self.recipe.plan(len(self.rows)).batches
        inputs: Inputs = self.problem.inputs
        while True:
            order = torch.randperm(len(self.rows), generator=self.generator)
            for batch in self.rows.take(order).batches(count):
                yield inputs.training(batch, self.generator)

    def run(self) -> dict[str, Any]:
        """Train; returns the same figures as `library_run`."""
        started, steps, born, told = time.process_time(), 0, 0, 0
        for batch in self.batches():
            while born < len(self.births) and self.progress >= self.births[born]:
                assert self.grow is not None
                with self.meter.counting("looking"):
                    self.grow(self, born)
                self.best = None  # what was best before was so at another size
                born += 1
            cost = self.meter.step_cost(self.model, self.learner.loss, *batch)
            # to the nearest step, and at least one
            if steps and self.meter.total + cost / 2 > self.budget:
                break
            self.learner.set_lr(self.recipe.lr_factor(min(1.0, self.progress)))
            self.meter.take_step(self.model, self.learner.loss, *batch)
            self.learner.step(*batch)
            steps += 1
            if self.progress >= (told + 1) / self.validations:
                self.validate()
                told = int(self.progress * self.validations)
        if not self.curve or self.curve[-1][0] != self.meter.total:
            self.validate()
        return self.figures(steps, time.process_time() - started)

    @property
    def progress(self) -> float:
        """Fraction of the budget that is spent."""
        return self.meter.total / self.budget

    def validate(self) -> None:
        """Validate, add a point to the curve, and keep the net if it is the best of its size."""
        with self.meter.counting("validation"):
            found = evaluate(self.model, self.held_out, self.problem, self.learner.loss).figures
        record = {"validation_loss": found["loss"], "validation_score": score_of(found)}
        self.curve.append(point(self.meter, self.model, record))
        is_finite = math.isfinite(found["loss"])
        if is_finite and (
            self.best is None or rank(found, self.monitor) < rank(self.best[1], self.monitor)
        ):
            self.best = copy.deepcopy(self.model), found

    def figures(self, steps: int, seconds: float) -> dict[str, Any]:
        """What became of the run."""
        model, validation = self.best or (self.model, {"loss": math.inf})
        return {
            "model": model,
            "loss": self.learner.loss,
            "flops": self.meter.total,
            "by kind": self.meter.spent,
            "parameters": size_of(model),
            "validation": validation,
            "steps": steps,
            "curve": self.curve,
            "seconds": seconds,
        }


def shapes_of(model: nn.Module) -> dict[str, Any]:
    """JSON-able sizes of a net, for `resize_like`."""
    described = describe_shapes(model)
    assert not described["buffers"]
    return {**described, "buffers": {}}
