"""The natural expansion score and what follows from it, on plain tensors (paper, section 3).

One linear map z = W a is described by second moments over samples and locations (see `senn.kfac.factors`):

    A (c, c)   E[a a^T], a with a trailing 1 where there is a bias
    G (m, c)   E[dz a^T], dz the gradient of the loss with respect to z, true targets
    S (m, m)   E[s s^T], the output metric pulled back to z; F = locations * A (x) S
    p columns  activations a_p of new units; C = E[d_r a_p^T] (m, p), d_r = dz - G A^-1 a the residual gradient

Every function takes leading batch dimensions, computes in float64 and returns float64. Scores are in units of twice the
loss: *half* a score is the decrease of the loss, in the loss's own unit per sample, that the natural-gradient step
promises (nats for cross-entropy). `damping` is relative to each matrix's mean diagonal.

A score is scale free: nothing changes when the units' activations are multiplied by a number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from senn import _deprecated
from senn.kfac.factors import DAMPING, cholesky, solve, whiten

__all__ = [
    "compensation",
    "diagonal_gain",
    "expansion_score",
    "held_out_gain",
    "max_additions",
    "natural_step",
    "pruning_cost",
    "residual_cross",
    "width_gain",
    "width_gain_bound",
]

if not TYPE_CHECKING:
    __getattr__ = _deprecated.old_names(__name__)


def expansion_score(G: Tensor, A: Tensor, S: Tensor, *, locations: float = 1.0, damping: float = DAMPING) -> Tensor:
    """Natural expansion score eta = g^T F^-1 g of one linear map, under K-FAC.

    eta = locations * Tr(S^-1 G A^-1 G^T) (paper, equation 2 with the Kronecker factors of section 3.4).

    Args:
        G: (..., m, c) gradient.
        A: (..., c, c) input moment.
        S: (..., m, m) output metric.
        locations: rows per sample (1 for a vector input).
        damping: relative damping of both factors.

    Returns:
        (...) eta, at most the output gradient's own squared length lambda when F is exact.

    >>> expansion_score(torch.tensor([[2.0]]), torch.tensor([[4.0]]), torch.tensor([[1.0]]), damping=0.0)
    tensor(1., dtype=torch.float64)
    """
    left = whiten(cholesky(S, damping), G)
    both = whiten(cholesky(A, damping), left.mT)
    return locations * both.square().sum((-2, -1))


def natural_step(G: Tensor, A: Tensor, S: Tensor, *, damping: float = DAMPING) -> Tensor:
    """The step F^-1 g = S^-1 G A^-1 of one linear map, (..., m, c): what is *subtracted* from [W | b]."""
    return solve(cholesky(A, damping), solve(cholesky(S, damping), G).mT).mT


def residual_cross(C: Tensor, G: Tensor, A: Tensor, A_cp: Tensor, *, damping: float = DAMPING) -> Tensor:
    """E[d_r a_p^T] (..., m, p) from C = E[dz a_p^T]: less what a step of the existing weights explains.

    Args:
        C: (..., m, p) E[dz a_p^T].
        G: (..., m, c) gradient of the existing weights.
        A: (..., c, c) input moment.
        A_cp: (..., c, p) E[a a_p^T].
        damping: relative damping of A.
    """
    return C.double() - G.double() @ solve(cholesky(A, damping), A_cp)


def width_gain(
    C: Tensor,
    A_pp: Tensor,
    A_cp: Tensor,
    A: Tensor,
    S: Tensor,
    *,
    locations: float = 1.0,
    damping: float = DAMPING,
) -> Tensor:
    """Exact K-FAC gain of new units in eta: D = Tr(S^-1 C (A_pp - A_pc A^-1 A_cp)^-1 C^T).

    Computed from the Schur complement: a difference of two scores would lose a small gain to rounding.

    Args:
        C: (..., m, p) residual cross moment of the units, see `residual_cross`.
        A_pp: (..., p, p) E[a_p a_p^T].
        A_cp: (..., c, p) E[a a_p^T].
        A: (..., c, c) input moment of the existing columns.
        S: (..., m, m) output metric.
        locations: rows per sample.
        damping: relative; the units' is of A_pp, so an exact copy of an existing unit gains nothing.

    Returns:
        (...) D >= 0.
    """
    schur = A_pp.double() - A_cp.double().mT @ solve(cholesky(A, damping), A_cp)
    level = torch.diag_embed(A_pp.double().diagonal(dim1=-2, dim2=-1) * damping)
    left = whiten(cholesky(S, damping), C)
    return locations * whiten(cholesky(schur + level, 0.0), left.mT).square().sum((-2, -1))


def width_gain_bound(C: Tensor, A_pp: Tensor, S: Tensor, *, locations: float = 1.0, damping: float = DAMPING) -> Tensor:
    """Cheap lower bound of the gain (paper, Theorem 3.2): D' = Tr(S^-1 C A_pp^-1 C^T) <= D, equal iff A_cp = 0.

    Args:
        C: (..., m, p) residual cross moment of the units, see `residual_cross`.
        A_pp: (..., p, p) E[a_p a_p^T].
        S: (..., m, m) output metric.
        locations: rows per sample.
        damping: relative.
    """
    level = torch.diag_embed(A_pp.double().diagonal(dim1=-2, dim2=-1) * damping)
    left = whiten(cholesky(S, damping), C)
    return locations * whiten(cholesky(A_pp.double() + level, 0.0), left.mT).square().sum((-2, -1))


def held_out_gain(step: Tensor, G: Tensor, A: Tensor, S: Tensor, *, locations: float = 1.0) -> Tensor:
    """What a step fitted on other samples is worth on these: 2 <g, d> - d^T F d.

    In expectation never above the true gain, and negative for noise: the gain of a useless unit on the samples
    that it was fitted to is about p m / n > 0, on other samples about the negative of that.

    Args:
        step: (..., m, p) d, the step that would be subtracted from the new weights.
        G: (..., m, p) residual cross moment on the held-out samples.
        A: (..., p, p) moment of the (residual) activations on the held-out samples.
        S: (..., m, m).
        locations: rows per sample.
    """
    step = step.double()
    linear = (step * G.double()).sum((-2, -1))
    quadratic = ((S.double() @ step) * (step @ A.double())).sum((-2, -1))
    return locations * (2 * linear - quadratic)


def diagonal_gain(gradient: Tensor, curvature: Tensor, *, locations: float = 1.0, damping: float = DAMPING) -> Tensor:
    """Expansion score g^T H^-1 g of parameters that become live together, such as activation parameters.

    For h_i(x) delta_i entering z through the columns M_i: g_i = M_i^T E[d_r h_i] and
    H_ij = E[h_i h_j] (M_i^T S M_j) (method: identity insertion).

    Args:
        gradient: (..., q) g.
        curvature: (..., q, q) H, the mean over rows.
        locations: rows per sample.
        damping: relative.
    """
    return locations * whiten(cholesky(curvature, damping), gradient[..., None]).square().sum((-2, -1))


def pruning_cost(w: Tensor, step: Tensor, A_inv: Tensor, S: Tensor, *, locations: float = 1.0) -> Tensor:
    """Loss that removing units costs while the others compensate (optimal brain surgeon under K-FAC), in eta's unit.

    Tr(S v [A^-1]_jj^-1 v^T) with v = w - step. It is the mirror of the gain: half of it is the loss difference, after
    convergence, between having the units and not having them. Away from a stationary point the natural step would move
    the weights first, hence w - step.

    Args:
        w: (..., m, p) the columns that read the units.
        step: (..., m, p) those columns of the natural step; zeros at a stationary point.
        A_inv: (..., p, p) the units' block of A^-1.
        S: (..., m, m).
        locations: rows per sample.
    """
    v = w.double() - step.double()
    inverse = torch.linalg.solve(A_inv.double(), v.mT)
    cost: Tensor = locations * ((S.double() @ v) * inverse.mT).sum((-2, -1))
    return cost


def compensation(A_inv: Tensor, units: Tensor) -> Tensor:
    """How the kept columns take over: W_kept += W_gone @ K, K = -([A^-1]_jj)^-1 [A^-1]_j,kept.

    Args:
        A_inv: (c, c) inverse input moment.
        units: (p,) columns that go.

    Returns:
        (p, c - p) coefficients K, columns in the order of the kept ones.
    """
    kept = torch.ones(len(A_inv), dtype=torch.bool)
    kept[units] = False
    rows = A_inv[units].double()
    taken_over: Tensor = -torch.linalg.solve(rows[:, units], rows[:, kept])
    return taken_over


def max_additions(tau: float, alpha: float) -> float:
    """Theorem 3.1: the number of additions in one round is below 1 + (ln lambda - ln alpha) / ln(1 + tau).

    `alpha` is given as a fraction of lambda here, so that the bound is 1 - ln(alpha) / ln(1 + tau).

    >>> round(addition_limit(1.0, 2.5e-3), 2)
    9.64
    """
    return 1.0 - float(torch.tensor(alpha, dtype=torch.float64).log() / torch.tensor(tau, dtype=torch.float64).log1p())
