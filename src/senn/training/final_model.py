"""What becomes of the network that a run keeps: scaled outputs, smaller sizes, other networks of its size beside it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from senn.events import Frontier
from senn.nn import MLP, ConvNet, Ensemble, SinhOutput
from senn.training.batches import Inputs, Rows
from senn.training.heavy_targets import in_own_unit, own_unit
from senn.training.kept_frontier import kept_frontier
from senn.training.linear_model import better_linear_model
from senn.training.member_plan import MemberPlan, member_epochs
from senn.training.members import train_members
from senn.training.round_records import Record
from senn.training.run_records import members_record
from senn.training.run_state import RunState
from senn.training.threads import RunThreads
from senn.training.time_plan import TimePlan
from senn.training.train_config import Task, TrainConfig
from senn.training.train_result import TrainResult, architecture, count_parameters
from senn.training.train_step import TrainStep
from senn.training.validation import Validation, output_scale

LINEAR = "a linear model is kept: on the validation rows it is better than the network, by more than noise"
"""Sentence on a run that keeps a linear model."""


class FinishedRun(Protocol):
    """What is asked of a run after its last step, a `senn.training.training_run.Training`.

    Attributes:
        state: position of the run.
        rows: rows that it was trained on.
        held_out: rows that it was validated on; None for none.
        inputs: how the network reads the inputs of rows.
        recipe: all choices.
        task: `classification` or `regression`.
        monitor: figure that makes an epoch the best.
        learner: takes the steps.
        threads: that computed it.
        time: what there is time for.
        members: how many networks are averaged.
        transform: of the rows' targets; None for none.
    """

    state: RunState
    rows: Rows
    held_out: Rows | None
    inputs: Inputs
    recipe: TrainConfig
    task: Task
    monitor: str
    learner: TrainStep
    threads: RunThreads
    time: TimePlan
    members: MemberPlan
    transform: SinhOutput | None

    def validate(self, model: nn.Module) -> Validation | None:
        """Compute loss and score on the validation rows."""

    def tell(self, record: Record) -> None:
        """Append a record to the history."""

    def tell_fault(self, text: str) -> None:
        """Record what was left out."""

    def pause(self, *, saves: bool = True) -> None:
        """Stop the run if that is wanted."""


def result_of(training: FinishedRun, *, interrupted: bool) -> tuple[TrainResult, str]:
    """Make what a run ends with of the network that it keeps.

    Args:
        training: the run, after its last step.
        interrupted: True if it was ended before its time: then the network stays as it is.

    Returns:
        The result, and why the run ended.
    """
    kept, why = training.state.kept(training.monitor)
    # Eval mode: what comes out is for predicting.
    model, figures, factor = kept.model.eval(), kept.figures, 1.0
    sizes, unseen, reason = None, None, training.state.reason
    if not interrupted:
        model, factor = calibrated(
            model, training.held_out, training.inputs, training.recipe, training.task
        )
        if factor < 1 and (validation := training.validate(model)) is not None:
            figures = validation.figures
        if (linear := _linear(training, model)) is not None:
            (model, found), factor = linear, 1.0
            figures, why = found.figures, LINEAR
        sizes = _frontier(training, model)
        model, unseen, interrupted = _with_members(training, model)
        reason = "interrupted" if interrupted else reason
    run = TrainResult(
        model=model,
        history=training.state.history,
        architecture=architecture(model),
        parameters=count_parameters(model),
        seconds=training.state.seconds,
        best_epoch=kept.epoch,
        kept=why,
        validation=figures,
        output_scale=factor,
        interrupted=interrupted,
        threads=training.threads.changes,
        frontier=sizes,
        members=len(model.members) if isinstance(model, Ensemble) else 1,
        unseen=unseen,
    )
    if training.transform is not None:
        run = in_own_unit(run, training.transform, training.held_out, training.recipe)
    return run, reason


def _linear(training: FinishedRun, model: nn.Module) -> tuple[MLP, Validation] | None:
    """Fit a linear model that is kept instead of a network; None where that isn't wanted, or no better."""
    if not training.members.allows_linear or not isinstance(model, MLP):
        return None
    recipe, task = training.recipe, training.task
    try:
        return better_linear_model(model, training.rows, training.validate, task, recipe)
    except KeyboardInterrupt:
        return None  # training is over, and what it kept is worth more than this


