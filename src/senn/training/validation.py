"""Loss and score of a network on validation rows, and whether two networks differ by more than noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from senn.training.batches import Inputs, Rows
from senn.training.metric import Metric, as_metric, difference_noise
from senn.training.train_config import Task, TrainConfig

# A table's rows go through a network together; the activations of many images at once wouldn't fit. Twice as many need
# twice the memory.
IMAGES_AT_ONCE = 500
"""Images that are validated at once."""

SMALLEST_SCALE = 0.05
"""Least factor of a classifier's outputs; with less, nothing would be left of what it has learned."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Validation:
    """What a network makes of validation rows.

    Attributes:
        figures: `loss`, `accuracy` or `r2`, and a metric by its name.
        row_losses: (n,) loss of each row.
        misses: (n,) 1 for each row whose class is wrong; None for regression.
        weight: (n,) weights of the rows, which sum to 1.
        metric: score that is watched; None for the loss or the accuracy.
        outputs: (n, ...) of the network, if there is a metric; its noise is that of resampled rows.
        targets: those of the rows, likewise.
    """

    figures: dict[str, float]
    row_losses: Tensor
    misses: Tensor | None
    weight: Tensor
    metric: Metric | None = None
    outputs: Tensor | None = None
    targets: Tensor | None = None

    def is_level_with(self, best: Validation, monitor: str) -> bool:
        """Return True if this network is no worse than another by more than the standard error of their difference.

        Rows are paired: what is hard for both cancels.

        Args:
            best: of the other network, on the same rows.
            monitor: `loss`, `score` for the accuracy, or the name of the metric.
        """
        if self.metric is not None and self.metric.name == monitor:
            return self._is_level_by_metric(best, self.metric)
        ours, theirs = self.row_losses, best.row_losses
        if monitor == "score" and self.misses is not None and best.misses is not None:
            ours, theirs = self.misses, best.misses
        if len(ours) != len(theirs):  # of a run that senn 0.1 began, which kept no losses of rows
            return False
        difference = (ours - theirs).double()
        mean = (self.weight * difference).sum()
        variance = (self.weight * (difference - mean)).square().sum()
        # NaN compares as False
        return bool(mean <= variance.sqrt())

    def _is_level_by_metric(self, best: Validation, metric: Metric) -> bool:
        if self.outputs is None or best.outputs is None or self.targets is None:
            return False
        noise = difference_noise(metric, (self.outputs, best.outputs), self.targets)
        return best.figures[metric.name] - self.figures[metric.name] <= noise


@torch.no_grad()
def validate(
    model: nn.Module,
    rows: Rows,
    inputs: Inputs,
    loss: Callable[..., Tensor],
    task: Task,
    metric: Metric | None = None,
) -> Validation:
    """Compute loss and score of a model in eval mode; its own mode is left as it was.

    Args:
        model: any module.
        rows: rows to validate on.
        inputs: how the model reads the inputs of rows.
        loss: `loss(outputs, targets, weights)`, a mean over samples.
        task: `classification` or `regression`; decides on the score.
        metric: further score to compute; None for none.

    Returns:
        Figures of all rows, and losses of each.
    """
    training = model.training
    model.eval()
    at_once = IMAGES_AT_ONCE if rows.x.dim() > 2 else len(rows)
    output = torch.cat([model(inputs(x)) for x in torch.split(rows.x, at_once)])
    model.train(training)
    figures = {"loss": loss(output, rows.y, rows.weight).item()}
    weight = torch.ones(len(rows)).to(output) if rows.weight is None else rows.weight
    share = (weight / weight.sum()).double()
    if task == "classification":
        hit = (output.argmax(1) == rows.y).to(output)
        figures["accuracy"] = ((hit * weight).sum() / weight.sum()).item()
        losses, misses = F.cross_entropy(output, rows.y, reduction="none"), 1 - hit
    else:
        figures["r2"] = r2(output, rows.y, weight)
        losses, misses = (output - rows.y).square().flatten(1).mean(1), None
    found = Validation(figures=figures, row_losses=losses, misses=misses, weight=share)
    if metric is None:
        return found
    figures[metric.name] = metric(output, rows.y, rows.weight)
    return replace(found, metric=metric, outputs=output, targets=rows.y)


@torch.no_grad()
def output_scale(model: nn.Module, rows: Rows, inputs: Inputs) -> float:
    """Find the factor of a classifier's outputs, at most 1, with which its loss on some rows is least.

    Nets that are fitted to the last row are too sure of themselves: temperature scaling (Guo, Pleiss, Sun & Weinberger
    2017, *On calibration of modern neural networks*, arXiv 1706.04599, section 4.2), with 1 / T as the factor. A factor
    above 1 would only show that the rows are few.

    Args:
        model: any module, in eval mode.
        rows: rows that it isn't trained on, with classes.
        inputs: how the model reads the inputs of rows.
    """
    at_once = IMAGES_AT_ONCE if rows.x.dim() > 2 else len(rows)
    z = torch.cat([model(inputs(x)) for x in torch.split(rows.x, at_once)]).double()
    weight = torch.ones(len(rows)).to(z) if rows.weight is None else rows.weight.to(z)
    own = z.gather(1, rows.y[:, None])[:, 0]

    def slope(factor: float) -> float:
        # of the mean of log sum exp(f z) - f z_y, which is convex in f
        expected = ((factor * z).softmax(1) * z).sum(1)
        return float((weight * (expected - own)).sum())

    low, high = SMALLEST_SCALE, 1.0
    if not slope(high) > 0:
        return 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return high


def monitored(recipe: TrainConfig, rows: Rows | None) -> str:
    """Return the figure that makes an epoch the best: `loss`, `score`, or the name of a metric.

    Args:
        recipe: what it says, if anything.
        rows: validation rows; None for none.
    """
    metric = as_metric(recipe.monitor)
    if metric is not None:
        return metric.name
    # The accuracy is what counts, but it is a coarse figure: on 1,000 rows its standard error is 1 %, on fewer the
    # loss tells epochs apart more reliably.
    is_large = rows is not None and len(rows) >= 1000
    return str(recipe.monitor or ("score" if is_large else "loss"))


def rank(figures: dict[str, float], monitor: str) -> tuple[float, float]:
    """Rank validation figures: the smaller, the better.

    Args:
        figures: of a `Validation`.
        monitor: `loss`, `score` for the accuracy, or the name of a metric, the last two with the loss to break ties.

    Returns:
        Sort key.
    """
    loss = figures.get("loss", math.inf)
    if monitor == "loss":
        return loss, loss
    score = figures.get("accuracy" if monitor == "score" else monitor, 0.0)
    # Where a metric isn't defined the epoch is no better than any.
    return (math.inf if math.isnan(score) else -score), loss


def r2(output: Tensor, target: Tensor, weight: Tensor) -> float:
    """Compute the coefficient of determination, averaged over the targets that vary.

    Args:
        output: (n, k) predictions.
        target: (n, k) numbers.
        weight: (n,) non-negative.

    Returns:
        1 - residual variance / variance; 0 if no target varies.

    Example:
        >>> import torch
        >>> from senn.training.validation import r2
        >>> target = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> r2(target, target, torch.ones(4)), r2(target * 0 + 1.5, target, torch.ones(4))
        (1.0, 0.0)
    """
    w = (weight / weight.sum()).unsqueeze(1)
    residual = (w * (target - output) ** 2).sum(0)
    mean = (w * target).sum(0)
    spread = (w * (target - mean) ** 2).sum(0)
    varies = spread > 0
    if not varies.any():
        return 0.0
    return (1 - residual[varies] / spread[varies]).mean().item()
