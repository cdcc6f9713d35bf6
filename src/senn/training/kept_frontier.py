"""Accuracy against size of the network that a run keeps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from senn.errors import SennError
from senn.events import Frontier
from senn.grower import frontier
from senn.training.batches import Inputs, Rows
from senn.training.builders import loss_function
from senn.training.round_records import first_line
from senn.training.train_config import Task, TrainConfig
from senn.training.train_result import NUMERICAL
from senn.training.validation import validate


def kept_frontier(
    model: nn.Module,
    rows: Rows,
    held_out: Rows | None,
    *,
    task: Task,
    recipe: TrainConfig,
    inputs: Inputs,
    loss: Callable[..., Tensor],
    tell_fault: Callable[[str], None],
    predictor: Callable[[nn.Module], nn.Module] | None = None,
) -> Frontier | None:
    """Measure the network that a run keeps at smaller sizes, if the configuration asks for it.

    Args:
        model: the network, left as it is.
        rows: training rows, of which at most `recipe.max_scoring_samples` are scored on, without augmentation.
        held_out: rows to validate on.
        task: `classification` or `regression`.
        recipe: whether to measure at all, and the seed.
        inputs: how the network reads the inputs of rows.
        loss: `loss(outputs, targets, weights)`, by which the rows are validated.
        tell_fault: hears why it can't be measured.
        predictor: makes what predicts the validation rows' targets of a network that learned transformed ones; None
            where it is the network.

    Returns:
        The frontier; None if it isn't wanted, can't be measured, was interrupted, or without validation rows.
    """
    if not recipe.frontier or held_out is None:
        return None
    # A generator of its own: nothing else of the run depends on whether this is measured.
    generator = torch.Generator().manual_seed(recipe.seed)
    chosen = torch.randperm(len(rows), generator=generator)[: recipe.max_scoring_samples]
    batches = [inputs.whole(rows.take(chosen))]

    def figures(pruned: nn.Module) -> dict[str, float]:
        predicts = pruned if predictor is None else predictor(pruned)
        return validate(predicts, held_out, inputs, loss, task).figures

    try:
        return frontier(model, loss_function(task), batches, figures, seed=recipe.seed)
    except KeyboardInterrupt:
        return None  # training is over, and what it kept is worth more than this
    except (SennError, *NUMERICAL) as error:
        tell_fault(f"sizes below the one that is kept weren't measured: {first_line(error)}")
        return None
