"""The training loop, for any model: epochs of steps, rounds of growth, validation, stopping."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from senn._records import reading_state
from senn.checkpoint.model_state import State
from senn.errors import DivergenceError, SennError
from senn.schedule import GrowthSchedule
from senn.training.batches import Inputs, Rows
from senn.training.callbacks import Callback
from senn.training.round_records import Record, RoundRecorder, fault_record, first_line
from senn.training.run_state import BestModel, Checkpointer, RunState
from senn.training.train_config import Task, TrainConfig
from senn.training.train_result import NUMERICAL, TrainResult, architecture, count_parameters, forward_flops
from senn.training.train_step import Batch, TrainStep
from senn.training.validation import rank, validation_figures


def fit_model(
    model: nn.Module,
    rows: Rows,
    held_out: Rows | None,
    *,
    task: Task,
    recipe: TrainConfig,
    generator: torch.Generator,
    callbacks: Sequence[Callback] = (),
    inputs: Inputs | None = None,
    keeper: Checkpointer | None = None,
) -> TrainResult:
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
    training = Training(
        model, rows, held_out, task=task, recipe=recipe, generator=generator, callbacks=callbacks,
        inputs=inputs or Inputs(), keeper=keeper,
    )  # fmt: skip
    return training.run()


class Training:
    """One run of `fit_model`, whose arguments it takes.

    Attributes:
        state: where the run stands.
        learner: takes the steps and holds the rounds.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: Rows,
        held_out: Rows | None,
        *,
        task: Task,
        recipe: TrainConfig,
        generator: torch.Generator,
        callbacks: Sequence[Callback],
        inputs: Inputs,
        keeper: Checkpointer | None,
    ) -> None:
        started = time.perf_counter()
        self.keeper, self.device = keeper, rows.x.device
        self.model, self.rows, self.held_out = model, rows, held_out
        self.task, self.recipe, self.callbacks, self.generator = task, recipe, callbacks, generator
        self.inputs = inputs
        config = recipe.plan(len(rows))
        communicator = None if keeper is None else keeper.communicator
        self.learner = TrainStep(model, recipe, task, samples=len(rows), communicator=communicator)
        self.recorder = RoundRecorder(self.learner, self.tell, widths_before=True)
        # An accuracy says more than a loss about what is asked for, but only where enough rows are counted.
        large = held_out is not None and len(held_out) >= 1000
        self.monitor = recipe.monitor or ("score" if large else "loss")
        self.rounds = GrowthSchedule(recipe, config.steps)
        order = generator.get_state()
        best = BestModel(copy.deepcopy(model), 0, self.validate(model))
        self.state = RunState(config=config, best=best, order_generator=order, started=started)
        self._spare: State | None = None

    def run(self) -> TrainResult:
        """All epochs, until one of the reasons to stop."""
        if self.keeper is not None and self.keeper.state is not None:
            self.load_state_dict(self.keeper.state)
            self.keeper.restart(self.state.history)
            for callback in self.callbacks:
                callback.on_start(self.state.history[0])
        else:
            self.announce()
        state, interrupted = self.state, False
        try:
            while state.epoch < state.config.epochs or state.epoch_step:
                if self.one_epoch():
                    break
        except KeyboardInterrupt:
            state.reason, interrupted = "interrupted", True
            if self._spare is not None:
                self.keep(self._spare)
        except NUMERICAL as error:
            state.reason = f"{first_line(error)}, in epoch {state.epoch}; the net is that of epoch {state.best.epoch}"
        return self.finish(interrupted)

    def one_epoch(self) -> bool:
        """One pass over the rows, or what is left of it; whether to stop."""
        state = self.state
        batches = self.rows.take(self.order()).batches(state.config.batches)
        well = not state.epoch_step or self.round()  # a run may go on from just before a round
        for batch in batches[state.epoch_step :] if well else ():
            self.learner.set_lr(self.recipe.lr_factor(state.step / state.config.steps))
            stop = self.keeper is not None and self.keeper.stopping
            state.losses.append(self.learner.step(*self.inputs.training(batch, self.generator), stop=stop))
            state.step += 1
            state.epoch_step += 1
            if self.recipe.average == "ema":
                self.learner.update_average()
            if not self.round():
                break
            self.pause()
        if self.recipe.average == "swa" and state.step > (1 - self.recipe.tail) * state.config.steps:
            self.learner.update_average()
        loss = torch.stack(state.losses).mean().item()
        state.epoch_step, state.losses = 0, []
        return self.end_epoch(loss)

    def order(self) -> Tensor:
        """The order of the rows in this epoch: drawn at its beginning, or again where a run goes on in its middle."""
        state = self.state
        if not state.epoch_step:
            state.epoch += 1
            state.order_generator = self.generator.get_state()
            return torch.randperm(len(self.rows), generator=self.generator)
        again = torch.Generator()
        again.set_state(state.order_generator)
        return torch.randperm(len(self.rows), generator=again)

    def round(self) -> bool:
        """The round that is due after this step, if one is; whether the loss was finite."""
        if not self.rounds.waiting(self.state.step):
            return True
        if self.keeper is not None:  # a round may take longer than one who interrupts it wants to wait
            with suppress(SennError):
                self._spare = self.state_dict()
        moves = self.rounds.due(self.state.step)
        if not math.isfinite(self.state.losses[-1].item()):
            return False
        self.grow(moves)
        self._spare = None
        return True

    def pause(self) -> None:
        """Between two steps, where all is in one piece: keep the state if it is wanted, and end if that is wanted."""
        if self.keeper is None:
            return
        stopping = self.keeper.stopping if self.learner.communicator.is_single else self.learner.stopping
        if stopping or self.keeper.is_due():
            self.keep()
            if stopping:
                raise KeyboardInterrupt

    def state_dict(self) -> State:
        """All that decides what follows: nested plain values and tensors that training doesn't change any more.

        Raises:
            SennError: a parameter isn't finite: that is no state to go on from.
        """
        return {
            **self.state.state_dict(),
            "generator": self.generator.get_state(),
            "global": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "rounds": self.rounds.state_dict(),
            "learner": self.learner.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken: by a run that has only just been set up.

        Raises:
            SennError: it isn't the state of such a run.
        """
        with reading_state("this isn't the state of such a run"):
            self.learner.load_state_dict(state["learner"])
            self.state.load_state_dict(state, self.device)
            self.rounds.load_state_dict(state["rounds"])
            self.recorder.resume(self.state.history)
            self.generator.set_state(state["generator"])
            torch.set_rng_state(state["global"])
            if state["cuda"] is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda"], self.device)

    def keep(self, state: State | None = None) -> None:
        """Have the state kept, as it is now or was; training goes on if it can't be."""
        assert self.keeper is not None
        try:
            self.keeper.save(state or self.state_dict())
        except (SennError, OSError) as error:
            self.tell(fault_record(f"no checkpoint was written: {error}", self.state.epoch, self.state.step))

    def grow(self, moves: Sequence[str]) -> None:
        """One round of these moves, on at most `recipe.probe` training rows."""
        probe = self.rows
        if len(probe) > self.recipe.max_scoring_samples:
            probe = probe.take(torch.randperm(len(probe), generator=self.generator)[: self.recipe.max_scoring_samples])
        batches = [self.inputs.training(batch, self.generator) for batch in probe.batches(1)]

        def survives(error: Exception) -> bool:
            well = not isinstance(error, DivergenceError) or self.is_sound(batches[0])
            return isinstance(error, NUMERICAL) and well

        self.recorder.run(
            lambda: self.learner.grow(batches, moves),
            epoch=self.state.epoch,
            step=self.state.step,
            survives=survives,
        )

    @torch.no_grad()
    def is_sound(self, batch: Batch) -> bool:
        """Whether the network itself is well: its loss on a batch is finite."""
        self.model.eval()
        loss = self.learner.loss(self.model(batch[0]), *batch[1:])
        self.model.train()
        return bool(loss.isfinite())

    def tell(self, record: Record) -> None:
        """Put a record into the history and tell the callbacks."""
        self.state.history.append(record)
        if self.keeper is not None:
            self.keeper.record(record)
        for callback in self.callbacks:
            getattr(callback, f"on_{record['event']}")(record)

    def end_epoch(self, train_loss: float) -> bool:
        """Validate, record, keep the best; whether to stop."""
        state = self.state
        averaged = self.learner.averaged
        model = self.model if averaged is None or averaged.n_averaged == 0 else averaged.module
        figures = self.validate(model)
        if not math.isfinite(train_loss) or not math.isfinite(figures.get("loss", 0.0)):
            state.reason = (
                f"the loss was not finite in epoch {state.epoch}; the net is that of epoch {state.best.epoch}"
            )
            return True
        if not figures or rank(figures, self.monitor) < rank(state.best.validation, self.monitor):
            state.best = BestModel(copy.deepcopy(model), state.epoch, figures)
        self.report(train_loss, figures)
        stale = bool(figures) and state.epoch - state.best.epoch >= state.config.patience
        return stale and state.step >= state.config.growth_end and self.cut_short()

    def cut_short(self) -> bool:
        """Let the learning rate fall from now on, as at the end of a shorter run; whether to stop instead."""
        state = self.state
        tail = self.recipe.tail
        falls = self.recipe.schedule == "tail" and 0 < tail < 1
        if falls and state.step >= (1 - tail) * state.config.steps:
            return False
        state.reason = f"no better validation {self.monitor} for {state.config.patience:g} epochs"
        if falls:
            epochs = math.ceil(state.epoch / (1 - tail))
            state.config = replace(state.config, epochs=epochs, steps=epochs * state.config.batches)
        return not falls

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Loss and score on the validation rows; empty without any."""
        if self.held_out is None:
            return {}
        return validation_figures(model, self.held_out, self.inputs, self.learner.loss, self.task)

    def announce(self) -> None:
        """Tell the callbacks what is about to happen."""
        record = {
            "event": "start",
            "epoch": 0,
            "step": 0,
            "task": self.task,
            "epochs": self.state.config.epochs,
            "steps": self.state.config.steps,
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
            "epoch": self.state.epoch,
            "epochs": self.state.config.epochs,
            "step": self.state.step,
            "steps": self.state.config.steps,
            "train_loss": train_loss,
            "validation_loss": figures.get("loss"),
            "validation_score": figures.get("accuracy", figures.get("r2")),
            "lr": self.learner.optimizer.param_groups[0]["lr"],
            "architecture": list(architecture(self.model)),
            "parameters": count_parameters(self.model),
            "flops": self.flops(),
            "seconds": self.state.seconds,
        }
        self.tell(record)

    def flops(self) -> int:
        """Floating-point operations of the model as it is now, per row."""
        return forward_flops(self.model, self.inputs(self.rows.x[:1]))

    def finish(self, interrupted: bool) -> TrainResult:
        """The result, from the best net."""
        if self.keeper is not None:
            self.keeper.end()
        model = self.state.best.model.eval()
        run = TrainResult(
            model=model,
            history=self.state.history,
            architecture=architecture(model),
            parameters=count_parameters(model),
            seconds=self.state.seconds,
            best_epoch=self.state.best.epoch,
            validation=self.state.best.validation,
            interrupted=interrupted,
        )
        record = {
            "event": "end",
            "best_epoch": run.best_epoch,
            "epochs": sum(record["event"] == "epoch" for record in self.state.history),
            "architecture": list(run.architecture),
            "parameters": run.parameters,
            "seconds": run.seconds,
            "validation": dict(run.validation),
            "interrupted": interrupted,
            "reason": self.state.reason,
        }
        self.tell(record)
        return run


def _policy_name(recipe: TrainConfig) -> str | None:
    if not recipe.grow:
        return None
    policy = recipe.policy or "price"
    return policy if isinstance(policy, str) else type(policy).__name__


def _check_budget(model: nn.Module, recipe: TrainConfig) -> None:
    parameters = count_parameters(model)
    if recipe.grow and recipe.max_params is not None and parameters > recipe.max_params:
        raise SennError(f"max_params is {recipe.max_params}, but the net starts with {parameters} parameters.")
