"""The training loop, for any model: epochs of steps, rounds of growth, validation, stopping."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from senn.errors import DivergenceError, SennError, SurgeryError
from senn.events import GrowthEvent
from senn.persistence.state import State
from senn.schedule import Rounds
from senn.training.callbacks import Callback
from senn.training.learner import Batch, Learner
from senn.training.recipe import Plan, Recipe, Task
from senn.training.rows import Inputs, Rows
from senn.training.run import (
    NUMERICAL,
    Record,
    Run,
    architecture,
    consideration_record,
    count_parameters,
    event_record,
    fault_record,
    first_line,
    forward_flops,
    r2,
    rank,
    rollback_record,
)
from senn.training.state import Keeper, captured, restore

_AT_ONCE = 500
"""Images that are validated at once: a table's rows go through a network together, those of an image are too many."""


def fit_model(
    model: nn.Module,
    rows: Rows,
    held_out: Rows | None,
    task: Task,
    recipe: Recipe,
    callbacks: Sequence[Callback],
    generator: torch.Generator,
    inputs: Inputs | None = None,
    keeper: Keeper | None = None,
) -> Run:
    """Train and grow a model that is there, on rows that are split already.

    Draws from the global random state too (dropout), which is the caller's to keep.

    Args:
        model: any module; a property `hidden`, where it has one, gives the widths that are recorded as `architecture`.
        rows: to train on.
        held_out: to validate on; None for no validation.
        task: decides on the loss.
        recipe: all choices but the model's own.
        callbacks: told of every event.
        generator: draws the order of the rows and what else is random in a batch.
        inputs: how the model reads the inputs of rows; None: as they are.
        keeper: keeps the run's state, and has one that is to be gone on with.

    Raises:
        SennError: for choices that make no sense, by name.
    """
    _check_budget(model, recipe)
    return Training(model, rows, held_out, task, recipe, callbacks, generator, inputs or Inputs(), keeper).run()


@dataclass
class _Best:
    """The best net so far: a copy, its epoch and its validation figures."""

    model: nn.Module
    epoch: int
    validation: dict[str, float]


