"""The training loop: epochs of steps, rounds of growth, validation, stopping."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from senn.errors import DivergenceError, SennError, SurgeryError
from senn.events import GrowthEvent
from senn.nn import MLP
from senn.training.callbacks import Callback
from senn.training.learner import Batch, Learner, build_model
from senn.training.recipe import Plan, Recipe, Rounds, Task
from senn.training.run import Record, Run, event_record, rollback_record
from senn.training.split import validation_split


def train(
    x: Tensor,
    y: Tensor,
    *,
    task: Task,
    outputs: int,
    recipe: Recipe | None = None,
    sample_weight: Tensor | None = None,
    validation: tuple[Tensor, Tensor] | None = None,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Train a net that finds its own size on a table held in memory.

    The global random state is left as it was. An interruption (KeyboardInterrupt) ends the run early and is
    marked in the result; a loss or a step that is not finite ends it with the last good net and the reason in the
    history.

    Args:
        x: (n, d) floating point, standardised.
        y: (n,) long classes for classification; (n, k) floating point, standardised, for regression.
        task: `classification` (cross-entropy) or `regression` (mean squared error).
        outputs: number of classes, or k.
        recipe: all choices; None for the defaults.
        sample_weight: (n,) non-negative; a row of weight zero counts as absent.
        validation: rows to validate on; None: `recipe.validation_fraction` of the rows, classes in proportion.
        callbacks: told of every event.

    Raises:
        SennError: for data or choices that make no sense, by name.
    """
    recipe = recipe or Recipe()
    _check(x, y, task, outputs, sample_weight)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(recipe.seed)
        generator = torch.Generator().manual_seed(recipe.seed)
        training, held_out = _partition(x, y, recipe, sample_weight, validation, generator)
        model = build_model(x.shape[1], outputs, recipe).to(x)
        _check_budget(model, recipe)
        return _Training(model, training, held_out, task, recipe, callbacks, generator).run()


@dataclass(frozen=True)
class Rows:
    """Rows to train or validate on: x (n, d), y, weight (n,) with mean 1 or None."""

    x: Tensor
    y: Tensor
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Tensor) -> Rows:
        """Those rows, in that order."""
        rows = rows.to(self.x.device)
        return Rows(self.x[rows], self.y[rows], None if self.weight is None else self.weight[rows])

    def batches(self, count: int) -> list[Batch]:
        """The rows in `count` batches of nearly equal size."""
        x, y = torch.tensor_split(self.x, count), torch.tensor_split(self.y, count)
        if self.weight is None:
            return list(zip(x, y, strict=True))
        return list(zip(x, y, torch.tensor_split(self.weight, count), strict=True))


@dataclass
class _Best:
    """The best net so far: a copy, its epoch and its validation figures."""

    model: nn.Module
    epoch: int
    validation: dict[str, float]


