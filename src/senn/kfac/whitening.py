"""Square roots of S, the covariance of pseudo-gradients, which whiten a map's outputs.

A root L with S = L L^T is the Cholesky factor, (m, m). A map with more than `DENSE_OUTPUTS` outputs, such as the head
of a language model, has the diagonal of S alone, and L is a vector, (m,): S itself would be 10 GB for a vocabulary of
50,257, and a sample of rows can't tell its off-diagonal entries from noise. For a softmax these are -E[p_i p_j], small
beside the diagonal where probability is spread over many classes; where two classes share all of it, gains come out
twice too large.
"""

from __future__ import annotations

import torch
from torch import Tensor

from senn.errors import DivergenceError
from senn.kfac.factors import DAMPING, cholesky, whiten


def square_root(S: Tensor, damping: float = DAMPING) -> Tensor:
    """Find L with S = L L^T, damped.

    Args:
        S: (m, m), or its diagonal (m,).
        damping: fraction of the mean diagonal to add first.

    Returns:
        (m, m) lower Cholesky factor, or (m,); float64.

    Raises:
        DivergenceError: S holds NaN or infinity.
    """
    if S.ndim == 2:
        return cholesky(S, damping)
    if not torch.isfinite(S).all():
        raise DivergenceError(
            "a curvature factor holds NaN or infinity: the network or its loss has diverged"
        )
    return (S.double() + S.double().mean().clamp_min(1e-30) * damping).sqrt()


def whiten_outputs(root: Tensor, right: Tensor) -> Tensor:
    """Compute L^-1 right for right (m, n), float64."""
    return right.double() / root[:, None] if root.ndim == 1 else whiten(root, right)


def unwhiten_outputs(root: Tensor, right: Tensor) -> Tensor:
    """Compute L^-T right for right (m, n): a whitened step as one of the map."""
    if root.ndim == 1:
        return right / root[:, None]
    solution: Tensor = torch.linalg.solve_triangular(root.mT, right, upper=True)
    return solution


def whiten_weights(root: Tensor, weights: Tensor) -> Tensor:
    """Compute L^T weights for weights (m, n): what a step of the map is in whitened outputs."""
    return root[:, None] * weights if root.ndim == 1 else root.mT @ weights
