"""Metrics of the outputs other than a loss's own Hessian: a Hessian of the user's, and a multiple of the identity.

The identity has no unit, and gains g^T F^-1 g under it would be quadratic in the loss's. As kappa times the identity it
has that of the loss: kappa is the curvature along the loss's own gradient, so that half a gain is a decrease of the
loss, whatever constant stands before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from senn.errors import SennError, UnsupportedError
from senn.kfac.loss_hessians import DenseHessian, DiagonalHessian, LossHessian

HessianFunction = Callable[[Tensor, Any], Tensor | LossHessian]
"""Function of outputs (N, ...) and targets: the Hessian of each sample's loss."""

DOUBLINGS, BISECTIONS = 60, 20
"""Steps of the search for the length at which a slope has halved: from a millionth of the outputs' size to far beyond
it, then to a millionth of itself."""


def hessian_of(found: object, output: Tensor, name: str) -> LossHessian:
    """Check what a user's function says a loss's Hessian is.

    Args:
        found: a diagonal in the outputs' shape, matrices (N, m, m) over the flattened outputs, or an object with the
            methods of `LossHessian`.
        output: (N, ...) outputs.
        name: of the function, for messages.

    Returns:
        The Hessian of every sample.

    Raises:
        SennError: it has another shape, isn't finite, or isn't positive semidefinite.
    """
    rows = output.flatten(1) if output.ndim > 1 else output[:, None]
    count, m = rows.shape
    methods = ("root", "product", "score_limit", "scaled")
    if all(callable(getattr(found, method, None)) for method in methods):
        return found  # type: ignore[return-value]
    shapes = f"{tuple(output.shape)} (a diagonal) or {(count, m, m)}"
    if not isinstance(found, Tensor):
        raise SennError(
            f"loss_hessian {name} must return a tensor of shape {shapes}, not a {type(found).__name__}"
        )
    found = found.detach().to(rows)
    if not bool(torch.isfinite(found).all()):
        raise SennError(f"loss_hessian {name} returns NaN or infinity on this batch")
    if found.shape == output.shape or found.shape == rows.shape:
        values: Tensor = found.reshape(rows.shape)
        hessian: LossHessian = DiagonalHessian(values)
    elif found.shape == (count, m, m):
        values, vectors = torch.linalg.eigh((found + found.mT).double() / 2)
        # eigenvalues below rounding are none
        noise = 100 * torch.finfo(rows.dtype).eps * values.abs().amax(1, keepdim=True)
        values = torch.where(values.abs() <= noise, 0.0, values)
        hessian = DenseHessian(vectors=vectors.to(rows), values=values.to(rows))
    else:
        raise SennError(
            f"loss_hessian {name} returns shape {tuple(found.shape)}, and outputs {tuple(output.shape)} need {shapes}"
        )
    if bool((values < 0).any()):
        raise UnsupportedError(
            f"loss_hessian {name} has negative curvature, and a positive semidefinite matrix is needed: the mean of "
            "the Hessian over the model's own labels (the Fisher matrix) is one"
        )
    return hessian


def rayleigh_quotient(gradient: Tensor, product: Tensor) -> float:
    """Return the curvature along the gradient, sum g^T H g / sum g^T g; 1 for no gradient.

    Args:
        gradient: rows g, (N, m).
        product: rows H g, (N, m).
    """
    square = float(gradient.double().square().sum())
    return float((gradient.double() * product.double()).sum()) / square if square else 1.0


def secant_curvature(rows: Callable[[Tensor], Tensor], output: Tensor) -> float:
    """Find the curvature along the gradient from first derivatives alone.

    On a quadratic loss of curvature kappa the slope along -g falls as 1 - kappa t, so it has halved at t = 1 / (2
    kappa). Where slopes change in steps (hinge, absolute errors), or hardly at first (a saturated softmax), this is the
    curvature at the scale of a whole step, which is the one that counts.

    Args:
        rows: maps outputs to gradient rows g, (N, m).
        output: (N, ...) outputs.

    Returns:
        kappa. Where the slope never halves (a linear loss), that for which a step is as long as the outputs spread.
    """
    direction = rows(output)
    square = float(direction.double().square().sum())
    if not square:
        return 1.0

    def slope(t: float) -> float:
        moved = output - t * direction.reshape(output.shape)
        return float((rows(moved).double() * direction.double()).sum()) / square

    spread = float((output - output.mean(0, keepdim=True)).double().norm())
    size = (spread or float(output.double().norm()) or math.sqrt(len(output))) / math.sqrt(square)
    low, high = 0.0, 1e-6 * size
    for _ in range(DOUBLINGS):
        if not slope(high) > 0.5:
            break
        low, high = high, 2 * high
    else:
        return 1 / size
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0.5 else (low, middle)
    return 1 / (low + high)
