"""Training of any model on rows of inputs and targets."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from senn.nn import SinhOutput
from senn.training.batches import Inputs, Rows
from senn.training.builders import check_budget
from senn.training.callbacks import Callback
from senn.training.member_plan import MemberPlan
from senn.training.run_state import Checkpointer
from senn.training.threads import RunThreads
from senn.training.train_config import Task, TrainConfig
from senn.training.train_result import TrainResult
from senn.training.training_run import Training


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
    checkpointer: Checkpointer | None = None,
    members: MemberPlan | None = None,
    transform: SinhOutput | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> TrainResult:
    """Train and grow an existing model on rows that are split already.

    Draws from the global random state too (dropout), which is the caller's to keep.

    Args:
        model: any module; its property `hidden`, if it has one, gives the widths that are recorded as `architecture`.
        rows: rows to train on.
        held_out: rows to validate on; None for no validation.
        task: `classification` or `regression`; decides on the loss.
        recipe: all choices but the model's own.
        generator: source of the order of the rows, and of augmentation.
        callbacks: listeners to the records.
        inputs: how the model reads the inputs of rows; None to take them as they are.
        checkpointer: saves the state of the run, and has the state to resume from, if any; None to save nothing.
        members: how many networks of the size that is found are trained and averaged; None for one.
        transform: of the targets, if the rows have transformed ones; what comes out is of the targets themselves.
        clock: says what time it is, in seconds since any moment; `recipe.max_seconds` goes by it.

    Returns:
        The best network, and the history of the run.

    Raises:
        SennError: a choice is out of range; the sentence names it.
    """
    inputs = inputs or Inputs()
    check_budget(model, recipe, inputs(rows.x[:1]))
    is_single = checkpointer is None or checkpointer.communicator.is_single
    with RunThreads(recipe.threads, rows.x.device, is_single=is_single) as threads:
        training = Training(
            model,
            rows,
            held_out,
            task=task,
            recipe=recipe,
            generator=generator,
            callbacks=callbacks,
            inputs=inputs,
            checkpointer=checkpointer,
            threads=threads,
            members=members,
            transform=transform,
            clock=clock,
        )
        return training.run()
