"""Heavy-tailed numbers to predict, which a network learns through their inverse hyperbolic sine."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from torch import Tensor, nn

from senn.data.tails import is_heavy_tailed
from senn.nn import Ensemble, SinhOutput
from senn.training.batches import Inputs, Rows
from senn.training.builders import loss_function, mean_loss
from senn.training.metric import Metric, as_metric
from senn.training.train_config import Task, TrainConfig
from senn.training.train_result import TrainResult
from senn.training.validation import validate


def transform_of(targets: Tensor, recipe: TrainConfig, task: Task) -> SinhOutput | None:
    """Fit the transform of targets, if they are all heavy-tailed and the recipe wants one.

    Args:
        targets: (n, k) numbers, or classes.
        recipe: says whether that is wanted.
        task: `classification` or `regression`.

    Returns:
        The transform, around no network; None for targets that are learned as they are.
    """
    if task != "regression" or recipe.target_transform == "none":
        return None
    columns = targets.double().cpu().numpy().T
    is_wanted = recipe.target_transform == "arcsinh"
    if not all(is_wanted or is_heavy_tailed(column) for column in columns):
        return None
    # Where half of the numbers are one number there is no spread to measure others by.
    if not all(np.subtract(*np.quantile(column, [0.75, 0.25])) > 0 for column in columns):
        return None
    return SinhOutput.fit(nn.Identity(), targets)


def transformed_recipe(recipe: TrainConfig, transform: SinhOutput) -> TrainConfig:
    """Return the recipe for transformed targets: a score that is watched stays that of the targets themselves."""
    if not isinstance(recipe.monitor, Metric):
        return recipe
    return replace(recipe, monitor=replace(recipe.monitor, restore=transform.restore))


def in_own_unit(
    result: TrainResult, transform: SinhOutput, held_out: Rows | None, recipe: TrainConfig
) -> TrainResult:
    """Return the result of a run on transformed targets as one of the targets themselves.

    Args:
        result: of the run.
        transform: of its targets.
        held_out: its validation rows, with transformed targets; None for none.
        recipe: of the run, by whose metric it was watched.
    """
    kept = result.model
    if isinstance(kept, Ensemble):
        # Members are averaged in the targets' own unit, which is nearer to a mean than the sine of their average.
        model: nn.Module = Ensemble([transform.around(one) for one in kept.members])
    else:
        model = transform.around(kept)
    figures = result.validation
    if held_out is not None and figures:
        first = model.members[0] if isinstance(model, Ensemble) else model
        loss = partial(mean_loss, loss_function("regression"))
        metric = as_metric(recipe.monitor)
        metric = None if metric is None else replace(metric, restore=None)
        figures = validate(
            first, own_unit(held_out, transform), Inputs(), loss, "regression", metric
        ).figures
    unseen = result.unseen
    if unseen is not None:
        unseen = transform.restore(unseen[0]), transform.restore(unseen[1])
    return replace(result, model=model.eval(), validation=figures, unseen=unseen)


def own_unit(rows: Rows, transform: SinhOutput) -> Rows:
    """Return rows with the targets themselves.

    Args:
        rows: with transformed ones.
        transform: of the targets.
    """
    return replace(rows, y=transform.restore(rows.y))


def network_in(model: nn.Module) -> tuple[nn.Module, SinhOutput | None]:
    """Find what is trained in a network that predicts numbers in their own unit.

    Args:
        model: a network, or several that are averaged.

    Returns:
        The network itself, or several averaged ones, of the same modules; and the transform of its targets, if any.
    """
    if isinstance(model, SinhOutput):
        return model.network, model
    if isinstance(model, Ensemble) and isinstance(model.members[0], SinhOutput):
        inner = [one.network for one in model.members if isinstance(one, SinhOutput)]
        return Ensemble(inner).train(model.training), model.members[0]
    return model, None