class _Training:
    """One run of `train`: its state between epochs."""

    def __init__(
        self,
        model: MLP,
        rows: Rows,
        held_out: Rows | None,
        task: Task,
        recipe: Recipe,
        callbacks: Sequence[Callback],
        generator: torch.Generator,
    ) -> None:
        self.started = time.perf_counter()
        self.model, self.rows, self.held_out = model, rows, held_out
        self.task, self.recipe, self.callbacks, self.generator = task, recipe, callbacks, generator
        self.plan: Plan = recipe.plan(len(rows))
        self.learner = Learner(model, recipe, task, samples=len(rows))
        # An accuracy says more than a loss about what is asked for, but only where enough rows are counted.
        large = held_out is not None and len(held_out) >= 1000
        self.monitor = recipe.monitor or ("score" if large else "loss")
        self.rounds = Rounds(recipe, self.plan.steps)
        self.step = self.epoch = 0
        self.reason = "all epochs done"
        self.history: list[Record] = []
        self.growth: list[tuple[GrowthEvent, Record]] = []
        self.best = _Best(copy.deepcopy(model), 0, self.validate(model))

    def run(self) -> Run:
        """All epochs, until one of the reasons to stop."""
        self.announce()
        interrupted = False
        try:
            while self.epoch < self.plan.epochs:
                self.epoch += 1
                if self.one_epoch():
                    break
        except KeyboardInterrupt:
            self.reason, interrupted = "interrupted", True
        except DivergenceError as error:
            self.reason = f"{error}, in epoch {self.epoch}; the net is that of epoch {self.best.epoch}"
        return self.finish(interrupted)

    def one_epoch(self) -> bool:
        """One pass over the rows; whether to stop."""
        losses = []
        order = torch.randperm(len(self.rows), generator=self.generator)
        for batch in self.rows.take(order).batches(self.plan.batches):
            self.learner.set_lr(self.recipe.lr_factor(self.step / self.plan.steps))
            losses.append(self.learner.step(*batch))
            self.step += 1
            if self.recipe.average == "ema":
                self.learner.update_average()
            if moves := self.rounds.due(self.step):
                if not math.isfinite(losses[-1].item()):
                    break
                self.grow(moves)
        if self.recipe.average == "swa" and self.step > (1 - self.recipe.tail) * self.plan.steps:
            self.learner.update_average()
        return self.end_epoch(torch.stack(losses).mean().item())

    def grow(self, moves: Sequence[str]) -> None:
        """One round of these moves, on at most `recipe.probe` training rows."""
        probe = self.rows
        if len(probe) > self.recipe.probe:
            probe = probe.take(torch.randperm(len(probe), generator=self.generator)[: self.recipe.probe])
        try:
            events = self.learner.grow(probe.batches(1), moves)
        except SurgeryError as error:  # everything is as it was, so training can go on
            self.history.append(rollback_record(error, self.epoch, self.step))
            return
        for event in events:
            record = event_record(event, self.epoch, self.step, self.model.hidden)
            self.growth.append((event, record))
            self.history.append(record)
            for callback in self.callbacks:
                callback.on_growth(record)

    def end_epoch(self, train_loss: float) -> bool:
        """Validate, record, keep the best; whether to stop."""
        averaged = self.learner.averaged
        model = self.model if averaged is None or averaged.n_averaged == 0 else averaged.module
        figures = self.validate(model)
        if not math.isfinite(train_loss) or not math.isfinite(figures.get("loss", 0.0)):
            self.reason = f"the loss was not finite in epoch {self.epoch}; the net is that of epoch {self.best.epoch}"
            return True
        if not figures or _rank(figures, self.monitor) < _rank(self.best.validation, self.monitor):
            self.best = _Best(copy.deepcopy(model), self.epoch, figures)
        self.report(train_loss, figures)
        stale = bool(figures) and self.epoch - self.best.epoch >= self.plan.patience
        return stale and self.step >= self.plan.growth_end and self.cut_short()

    def cut_short(self) -> bool:
        """Let the learning rate fall from now on, as at the end of a shorter run; whether to stop instead."""
        tail = self.recipe.tail
        falls = self.recipe.schedule == "tail" and 0 < tail < 1
        if falls and self.step >= (1 - tail) * self.plan.steps:
            return False
        self.reason = f"no better validation {self.monitor} for {self.plan.patience:g} epochs"
        if falls:
            epochs = math.ceil(self.epoch / (1 - tail))
            self.plan = replace(self.plan, epochs=epochs, steps=epochs * self.plan.batches)
        return not falls

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Loss and score on the validation rows; empty without any."""
        if self.held_out is None:
            return {}
        held_out = self.held_out
        training = model.training
        model.eval()
        output = model(held_out.x)
        model.train(training)
        loss = self.learner.loss(output, held_out.y, held_out.weight).item()
        weight = torch.ones(len(held_out)).to(output) if held_out.weight is None else held_out.weight
        if self.task == "classification":
            hit = (output.argmax(1) == held_out.y).to(output)
            return {"loss": loss, "accuracy": ((hit * weight).sum() / weight.sum()).item()}
        return {"loss": loss, "r2": _r2(output, held_out.y, weight)}

    def announce(self) -> None:
        """Tell the callbacks what is about to happen."""
        info = {
            "task": self.task,
            "epochs": self.plan.epochs,
            "steps": self.plan.steps,
            "train_rows": len(self.rows),
            "validation_rows": 0 if self.held_out is None else len(self.held_out),
            "architecture": list(self.model.hidden),
            "parameters": count_parameters(self.model),
            "optimizer": self.recipe.optimizer,
            "policy": _policy_name(self.recipe),
        }
        for callback in self.callbacks:
            callback.on_start(info)

    def report(self, train_loss: float, figures: dict[str, float]) -> None:
        """Record an epoch."""
        record = {
            "event": "epoch",
            "epoch": self.epoch,
            "epochs": self.plan.epochs,
            "step": self.step,
            "steps": self.plan.steps,
            "train_loss": train_loss,
            "validation_loss": figures.get("loss"),
            "validation_score": figures.get("accuracy", figures.get("r2")),
            "lr": self.learner.optimizer.param_groups[0]["lr"],
            "architecture": list(self.model.hidden),
            "parameters": count_parameters(self.model),
            "seconds": time.perf_counter() - self.started,
        }
        self.history.append(record)
        for callback in self.callbacks:
            callback.on_epoch(record)

    def finish(self, interrupted: bool) -> Run:
        """The result, from the best net."""
        for event, record in self.growth:  # what a move really brought is known only later
            record["realised"] = event.realised
        model = self.best.model.eval()
        run = Run(
            model=model,
            history=self.history,
            architecture=model.hidden,  # type: ignore[arg-type]
            parameters=count_parameters(model),
            seconds=time.perf_counter() - self.started,
            best_epoch=self.best.epoch,
            validation=self.best.validation,
            interrupted=interrupted,
        )
        record = {
            "event": "end",
            "best_epoch": run.best_epoch,
            "epochs": sum(record["event"] == "epoch" for record in self.history),
            "architecture": list(run.architecture),
            "parameters": run.parameters,
            "seconds": run.seconds,
            "validation": dict(run.validation),
            "interrupted": interrupted,
            "reason": self.reason,
        }
        self.history.append(record)
        for callback in self.callbacks:
            callback.on_end(record)
        return run


def count_parameters(model: nn.Module) -> int:
    """Number of parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def _rank(figures: dict[str, float], monitor: str) -> tuple[float, float]:
    """Smaller is better: by loss, or by accuracy and among equals by loss."""
    loss = figures.get("loss", math.inf)
    return (-figures.get("accuracy", 0.0) if monitor == "score" else loss, loss)


