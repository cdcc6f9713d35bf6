"""One run of training: epochs of steps, rounds of growth, validation, stopping."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import torch
from torch import nn

from senn.errors import DivergenceError, SennError
from senn.flops import forward_flops
from senn.nn import SinhOutput
from senn.schedule import GrowthSchedule
from senn.training.batch_norm import renew_from_rows
from senn.training.batches import Inputs, Rows
from senn.training.callbacks import Callback
from senn.training.final_model import result_of
from senn.training.member_plan import MemberPlan
from senn.training.metric import as_metric
from senn.training.policy_defaults import policy_defaults
from senn.training.resumable_run import ResumableRun
from senn.training.round_records import (
    Record,
    RoundRecorder,
    fault_record,
    first_line,
    rollback_record,
)
from senn.training.run_records import (
    end_record,
    epoch_record,
    start_record,
)
from senn.training.run_state import BestModel, Checkpointer, RunState
from senn.training.threads import RunThreads, pass_of, step_flops
from senn.training.time_plan import TimePlan
from senn.training.train_config import Task, TrainConfig
from senn.training.train_result import (
    NUMERICAL,
    TrainResult,
)
from senn.training.train_step import TrainStep
from senn.training.validation import Validation, monitored, validate


class Training(ResumableRun):
    """One run of `fit_model`, whose arguments it takes.

    Attributes:
        state: position of the run.
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
        checkpointer: Checkpointer | None,
        threads: RunThreads,
        members: MemberPlan | None = None,
        transform: SinhOutput | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        # First of all: to build the optimizer and the grower takes a moment.
        started = clock()
        self.checkpointer, self.device = checkpointer, rows.x.device
        self.model, self.rows, self.held_out = model, rows, held_out
        self.task, self.recipe, self.callbacks, self.generator = task, recipe, callbacks, generator
        self.inputs, self.members = inputs, members or MemberPlan()
        self.transform = transform
        self.threads, config = threads, recipe.plan(len(rows))
        threads.choose(self.step_flops, model, step=0)
        communicator = None if checkpointer is None else checkpointer.communicator
        self.learner = TrainStep(model, recipe, task, samples=len(rows), communicator=communicator)
        changed = self.forget_former_size
        self.recorder = RoundRecorder(self.learner, self.tell, changed=changed, widths_before=True)
        self.monitor = monitored(recipe, held_out)
        self.rounds = GrowthSchedule(recipe, config.steps)
        best = BestModel(model=copy.deepcopy(model), epoch=0, validation=self.validate(model))
        self.state = RunState(
            config=config,
            best=best,
            order_generator=generator.get_state(),
            started=started,
            clock=clock,
        )
        self.time = TimePlan(
            recipe,
            self.state,
            self.rounds,
            scored=min(recipe.max_scoring_samples, len(rows)) / len(rows),
            communicator=self.learner.communicator,
        )
        self._flops: int | None = None

    def run(self) -> TrainResult:
        """Train until all epochs are done, or one of the other reasons to stop."""
        if self.checkpointer is not None and self.checkpointer.state is not None:
            self.load_state_dict(self.checkpointer.state)
            self.checkpointer.restart(self.state.history)
            # The record of the original start, by which listeners know the sizes at the beginning.
            for callback in self.callbacks:
                callback.on_start(self.state.history[0])
        else:
            self.announce()
        state, interrupted = self.state, False
        self.time.start()
        try:
            while state.epoch < state.config.epochs or state.epoch_step:
                if self.one_epoch():
                    break
        except KeyboardInterrupt:
            state.reason, interrupted = "interrupted", True
            # Interrupted in the middle of a round: the state is that of before it, so the round takes place again.
            if self._before_round is not None:
                self.keep(self._before_round)
        except NUMERICAL as error:
            state.reason = f"{first_line(error)}, in epoch {state.epoch}; the net is that of epoch {self.kept_epoch}"
        return self.finish(interrupted)

    def one_epoch(self) -> bool:
        """Pass over the rows once, or over those left of an epoch that was interrupted.

        Returns:
            True if the run is to stop.
        """
        state = self.state
        order = state.draw_order(len(self.rows), self.generator)
        batches = self.rows.in_order(order, state.config.batches)
        # A state saved before a round resumes with that round.
        is_finite = not state.epoch_step or self.round()
        for batch in batches[state.epoch_step :] if is_finite else ():
            if state.step >= state.config.steps:
                break  # there is no time for a whole epoch
            self.learner.set_lr(self.recipe.lr_factor(state.step / state.config.steps))
            stop = self.checkpointer is not None and self.checkpointer.stopping
            read, began = self.inputs.training(batch, self.generator), time.perf_counter()
            state.losses.append(self.learner.step(*read, stop=stop))
            stand_in = partial(pass_of, self.model, self.learner.loss, read)
            self.threads.notice(time.perf_counter() - began, state.step, stand_in)
            state.step += 1
            state.epoch_step += 1
            if self.recipe.average == "ema":
                self.learner.update_average()
            self.time.spent("step")
            if not self.round():
                break
            self.pause()
        # Averaged once an epoch, as in stochastic weight averaging (Izmailov et al. 2018, arXiv 1803.05407).
        in_tail = state.step > (1 - self.recipe.tail) * state.config.steps
        if self.recipe.average == "swa" and in_tail:
            self.learner.update_average()
        loss = torch.stack(state.losses).mean().item()
        state.epoch_step, state.losses = 0, []
        stops = self.end_epoch(loss)
        self.time.spent("validation")
        return stops

    def round(self) -> bool:
        """Run the round that is due after this step, if one is.

        Returns:
            False if the loss is not finite, and the round was left out.
        """
        if not self.rounds.waiting(self.state.step):
            return True
        # A round may take longer than an interrupted run has time for: its state before the round is at hand then.
        if self.checkpointer is not None:
            with suppress(SennError):
                self._before_round = self.state_dict()
        moves = self.rounds.due(self.state.step)
        # Checked here alone: to read the loss in every step would wait for the device.
        if not math.isfinite(self.state.losses[-1].item()):
            return False
        if self.time.has_time_for_round():
            self.grow(moves)
            self.time.spent("round")
        else:
            self.tell_fault("a round of growth was left out: there is no time for it")
        self.threads.choose(self.step_flops, self.model, self.state.step)
        self._before_round = None
        return True

    def grow(self, moves: Sequence[str]) -> None:
        """Run one round of these moves, scored on at most `recipe.max_scoring_samples` training rows.

        Removals begin with the best network of the present size: one that has got worse since is fitted to its training
        rows, and says little about which units serve others.
        """
        removes_only = set(moves) & set(self.learner.moves) == {"prune"}
        if removes_only and policy_defaults(self.recipe.policy).removes_from_best:
            self.return_to_best()
        renew_from_rows(self.model, self.rows, self.inputs)
        most = self.recipe.max_scoring_samples
        scored = self.rows.draw(most, self.generator).batches(1)
        batches = [self.inputs.training(batch, self.generator) for batch in scored]

        def survives(error: Exception) -> bool:
            # A round may diverge where training doesn't: then it is only skipped.
            if isinstance(error, DivergenceError) and not self.learner.is_sound(batches[0]):
                return False
            return isinstance(error, NUMERICAL)

        rows = None if self.held_out is None else self.held_out.spread(most)
        validation = None if rows is None else self.inputs.whole(rows)
        events = self.recorder.run(
            lambda: self.learner.grow(batches, moves, validation),
            epoch=self.state.epoch,
            step=self.state.step,
            survives=survives,
        )
        if removes_only and events:
            # By the end of the epoch it may have been fitted to its training rows again.
            self.state.consider(self.averaged, self.validate(self.averaged), self.monitor)

    def return_to_best(self) -> None:
        """Give the network the weights of the best one of its size, if it has become worse by more than noise."""
        better = self.state.better_before(self.validate(self.averaged), self.monitor)
        if better is None:
            return
        for model in {self.model, self.averaged}:  # of the same size, since none has changed
            model.load_state_dict(better.model.state_dict())
        text = f"the weights are those of epoch {better.epoch} again, the best of their size"
        self.tell(rollback_record(text, self.state.epoch, self.state.step))

    def tell(self, record: Record) -> None:
        """Append a record to the history and tell the callbacks."""
        self.state.history.append(record)
        if self.checkpointer is not None:
            self.checkpointer.record(record)
        # After the history: a callback that fails or interrupts finds the record kept.
        for callback in self.callbacks:
            getattr(callback, f"on_{record['event']}")(record)

    def tell_fault(self, text: str) -> None:
        """Record what went wrong and was left out."""
        self.tell(fault_record(text, self.state.epoch, self.state.step))

    def end_epoch(self, train_loss: float) -> bool:
        """Validate, keep the best network, and record the epoch.

        Returns:
            True if the run is to stop.
        """
        state = self.state
        validation = self.validate(self.averaged)
        figures = {} if validation is None else validation.figures
        if not math.isfinite(train_loss) or not math.isfinite(figures.get("loss", 0.0)):
            where = f"the net is that of epoch {self.kept_epoch}"
            state.reason = f"the loss was not finite in epoch {state.epoch}; {where}"
            return True
        state.consider(self.averaged, validation, self.monitor)
        record = epoch_record(
            self.model,
            self.recipe,
            state,
            train_loss=train_loss,
            validation=figures,
            lr=self.learner.optimizer.param_groups[0]["lr"],
            flops=self.flops(),
        )
        self.tell(record)
        # Never before the end of growth: a network that is about to grow isn't done.
        is_stale = bool(figures) and state.epoch - state.best_epoch >= state.config.patience
        return (
            is_stale
            and state.step >= state.config.growth_end
            and state.cut_short(self.recipe, self.monitor)
        )

    @property
    def averaged(self) -> nn.Module:
        """Network that is validated: the average of the weights, once there is one."""
        averaged = self.learner.averaged
        return self.model if averaged is None or averaged.n_averaged == 0 else averaged.module

    @property
    def kept_epoch(self) -> int:
        """Epoch whose network is kept if the run ends now."""
        return self.state.kept(self.monitor)[0].epoch

    def forget_former_size(self) -> None:
        """Note that the size has changed: what was best before was so at another size."""
        self.state.since_change = self._flops = None

    def validate(self, model: nn.Module) -> Validation | None:
        """Renew batch norms, and compute loss and score on the validation rows; None without any."""
        renew_from_rows(model, self.rows, self.inputs)
        if self.held_out is None:
            return None
        metric = as_metric(self.recipe.monitor)
        return validate(model, self.held_out, self.inputs, self.learner.loss, self.task, metric)

    def announce(self) -> None:
        """Record what is about to happen."""
        record = start_record(
            self.model,
            self.recipe,
            self.state,
            task=self.task,
            train_rows=len(self.rows),
            validation_rows=0 if self.held_out is None else len(self.held_out),
            flops=self.flops(),
        )
        self.tell(record)

    def flops(self) -> int:
        """Count the floating-point operations of the model per row; anew after a change of size alone."""
        if self._flops is None:
            self._flops = forward_flops(self.model, self.inputs(self.rows.x[:1]))
        return self._flops

    def step_flops(self) -> int:
        """Count those of the forward pass of a step, all rows together."""
        return step_flops(self.model, self.inputs(self.rows.x[:1]), len(self.rows), self.recipe)

    def finish(self, interrupted: bool) -> TrainResult:
        """Record how the run ended, and return its result with the best network."""
        run, reason = result_of(self, interrupted=interrupted)
        if self.checkpointer is not None:
            self.checkpointer.end()
        self.tell(end_record(run, reason))
        return run