class Training:
    """One run of `fit_model`.

    Attributes:
        at: steps made in this epoch.
        losses: of these.
        before_order: the generator's state before it drew the order of this epoch's rows.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: Rows,
        held_out: Rows | None,
        task: Task,
        recipe: Recipe,
        callbacks: Sequence[Callback],
        generator: torch.Generator,
        inputs: Inputs,
        keeper: Keeper | None,
    ) -> None:
        self.started = time.perf_counter()
        self.keeper, self.device = keeper, rows.x.device
        self.model, self.rows, self.held_out = model, rows, held_out
        self.task, self.recipe, self.callbacks, self.generator = task, recipe, callbacks, generator
        self.inputs = inputs
        self.plan: Plan = recipe.plan(len(rows))
        ranks = None if keeper is None else keeper.ranks
        self.learner = Learner(model, recipe, task, samples=len(rows), ranks=ranks)
        # An accuracy says more than a loss about what is asked for, but only where enough rows are counted.
        large = held_out is not None and len(held_out) >= 1000
        self.monitor = recipe.monitor or ("score" if large else "loss")
        self.rounds = Rounds(recipe, self.plan.steps)
        self.step = self.epoch = self.at = 0
        self.losses: list[Tensor] = []
        self.before_order = generator.get_state()
        self._spare: State | None = None
        self.reason = "all epochs done"
        self.history: list[Record] = []
        self.growth: list[tuple[GrowthEvent, Record]] = []
        self.best = _Best(copy.deepcopy(model), 0, self.validate(model))

    def run(self) -> Run:
        """All epochs, until one of the reasons to stop."""
        if self.keeper is not None and self.keeper.state is not None:
            restore(self, self.keeper.state)
            self.keeper.restart(self.history)
            for callback in self.callbacks:
                callback.on_start(self.history[0])
        else:
            self.announce()
        interrupted = False
        try:
            while self.epoch < self.plan.epochs or self.at:
                if self.one_epoch():
                    break
        except KeyboardInterrupt:
            self.reason, interrupted = "interrupted", True
            if self._spare is not None:
                self.keep(self._spare)
        except NUMERICAL as error:
            self.reason = f"{first_line(error)}, in epoch {self.epoch}; the net is that of epoch {self.best.epoch}"
        return self.finish(interrupted)

    def one_epoch(self) -> bool:
        """One pass over the rows, or what is left of it; whether to stop."""
        batches = self.rows.take(self.order()).batches(self.plan.batches)
        well = not self.at or self.round()  # a run may go on from just before a round
        for batch in batches[self.at :] if well else ():
            self.learner.set_lr(self.recipe.lr_factor(self.step / self.plan.steps))
            stop = self.keeper is not None and self.keeper.stopping
            self.losses.append(self.learner.step(*self.inputs.training(batch, self.generator), stop=stop))
            self.step += 1
            self.at += 1
            if self.recipe.average == "ema":
                self.learner.update_average()
            if not self.round():
                break
            self.pause()
        if self.recipe.average == "swa" and self.step > (1 - self.recipe.tail) * self.plan.steps:
            self.learner.update_average()
        loss = torch.stack(self.losses).mean().item()
        self.at, self.losses = 0, []
        return self.end_epoch(loss)

    def order(self) -> Tensor:
        """The order of the rows in this epoch: drawn at its beginning, or again where a run goes on in its middle."""
        if not self.at:
            self.epoch += 1
            self.before_order = self.generator.get_state()
            return torch.randperm(len(self.rows), generator=self.generator)
        again = torch.Generator()
        again.set_state(self.before_order)
        return torch.randperm(len(self.rows), generator=again)

    def round(self) -> bool:
        """The round that is due after this step, if one is; whether the loss was finite."""
        if not self.rounds.waiting(self.step):
            return True
        if self.keeper is not None:  # a round may take longer than one who interrupts it wants to wait
            with suppress(SennError):
                self._spare = captured(self)
        moves = self.rounds.due(self.step)
        if not math.isfinite(self.losses[-1].item()):
            return False
        self.grow(moves)
        self._spare = None
        return True

    def pause(self) -> None:
        """Between two steps, where all is in one piece: keep the state if it is wanted, and end if that is wanted."""
        if self.keeper is None:
            return
        stopping = self.keeper.stopping if self.learner.ranks.alone else self.learner.stopping
        if stopping or self.keeper.due():
            self.keep()
            if stopping:
                raise KeyboardInterrupt

    def keep(self, state: State | None = None) -> None:
        """Have the state kept, as it is now or was; training goes on if it can't be."""
        assert self.keeper is not None
        try:
            self.keeper.save(state or captured(self))
        except (SennError, OSError) as error:
            self.tell(fault_record(f"no checkpoint was written: {error}", self.epoch, self.step))

    def grow(self, moves: Sequence[str]) -> None:
        """One round of these moves, on at most `recipe.probe` training rows."""
        probe = self.rows
        if len(probe) > self.recipe.probe:
            probe = probe.take(torch.randperm(len(probe), generator=self.generator)[: self.recipe.probe])
        known, last = len(self.learner.rejections), self.learner.consideration
        hidden = architecture(self.model)
        batches = [self.inputs.training(batch, self.generator) for batch in probe.batches(1)]
        failures: list[str] = []
        events: list[GrowthEvent] = []
        try:
            events = self.learner.grow(batches, moves)
        except SurgeryError as error:  # everything is as it was, so training can go on
            failures = [str(error)]
        except NUMERICAL as error:
            if isinstance(error, DivergenceError) and not self.is_sound(batches[0]):
                raise
            self.tell(fault_record(f"the round was skipped: {first_line(error)}", self.epoch, self.step))
        for event, record in self.growth:  # what a change really brought is known at the next round
            record["realised"] = event.realised
        round_ = self.learner.consideration
        if round_ is not None and round_ is not last:
            self.tell(consideration_record(round_, self.epoch, self.step, hidden))
        for reason in [*failures, *self.learner.rejections[known:]]:
            self.tell(rollback_record(reason, self.epoch, self.step))
        for event in events:
            record = event_record(event, self.epoch, self.step, architecture(self.model))
            self.growth.append((event, record))
            self.tell(record)

    @torch.no_grad()
    def is_sound(self, batch: Batch) -> bool:
        """Whether the network itself is well: its loss on a batch is finite."""
        self.model.eval()
        loss = self.learner.loss(self.model(batch[0]), *batch[1:])
        self.model.train()
        return bool(loss.isfinite())

    def tell(self, record: Record) -> None:
        """Put a record into the history and tell the callbacks."""
        self.history.append(record)
        if self.keeper is not None:
            self.keeper.record(record)
        for callback in self.callbacks:
            getattr(callback, f"on_{record['event']}")(record)

    def end_epoch(self, train_loss: float) -> bool:
        """Validate, record, keep the best; whether to stop."""
        averaged = self.learner.averaged
        model = self.model if averaged is None or averaged.n_averaged == 0 else averaged.module
        figures = self.validate(model)
        if not math.isfinite(train_loss) or not math.isfinite(figures.get("loss", 0.0)):
            self.reason = f"the loss was not finite in epoch {self.epoch}; the net is that of epoch {self.best.epoch}"
            return True
        if not figures or rank(figures, self.monitor) < rank(self.best.validation, self.monitor):
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
        at_once = _AT_ONCE if held_out.x.dim() > 2 else len(held_out)
        output = torch.cat([model(self.inputs(x)) for x in torch.split(held_out.x, at_once)])
        model.train(training)
        loss = self.learner.loss(output, held_out.y, held_out.weight).item()
        weight = torch.ones(len(held_out)).to(output) if held_out.weight is None else held_out.weight
        if self.task == "classification":
            hit = (output.argmax(1) == held_out.y).to(output)
            return {"loss": loss, "accuracy": ((hit * weight).sum() / weight.sum()).item()}
        return {"loss": loss, "r2": r2(output, held_out.y, weight)}

    def announce(self) -> None:
        """Tell the callbacks what is about to happen."""
        record = {
            "event": "start",
            "epoch": 0,
            "step": 0,
            "task": self.task,
            "epochs": self.plan.epochs,
            "steps": self.plan.steps,
            "train_rows": len(self.rows),
            "validation_rows": 0 if self.held_out is None else len(self.held_out),
            "architecture": list(architecture(self.model)),
            "parameters": count_parameters(self.model),
            "optimizer": self.recipe.optimizer,
            "policy": _policy_name(self.recipe),
            "flops": self.flops(),
        }
        self.tell(record)

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
            "architecture": list(architecture(self.model)),
            "parameters": count_parameters(self.model),
            "flops": self.flops(),
            "seconds": time.perf_counter() - self.started,
        }
        self.tell(record)

    def flops(self) -> int:
        """Floating-point operations of the model as it is now, per row."""
        return forward_flops(self.model, self.inputs(self.rows.x[:1]))

    def finish(self, interrupted: bool) -> Run:
        """The result, from the best net."""
        if self.keeper is not None:
            self.keeper.end()
        model = self.best.model.eval()
        run = Run(
            model=model,
            history=self.history,
            architecture=architecture(model),
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
        self.tell(record)
        return run


def _policy_name(recipe: Recipe) -> str | None:
    if not recipe.grow:
        return None
    policy = recipe.policy or "price"
    return policy if isinstance(policy, str) else type(policy).__name__


def _check_budget(model: nn.Module, recipe: Recipe) -> None:
    parameters = count_parameters(model)
    if recipe.grow and recipe.max_params is not None and parameters > recipe.max_params:
        raise SennError(f"max_params is {recipe.max_params}, but the net starts with {parameters} parameters.")
