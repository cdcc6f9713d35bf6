"""A linear model beside the network of a table: with many columns and few rows it is often the better one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from senn.nn import MLP
from senn.training.batches import Rows
from senn.training.builders import loss_function, mean_loss
from senn.training.metric import as_metric
from senn.training.train_config import Task, TrainConfig
from senn.training.validation import Validation

PENALTIES = tuple(10.0**power for power in range(1, -5, -1))
"""Factors of half the squared weights beside the mean loss, of standardized inputs."""

LEAST_GAIN = 0.002
"""Share by which a weaker penalty has to lower the validation loss for a still weaker one to be tried."""

MOST_ROWS = 20_000
"""Training rows that a linear model is fitted to; with more it would hardly change."""

_ITERATIONS = 60
"""Most iterations for each penalty; each begins with the weights of the one before."""

_HISTORY = 10
"""Steps that L-BFGS remembers: more lower the loss no further, and take most of the time."""


def better_linear_model(
    network: MLP,
    rows: Rows,
    validate: Callable[[nn.Module], Validation | None],
    task: Task,
    recipe: TrainConfig,
) -> tuple[MLP, Validation] | None:
    """Fit ridge or logistic regression, and return it if it is better than a network by more than noise.

    Its penalty is the one that is best on the validation rows.

    Args:
        network: that is to be kept otherwise.
        rows: training rows.
        validate: computes loss and score on the validation rows.
        task: `classification` or `regression`.
        recipe: figure that is watched.

    Returns:
        The model, a network without hidden layers in eval mode, and what it makes of the validation rows; None if the
        network stays, or there are no validation rows.
    """
    present = validate(network)
    if present is None or not network.hidden:
        return None
    metric = as_metric(recipe.monitor)
    watched = "loss" if metric is None else metric.name
    outputs = int(network(rows.x[:1]).shape[1])
    best: tuple[MLP, Validation] | None = None
    for model in linear_path(rows.spread(MOST_ROWS), outputs, task):
        found = validate(model)
        assert found is not None  # as of the network
        least = math.inf if best is None else best[1].figures["loss"]
        if found.figures["loss"] < least:
            best = model, found
        if not found.figures["loss"] < (1 - LEAST_GAIN) * least:
            break
    if best is None or present.is_level_with(best[1], watched):
        return None
    return best


def linear_path(rows: Rows, outputs: int, task: Task) -> Iterator[MLP]:
    """Fit linear models with ever weaker penalties.

    Full-batch L-BFGS in float64 (Nocedal & Wright 2006, *Numerical optimization*, section 7.2).

    Args:
        rows: training rows.
        outputs: number of classes, or of numbers to predict.
        task: `classification` or `regression`.

    Yields:
        A network without hidden layers for each of `PENALTIES`, in the precision of the rows.
    """
    x, loss = rows.x.double(), loss_function(task)
    y = rows.y.double() if rows.y.is_floating_point() else rows.y
    weight = None if rows.weight is None else rows.weight.to(x)
    linear = MLP(x.shape[1], (), outputs).to(x)
    slope, start = linear.parameters()
    nn.init.zeros_(slope)
    nn.init.zeros_(start)

    def objective(penalty: float) -> Tensor:
        return mean_loss(loss, linear(x), y, weight) + penalty / 2 * slope.square().sum()

    for penalty in PENALTIES:
        _descend(linear, partial(objective, penalty))
        fitted = MLP(x.shape[1], (), outputs).to(rows.x)
        fitted.load_state_dict(linear.state_dict())
        yield fitted.eval()


def _descend(model: nn.Module, objective: Callable[[], Tensor]) -> None:
    """Go from a model's weights to those nearby at which a smooth objective is least."""
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=_ITERATIONS,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
