"""A loss without a closed form, differentiated twice: gradient rows and exact Hessians in m backward passes.

Works for any loss that is a mean over samples (`separability`) and convex in the outputs; anything else is refused.
"""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn

from senn.errors import SennError, UnsupportedError, in_one_line
from senn.kfac.loss_hessians import DenseHessian, DiagonalHessian, LocalLoss
from senn.kfac.separability import Loss, depends, scalar


def differentiate(
    function: Loss, name: str, y: Tensor, target: Any, curved: bool, weight: Tensor | None
) -> LocalLoss:
    """Differentiate a loss twice, in m backward passes.

    Args:
        function: the loss, `function(output, target) -> scalar`.
        name: of the loss, for messages.
        y: (N, ...) outputs.
        target: targets as the loss takes them.
        curved: False to leave the Hessians out.
        weight: (N,) sample weights, or None; with weights every sample's own loss is needed.

    Returns:
        Losses, gradient rows and Hessians of the samples, not weighted yet.

    Raises:
        UnsupportedError: the loss is no scalar, has no second derivative, or isn't convex in the outputs.
        SennError: its curvature is NaN or infinite.
    """
    samples = len(y)
    with torch.enable_grad():
        # a leaf of its own: the graph of the network isn't differentiated
        leaf = y.detach().clone().requires_grad_()
        value = scalar(function(leaf, target), name)
        gradient = None
        if value.requires_grad:
            # The graph of the gradient only where it is needed: some losses (CTC, hinge) have no second derivative.
            (gradient,) = torch.autograd.grad(value, leaf, create_graph=curved, allow_unused=True)
        # the loss is a mean, and rows are per sample and unaveraged
        rows = samples * depends(gradient, name).reshape(samples, -1)
    losses = (
        value.detach().expand(samples)
        if weight is None
        else sample_losses(function, name, y, target)
    )
    curvature = (
        _hessian(name, leaf, rows) if curved else DiagonalHessian(torch.zeros_like(rows.detach()))
    )
    return LocalLoss(losses=losses, gradient=rows.detach(), curvature=curvature)


def _backward(name: str, rows: Tensor, leaf: Tensor, direction: Tensor) -> Tensor:
    """Differentiate <rows, direction> with respect to the outputs: rows (N, m)."""
    try:
        (result,) = torch.autograd.grad(rows, leaf, direction, retain_graph=True)
    except RuntimeError as error:
        raise UnsupportedError(
            f"the loss {name} cannot be differentiated twice ({in_one_line(error)}): use metric='euclidean'"
        ) from error
    return result.reshape(rows.shape)


def _hessian(name: str, leaf: Tensor, rows: Tensor) -> DenseHessian:
    """Compute every sample's Hessian, with eigenvalues of rounding set to zero."""
    hessian = rows.new_zeros(*rows.shape, rows.shape[1])
    for column in range(rows.shape[1] if rows.requires_grad else 0):
        direction = torch.zeros_like(rows)
        # column c of all samples' Hessians at once, since samples don't mix
        direction[:, column] = 1
        hessian[:, column] = _backward(name, rows, leaf, direction)
    if not torch.isfinite(hessian).all():
        raise SennError(f"the loss {name} has a curvature that is NaN or infinite on this batch")
    # a piecewise linear loss, such as the mean absolute error
    if not hessian.any():
        raise UnsupportedError(
            f"the loss {name} has no curvature in the outputs: use metric='euclidean'"
        )
    values, vectors = torch.linalg.eigh((hessian + hessian.mT).double() / 2)
    # the rounding of m backward passes, relative to each sample's largest eigenvalue
    noise = 100 * torch.finfo(rows.dtype).eps * values.abs().amax(1, keepdim=True)
    if (values < -noise).any():
        raise UnsupportedError(
            f"the loss {name} is not convex in the outputs: use metric='euclidean'"
        )
    return DenseHessian(
        vectors=vectors.to(rows), values=torch.where(values <= noise, 0.0, values).to(rows)
    )


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