def _r2(output: Tensor, target: Tensor, weight: Tensor) -> float:
    """Coefficient of determination, averaged over the targets that vary."""
    w = (weight / weight.sum()).unsqueeze(1)
    residual = (w * (target - output) ** 2).sum(0)
    spread = (w * (target - (w * target).sum(0)) ** 2).sum(0)
    varies = spread > 0
    return (1 - residual[varies] / spread[varies]).mean().item() if varies.any() else 0.0


def _policy_name(recipe: Recipe) -> str | None:
    if not recipe.grow:
        return None
    policy = recipe.policy or "price"
    return policy if isinstance(policy, str) else type(policy).__name__


def _partition(
    x: Tensor,
    y: Tensor,
    recipe: Recipe,
    sample_weight: Tensor | None,
    validation: tuple[Tensor, Tensor] | None,
    generator: torch.Generator,
) -> tuple[Rows, Rows | None]:
    """Training rows and validation rows (None if there are none)."""
    rows = Rows(x, y)
    if sample_weight is not None:
        present = (sample_weight > 0).nonzero().flatten()
        weight = sample_weight[present].to(x)
        rows = Rows(x[present], y[present], None if (weight == weight[0]).all() else weight / weight.mean())
    if validation is not None:
        return rows, Rows(*validation)
    kept, held = validation_split(rows.y, recipe.validation_fraction, generator, minimum=max(1, recipe.min_validation))
    return rows.take(kept), rows.take(held) if len(held) else None


def _check_budget(model: nn.Module, recipe: Recipe) -> None:
    parameters = count_parameters(model)
    if recipe.grow and recipe.max_params is not None and parameters > recipe.max_params:
        raise SennError(f"max_params is {recipe.max_params}, but the net starts with {parameters} parameters.")


def _check(x: Tensor, y: Tensor, task: str, outputs: int, sample_weight: Tensor | None) -> None:
    if task not in ("classification", "regression"):
        raise SennError(f"task must be 'classification' or 'regression', not {task!r}.")
    if x.dim() != 2 or not x.is_floating_point() or x.shape[0] < 1 or x.shape[1] < 1:
        raise SennError(f"x must be a floating-point table of rows and columns, not {tuple(x.shape)} {x.dtype}.")
    expected = (len(x),) if task == "classification" else (len(x), outputs)
    if tuple(y.shape) != expected:
        raise SennError(f"y must have the shape {expected} for {task}, not {tuple(y.shape)}.")
    if task == "classification" and (y.dtype != torch.long or y.min() < 0 or y.max() >= outputs):
        raise SennError(f"y must hold class numbers from 0 to {outputs - 1} as torch.long.")
    if task == "regression" and not y.is_floating_point():
        raise SennError(f"y must be floating point for regression, not {y.dtype}.")
    for name, tensor in (("x", x), ("y", y)):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise SennError(f"{name} contains NaN or infinity.")
    if sample_weight is not None:
        weight = sample_weight
        if weight.shape != (len(x),) or not torch.isfinite(weight).all() or (weight < 0).any() or weight.sum() == 0:
            raise SennError(f"sample_weight must be {len(x)} finite numbers of at least 0, not all of them 0.")
