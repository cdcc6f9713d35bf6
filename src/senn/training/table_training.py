"""Training on tables in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from senn.errors import SennError
from senn.training.batches import partition
from senn.training.callbacks import Callback
from senn.training.loop import fit_model
from senn.training.run_state import Checkpointer
from senn.training.train_config import Task, TrainConfig
from senn.training.train_result import TrainResult
from senn.training.train_step import build_model


def train(
    x: Tensor,
    y: Tensor,
    *,
    task: Task,
    outputs: int,
    recipe: TrainConfig | None = None,
    sample_weight: Tensor | None = None,
    validation: tuple[Tensor, Tensor] | None = None,
    callbacks: Sequence[Callback] = (),
    keeper: Checkpointer | None = None,
) -> TrainResult:
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
        keeper: keeps the run's state, and has one that is to be gone on with.

    Raises:
        SennError: for data or choices that make no sense, by name.
    """
    recipe = recipe or TrainConfig()
    _check(x, y, task, outputs, sample_weight)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(recipe.seed)
        generator = torch.Generator().manual_seed(recipe.seed)
        training, held_out = partition(
            x, y, recipe, sample_weight=sample_weight, validation=validation, generator=generator
        )
        model = build_model(x.shape[1], outputs, recipe).to(x)
        return fit_model(
            model, training, held_out, task=task, recipe=recipe, generator=generator, callbacks=callbacks,
            keeper=keeper,
        )  # fmt: skip


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