def _with_members(
    training: FinishedRun, model: nn.Module
) -> tuple[nn.Module, tuple[Tensor, Tensor] | None, bool]:
    """Train the other networks of an ensemble.

    Args:
        training: the run.
        model: the network that is kept.

    Returns:
        The ensemble, or the network alone; outputs for unseen rows, with their targets, or None; and whether an
        interrupt has ended it, so that the network stays alone.
    """
    alone = unseen_outputs(model, training.held_out)
    if training.members.count < 2 or not isinstance(model, MLP) or not model.hidden:
        return model, alone, False
    done = max(1, training.state.epoch)
    try:
        # A run that was interrupted here has told it before.
        if not any(one["event"] == "members" for one in training.state.history):
            training.tell(members_record(training.members.count, training.state))
        found = train_members(
            model,
            training.rows,
            training.held_out,
            training.members,
            task=training.task,
            recipe=training.recipe,
            epochs=member_epochs(training.state.history, done),
            batches=training.state.config.batches,
            pause=partial(training.pause, saves=False),
            clock=training.time.now,
            seconds=training.time.left_for_members(),
            # A network that is trained for less than half as long as the run's makes the mean worse.
            fewest=(done + 1) // 2,
        )
    except KeyboardInterrupt:
        return model, alone, True
    if found is None:
        training.tell_fault("no further networks were trained: there is no time for them")
        return model, alone, False
    unseen = alone
    if alone is not None and training.members.cross_fits:
        unseen = torch.cat([alone[0], found.outputs]), torch.cat([alone[1], found.targets])
    return Ensemble([model, *found.models]).eval(), unseen, False


def _frontier(training: FinishedRun, model: nn.Module) -> Frontier | None:
    """Measure the network that is kept at smaller sizes; None if that isn't wanted or can't be."""
    if isinstance(model, MLP) and not model.hidden:
        return None
    if training.recipe.frontier and not training.time.has_time_for_frontier():
        training.tell_fault(
            "sizes below the one that is kept weren't measured: there is no time for it"
        )
        return None
    held_out, transform = training.held_out, training.transform
    predictor: Callable[[nn.Module], nn.Module] | None = None
    if transform is not None and held_out is not None:
        held_out, predictor = own_unit(held_out, transform), transform.around
    return kept_frontier(
        model,
        training.rows,
        held_out,
        task=training.task,
        recipe=training.recipe,
        inputs=training.inputs,
        loss=training.learner.loss,
        tell_fault=training.tell_fault,
        predictor=predictor,
    )


def calibrated(
    model: nn.Module, held_out: Rows | None, inputs: Inputs, recipe: TrainConfig, task: Task
) -> tuple[nn.Module, float]:
    """Scale a classifier's outputs as suits the validation rows.

    Args:
        model: the network that is kept, in eval mode, which stays as it is.
        held_out: validation rows; None for none.
        inputs: how the network reads the inputs of rows.
        recipe: says whether that is wanted.
        task: `classification` or `regression`.

    Returns:
        A network with scaled outputs, and the factor; the same network and 1 where that isn't wanted.
    """
    wanted = recipe.calibrate and task == "classification"
    if not wanted or held_out is None or not isinstance(model, MLP | ConvNet):
        return model, 1.0
    factor = output_scale(model, held_out, inputs)
    if factor == 1:
        return model, 1.0
    scaled = copy.deepcopy(model)
    scaled.scale_outputs(factor)
    return scaled, factor


@torch.no_grad()
def unseen_outputs(model: nn.Module, held_out: Rows | None) -> tuple[Tensor, Tensor] | None:
    """Compute a table network's outputs for its validation rows.

    Args:
        model: the network.
        held_out: validation rows; None for none.

    Returns:
        Outputs (n, outputs) and targets (n, ...); None without rows, and for images.
    """
    if held_out is None or not isinstance(model, MLP):
        return None
    return model(held_out.x), held_out.y
