"""What the first batch of a session tells about the loss: whether it mixes samples, and the unit of its metric."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from weakref import WeakSet

import torch
from torch import Tensor

from senn import pytree
from senn.collectives import Communicator
from senn.errors import SennError, UnsupportedError
from senn.kfac.loss_metric import LossMetric
from senn.pytree import Inputs, Targets

Forward = Callable[[Inputs], Tensor]

CHECKED_AGAIN = 16
"""Samples of a batch on which a loss is checked once more, after it has passed on all of an earlier one."""

_passed: WeakSet[LossMetric] = WeakSet()


def check_loss(
    metric: LossMetric,
    communicator: Communicator,
    forward: Forward,
    batch: tuple[Inputs, Targets, Tensor | None],
    *,
    is_whole: bool = False,
) -> None:
    """Refuse a loss that mixes samples, by a batch in the order in which it was given.

    Args:
        metric: the loss.
        communicator: the processes that score together.
        forward: runs the model without gradients.
        batch: this process's inputs, targets and sample weights.
        is_whole: True if the batch can't be cut into samples.

    Raises:
        UnsupportedError: the loss mixes samples, or couples them where that can't be done.
    """
    inputs, targets, weights = batch
    if metric.coupled:
        if weights is not None:
            raise UnsupportedError("a loss that couples samples takes no sample weights")
        if not communicator.is_single:
            raise UnsupportedError(
                "a loss that couples samples can be scored by one process only: give the grower "
                "communicator=senn.collectives.Communicator() on one of them"
            )
    elif not metric.has_closed_form and pytree.count(targets) > 1:
        # Before anything is shuffled: pairs of rows, or thirds of a batch, are still together here.
        if metric in _passed and not is_whole:
            first = slice(0, CHECKED_AGAIN)
            with suppress(SennError):  # all of the batch is asked then
                few = pytree.index_batch((inputs, targets), first, pytree.count(targets))
                _check_separable(metric, forward, *few)
                return
        _check_separable(metric, forward, inputs, targets)
        _passed.add(metric)


def _check_separable(
    metric: LossMetric, forward: Forward, inputs: Inputs, targets: Targets
) -> None:
    output = forward(inputs)
    if torch.isfinite(output).all():  # else the network has diverged, which is said later
        metric.check_separable(output, targets)


def calibrated(
    metric: LossMetric, forward: Forward, inputs: Inputs, targets: Targets
) -> LossMetric:
    """Bring a euclidean metric to the unit of the loss, see `LossMetric.calibrated`.

    Args:
        metric: the loss.
        forward: runs the model without gradients.
        inputs: some inputs, the same on all ranks.
        targets: their targets.
    """
    if metric.metric != "euclidean":
        return metric
    output = forward(inputs)
    return metric.calibrated(output, targets) if torch.isfinite(output).all() else metric
