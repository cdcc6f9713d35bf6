"""Mean and variance of gradients over minibatches, from the samples of a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from senn import pytree
from senn.graph.model_copy import copy_model
from senn.kfac.recorder import forward
from senn.preserve import preserve_model_state
from senn.scoring.global_batch import Samples
from senn.scoring.scoring_session import ScoringSession
from senn.surgery.newborn_state import GradientMoments

MINIBATCHES = 16
"""Number of minibatches: a variance is known to a third then, and a second moment's root to a sixth."""

FEWEST, MOST = 2, 1024
"""Fewest samples of a minibatch, and most of all: what is measured costs less than what is scored."""


def gradient_moments(
    session: ScoringSession, values: Mapping[nn.Parameter, Tensor]
) -> dict[nn.Parameter, GradientMoments]:
    """Measure the gradients of some parameters on minibatches of a session's last batch, over the samples of all ranks.

    A copy of the model is run, in eval mode: a change that may still be undone mustn't go backwards through the model
    itself, whose graphs still know the former sizes.

    Args:
        session: whose batch it is. If that can't be cut into samples, or the loss couples them, it is one minibatch.
        values: of the parameters whose gradients are measured, the same ones on all ranks; others have their own.
    """
    model = copy_model(session.model)
    names = {name: own for name, own in session.model.named_parameters() if own in values}
    parameters = [model.get_parameter(name) for name in names]
    for own, copied in zip(names.values(), parameters, strict=True):
        copied.data.copy_(values[own])
    batch, coupled = session.last_batch, session.metric.coupled
    assert batch is not None
    total = batch.share.total
    is_cut = not (batch.is_whole or coupled)
    used = min(total, MOST) if is_cut else total
    count = max(1, min(MINIBATCHES, used // FEWEST)) if is_cut else 1
    means = [torch.zeros_like(one, dtype=torch.float64) for one in parameters]
    squares = [torch.zeros_like(one) for one in means]
    # Once for all minibatches: on a small model, it takes as long as a pass.
    with preserve_model_state(model):
        for number in range(count):
            which = slice(number * used // count, (number + 1) * used // count)
            local = _gradients(session, model, parameters, which)
            joint = batch.communicator.all_reduce("measure gradients", local)
            for gradient, mean, square in zip(joint, means, squares, strict=True):
                mean += gradient.double() / count
                square += gradient.double().square() / count
    spread = count / max(
        count - 1, 1
    )  # about a mean of the same minibatches a variance is too small by this
    moments = {}
    for own, mean, square in zip(names.values(), means, squares, strict=True):
        variance = ((square - mean.square()) * spread).clamp(min=0)
        if count == 1:
            variance.zero_()  # of rounding
        moments[own] = GradientMoments(mean=mean, variance=variance)
    return moments


def _gradients(
    session: ScoringSession,
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    which: slice,
) -> list[Tensor]:
    """Gradients of this rank's part of the mean loss of some samples of all ranks."""
    batch = session.last_batch
    assert batch is not None
    own = batch.share.within(which.start, which.stop)
    count = own.stop - own.start
    if not count:
        return [torch.zeros_like(one) for one in parameters]
    samples: Samples = batch.inputs, batch.targets, batch.weights
    if count < batch.count:
        samples = pytree.index_batch(samples, own, batch.count)
    inputs, targets, weights = samples
    share = count / (which.stop - which.start)
    with torch.enable_grad():
        outputs = forward(model, pytree.clone(inputs), session.output)
        loss = share * session.metric.loss(outputs, targets, weights)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [
        torch.zeros_like(one) if gradient is None else _finite(gradient)
        for one, gradient in zip(parameters, found, strict=True)
    ]


def _finite(gradient: Tensor) -> Tensor:
    """Return a gradient, zero where it isn't finite: a state with NaN would never recover."""
    return gradient.detach().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
