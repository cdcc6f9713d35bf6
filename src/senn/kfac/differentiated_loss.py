"""A loss of the user's own, differentiated: gradient rows, and Hessians by `loss_curvature`.

Works for any loss that is a mean over samples (`separability`) and convex in the outputs; anything else is refused.
The euclidean metric asks for first derivatives only.
"""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn

from senn.errors import UnsupportedError
from senn.kfac.loss_curvature import loss_curvature
from senn.kfac.loss_graph import LossGraph
from senn.kfac.loss_hessians import DiagonalHessian, LocalLoss, LossHessian
from senn.kfac.recognized_loss import recognize
from senn.kfac.separability import Loss, check_mean, check_mean_over_samples, depends, scalar


def differentiate(
    function: Loss,
    name: str,
    y: Tensor,
    target: Any,
    *,
    curved: bool,
    weight: Tensor | None = None,
    checked: bool = False,
) -> LocalLoss:
    """Differentiate a loss, twice if its curvature is wanted.

    Args:
        function: the loss, `function(output, target) -> scalar`.
        name: of the loss, for messages.
        y: (N, ...) outputs.
        target: targets as the loss takes them.
        curved: False to leave the Hessians out; first derivatives are enough then.
        weight: (N,) sample weights, or None; with weights every sample's own loss is needed.
        checked: True to refuse a loss that isn't a mean over samples.

    Returns:
        Losses, gradient rows and Hessians of the samples, not weighted yet.

    Raises:
        UnsupportedError: the loss is no scalar, has no second derivative, or isn't convex in the outputs.
        SennError: its curvature is NaN or infinite.
    """
    samples = len(y)
    graph = _graph(function, name, y, target, curved)
    value, rows = graph.value, graph.rows
    losses = (
        value.detach().expand(samples)
        if weight is None
        else sample_losses(function, name, y, target)
    )
    known = recognize(graph) if curved else None
    if checked and known is None:
        check_mean_over_samples(function, name, y, target)
    elif checked:
        # its Hessian, which was proved, holds nothing between samples
        check_mean(function, name, y, target)
    # without curvature, a Hessian that is never read
    curvature: LossHessian = DiagonalHessian(torch.zeros_like(rows.detach()))
    if curved:
        curvature = known or loss_curvature(graph)
    return LocalLoss(losses=losses, gradient=rows.detach(), curvature=curvature)


def _graph(function: Loss, name: str, y: Tensor, target: Any, curved: bool) -> LossGraph:
    """Run a loss, and differentiate it once; its gradient can be differentiated again if curvature is wanted."""
    samples = len(y)
    with torch.enable_grad():
        # a leaf of its own: the graph of the network isn't differentiated
        leaf = y.detach().clone().requires_grad_()
        # what the loss gets isn't the leaf itself, as in training: it may be written to
        value = scalar(function(leaf.clone(), target), name)
        gradient = None
        if value.requires_grad:
            # The graph of the gradient only where it is needed: some losses (CTC, hinge) have no second derivative.
            (gradient,) = torch.autograd.grad(
                value, leaf, retain_graph=curved, create_graph=curved, allow_unused=True
            )
        # the loss is a mean, and rows are per sample and unaveraged
        rows = samples * depends(gradient, name).reshape(samples, -1)
    return LossGraph(
        name=name,
        leaf=leaf,
        value=value,
        rows=rows,
        at=lambda outputs: _graph(function, name, outputs, target, curved),
    )


def check_samples(function: Loss, name: str, y: Tensor, target: Any, *, curved: bool) -> None:
    """Refuse a loss that isn't a mean over samples, each with a loss of its own.

    Args:
        function: the loss.
        name: of the loss, for messages.
        y: (N, ...) outputs.
        target: targets as the loss takes them.
        curved: True if second derivatives may be taken: a closed form that is recognized says as much at less cost.

    Raises:
        UnsupportedError: the loss mixes samples, depends on their order, is no mean, or is random.
    """
    is_known = curved and recognize(_graph(function, name, y, target, True)) is not None
    if is_known:
        # its Hessian, which was proved, holds nothing between samples
        check_mean(function, name, y, target)
    else:
        check_mean_over_samples(function, name, y, target)


def sample_losses(function: Loss, name: str, y: Tensor, target: Any) -> Tensor:
    """Compute every sample's loss by the loss's own `reduction='none'`.

    Args:
        function: the loss.
        name: of the loss, for messages.
        y: (N, ...) outputs.
        target: targets as the loss takes them.

    Returns:
        (N,).

    Raises:
        UnsupportedError: the loss has no such reduction, or isn't the mean of it.
    """
    single: Any
    if isinstance(function, nn.Module) and hasattr(function, "reduction"):
        single = copy.copy(function)
        single.reduction = "none"
    elif _takes_reduction(function):
        single = functools.partial(cast(Any, function), reduction="none")
    else:
        raise UnsupportedError(
            f"the loss {name} takes no reduction='none', which sample weights need"
        )
    losses: Tensor = single(y, target).reshape(len(y), -1).mean(1)
    if not torch.isclose(losses.mean(), function(y, target), rtol=1e-3, atol=1e-6):
        raise UnsupportedError(
            f"the loss {name} is not the mean of its reduction='none', which sample weights need"
        )
    return losses


def _takes_reduction(function: Loss) -> bool:
    try:
        return "reduction" in inspect.signature(function).parameters
    except ValueError:  # a builtin without a signature
        return False
