"""Loss and score of a network on validation rows."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from senn.training.batches import Inputs, Rows
from senn.training.train_config import Task

IMAGES_AT_ONCE = 500
"""Images that are validated at once: a table's rows go through a network together, those of an image are too many."""


@torch.no_grad()
def validation_figures(
    model: nn.Module, rows: Rows, inputs: Inputs, loss: Callable[..., Tensor], task: Task
) -> dict[str, float]:
    """Loss and score of a model, computed in eval mode; the model's mode is left as it was.

    Args:
        model: any module.
        rows: to validate on.
        inputs: how the model reads the inputs of rows.
        loss: `loss(outputs, targets, weights)`, a mean over samples.
        task: decides on the score.

    Returns:
        `loss` with `accuracy` or `r2`.
    """
    training = model.training
    model.eval()
    at_once = IMAGES_AT_ONCE if rows.x.dim() > 2 else len(rows)
    output = torch.cat([model(inputs(x)) for x in torch.split(rows.x, at_once)])
    model.train(training)
    value = loss(output, rows.y, rows.weight).item()
    weight = torch.ones(len(rows)).to(output) if rows.weight is None else rows.weight
    if task == "classification":
        hit = (output.argmax(1) == rows.y).to(output)
        return {"loss": value, "accuracy": ((hit * weight).sum() / weight.sum()).item()}
    return {"loss": value, "r2": r2(output, rows.y, weight)}


def rank(figures: dict[str, float], monitor: str) -> tuple[float, float]:
    """Smaller is better: by loss, or by accuracy and among equals by loss."""
    loss = figures.get("loss", math.inf)
    return (-figures.get("accuracy", 0.0) if monitor == "score" else loss, loss)


def r2(output: Tensor, target: Tensor, weight: Tensor) -> float:
    """Coefficient of determination, averaged over the targets that vary."""
    w = (weight / weight.sum()).unsqueeze(1)
    residual = (w * (target - output) ** 2).sum(0)
    spread = (w * (target - (w * target).sum(0)) ** 2).sum(0)
    varies = spread > 0
    return (1 - residual[varies] / spread[varies]).mean().item() if varies.any() else 0.0
