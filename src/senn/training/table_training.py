"""Training on tables in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from senn import _deprecated
from senn.errors import SennError
from senn.nn import MLP, Ensemble, SinhOutput
from senn.training.batches import partition
from senn.training.builders import build_model
from senn.training.callbacks import Callback
from senn.training.heavy_targets import network_in, transform_of, transformed_recipe
from senn.training.loop import fit_model
from senn.training.member_plan import continued_members, plan_members
from senn.training.run_state import Checkpointer
from senn.training.train_config import Task, TrainConfig
from senn.training.train_result import TrainResult


@_deprecated.keywords
def train(
    x: Tensor,
    y: Tensor,
    *,
    task: Task,
    outputs: int,
    recipe: TrainConfig | None = None,
    sample_weight: Tensor | None = None,
    validation: tuple[Tensor, Tensor] | Tensor | None = None,
    callbacks: Sequence[Callback] = (),
    checkpointer: Checkpointer | None = None,
    model: MLP | SinhOutput | Ensemble | None = None,
) -> TrainResult:
    """Train a network that finds its own size on a table held in memory.

    The global random state is left as it was. An interruption (KeyboardInterrupt) ends the run early and is marked in
    the result; a loss or a step that is not finite ends it with the last good network, and the reason in the history.

    Args:
        x: (n, d) floating point, standardized.
        y: (n,) long classes for classification; (n, k) floating point, standardized, for regression.
        task: `classification` (cross-entropy) or `regression` (mean squared error).
        outputs: number of classes, or k.
        recipe: all choices; None for the defaults.
        sample_weight: (n,) non-negative; a row of weight zero counts as absent. None for equal weights.
        validation: x and y of rows to validate on, or (k,) long numbers of rows that are held out for it; None to hold
            out `recipe.validation_fraction` of the rows, classes in proportion.
        callbacks: listeners to the records.
        checkpointer: saves the state of the run, and has the state to resume from, if any; None to save nothing.
        model: network that goes on, which is changed in place; None for a fresh one. Of an ensemble the first network
            may change its size, and the others go on as they are.

    Returns:
        The best network, and the history of the run.

    Raises:
        SennError: data or a choice is out of range; the sentence names it.

    Example:
        >>> import torch
        >>> from senn.training import TrainConfig, train
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, 0] * x[:, 1] > 0).long()
        >>> result = train(x, y, task="classification", outputs=2, recipe=TrainConfig(epochs=30))
        >>> result.history[0]["architecture"], sum(result.architecture) < 128
        ([64, 64], True)
        >>> result.model(x).shape
        torch.Size([200, 2])
    """
    recipe = recipe or TrainConfig()
    _check(x, y, task, outputs, sample_weight)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        # Initial weights and dropout draw from the global state; splits and orders from a generator of their own, so
        # that they don't depend on how many numbers a model draws.
        torch.manual_seed(recipe.seed)
        generator = torch.Generator().manual_seed(recipe.seed)
        transform, begun = _begun(y, model, recipe, task)
        if transform is not None:
            y, recipe = transform.transform(y), transformed_recipe(recipe, transform)
        training, held_out = partition(
            x, y, recipe, sample_weight=sample_weight, validation=validation, generator=generator
        )
        # In the precision, and on the device, of the data.
        first = begun[0] if begun else build_model(x.shape[1], outputs, recipe)
        # Beside a network that goes on there are no fresh ones, which would not know what it has learned before.
        cross_fits = validation is None
        members = (
            continued_members([one.to(x) for one in begun[1:]], recipe, cross_fits=cross_fits)
            if begun
            else plan_members(recipe, len(x), cross_fits=cross_fits)
        )
        return fit_model(
            first.to(x),
            training,
            held_out,
            task=task,
            recipe=recipe,
            generator=generator,
            callbacks=callbacks,
            checkpointer=checkpointer,
            members=members,
            transform=transform,
        )


def _begun(
    y: Tensor, model: MLP | SinhOutput | Ensemble | None, recipe: TrainConfig, task: Task
) -> tuple[SinhOutput | None, list[MLP]]:
    """Find how targets are transformed, and the networks that learn them; no networks for a fresh one."""
    if model is None:
        return transform_of(y, recipe, task), []
    inner, transform = network_in(model.to(y) if y.is_floating_point() else model)
    networks = [*inner.members] if isinstance(inner, Ensemble) else [inner]
    found = [one for one in networks if isinstance(one, MLP)]
    if len(found) < len(networks):
        raise SennError("model must be a senn.nn.MLP, or several of them, to go on with a table")
    return transform, found


# All of these would fail later, in torch, in words that name neither the argument nor the cause.
def _check(x: Tensor, y: Tensor, task: str, outputs: int, sample_weight: Tensor | None) -> None:
    if task not in ("classification", "regression"):
        raise SennError(f"task must be 'classification' or 'regression', not {task!r}")
    if x.dim() != 2 or not x.is_floating_point() or not x.numel():
        raise SennError(
            f"x must be a floating-point table of rows and columns, not {tuple(x.shape)} {x.dtype}"
        )
    expected = (len(x),) if task == "classification" else (len(x), outputs)
    if tuple(y.shape) != expected:
        raise SennError(f"y must have the shape {expected} for {task}, not {tuple(y.shape)}")
    if task == "classification" and (y.dtype != torch.long or y.min() < 0 or y.max() >= outputs):
        raise SennError(f"y must hold class numbers from 0 to {outputs - 1} as torch.long")
    if task == "regression" and not y.is_floating_point():
        raise SennError(f"y must be floating point for regression, not {y.dtype}")
    for name, tensor in (("x", x), ("y", y)):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise SennError(f"{name} contains NaN or infinity")
    if sample_weight is not None and not _are_weights(sample_weight, len(x)):
        raise SennError(
            f"sample_weight must be {len(x)} finite numbers of at least 0, not all of them 0"
        )


def _are_weights(weight: Tensor, rows: int) -> bool:
    if weight.shape != (rows,) or not torch.isfinite(weight).all():
        return False
    return bool((weight >= 0).all()) and bool(weight.sum() > 0)
