"""The natural expansion score and what follows from it, on plain tensors (paper, section 3).

"The paper" is Mitchell et al. 2023, *Self-Expanding Neural Networks*, arXiv 2307.04526. Public functions take the
moments themselves. The scoring of candidates has them whitened or inverted already, so it calls the building blocks at
the end of this file, of which the public functions are made: each formula stands in one place.

One linear map z = W a is described by second moments over samples and locations (`senn.kfac.factors`):

    A (c, c)   E[a a^T], a with a trailing 1 where there is a bias
    G (m, c)   E[dz a^T], dz the gradient of the loss with respect to z, true targets
    S (m, m)   E[s s^T], s the pseudo-gradient at z; F = locations * A (x) S
    p columns  activations a_p of new units; C = E[d_r a_p^T] (m, p), d_r = dz - G A^-1 a the residual gradient

Of new rows of a map, the same with inputs and gradients exchanged (`senn.kfac.transposed`): A' = S, S' = A, G' = G^T.

Every function takes leading batch dimensions, computes in float64 and returns float64. Scores are in units of twice the
loss: *half* a score is the decrease of the loss, in the loss's own unit per sample, that the natural-gradient step
predicts (nats for cross-entropy). `damping` is relative to each matrix's mean diagonal.

A score is scale free: nothing changes when the units' activations are multiplied by a number.
"""

from __future__ import annotations

import math
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


def expansion_score(
    G: Tensor, A: Tensor, S: Tensor, *, locations: float = 1.0, damping: float = DAMPING
) -> Tensor:
    """Natural expansion score eta = g^T F^-1 g of one linear map, under K-FAC.

    eta = locations * Tr(S^-1 G A^-1 G^T) (paper, equation 2 with the Kronecker factors of section 3.4).

    Args:
        G: (..., m, c) gradient.
        A: (..., c, c) input covariance.
        S: (..., m, m) pseudo-gradient covariance.
        locations: rows per sample (1 for a vector input).
        damping: relative damping of both factors.

    Returns:
        (...) eta, at most the output gradient's own squared length lambda when F is exact.

    >>> expansion_score(torch.tensor([[2.0]]), torch.tensor([[4.0]]), torch.tensor([[1.0]]), damping=0.0)
    tensor(1., dtype=torch.float64)
    """
    white = whiten(cholesky(S, damping), G)
    # Tr(S^-1 G A^-1 G^T) = |L_S^-1 G L_A^-T|^2: a sum of squares, so it can't come out negative.
    half = whiten(cholesky(A, damping), white.mT)
    return locations * half.square().sum((-2, -1))


def natural_step(G: Tensor, A: Tensor, S: Tensor, *, damping: float = DAMPING) -> Tensor:
    """Natural-gradient step F^-1 g = S^-1 G A^-1 of one linear map.

    Args:
        G: (..., m, c) gradient.
        A: (..., c, c) input covariance.
        S: (..., m, m) pseudo-gradient covariance.
        damping: relative damping of both factors.

    Returns:
        (..., m, c): what is *subtracted* from [W | b].

    >>> natural_step(torch.tensor([[2.0]]), torch.tensor([[4.0]]), torch.tensor([[1.0]]), damping=0.0)
    tensor([[0.5000]], dtype=torch.float64)
    """
    # Two triangular solves on each side; no inverse is formed.
    return solve(cholesky(A, damping), solve(cholesky(S, damping), G).mT).mT


def residual_cross(
    C: Tensor, G: Tensor, A: Tensor, A_cp: Tensor, *, damping: float = DAMPING
) -> Tensor:
    """Residual cross moment E[d_r a_p^T]: the part of C that no step of the existing weights explains.

    Args:
        C: (..., m, p) E[dz a_p^T].
        G: (..., m, c) gradient of the existing weights.
        A: (..., c, c) input covariance.
        A_cp: (..., c, p) E[a a_p^T].
        damping: relative damping of A.

    Returns:
        (..., m, p).

    A unit that is a copy of the only input explains nothing more:

    >>> one = torch.ones(1, 1)
    >>> residual_cross(2 * one, 2 * one, one, one, damping=0.0)
    tensor([[0.]], dtype=torch.float64)
    """
    return eliminated_cross(C.double(), G.double(), solve(cholesky(A, damping), A_cp))


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
        A: (..., c, c) input covariance of the existing columns.
        S: (..., m, m) pseudo-gradient covariance.
        locations: rows per sample.
        damping: relative; the units' is of A_pp, so an exact copy of an existing unit gains nothing.

    Returns:
        (...) D >= 0; 0 for a unit that is never active.

    >>> one = torch.ones(1, 1)
    >>> width_gain(one, 2 * one, one, one, one, damping=0.0)  # half of the unit is predicted by the input
    tensor(1., dtype=torch.float64)
    """
    # float64, since a unit that others nearly predict leaves a small difference of large numbers.
    schur = schur_complement(A_pp.double(), A_cp.double(), solve(cholesky(A, damping), A_cp))
    white = whiten(cholesky(S, damping), C)
    return trace_product(white, white, schur + _level(A_pp, damping), locations=locations)


def width_gain_bound(
    C: Tensor, A_pp: Tensor, S: Tensor, *, locations: float = 1.0, damping: float = DAMPING
) -> Tensor:
    """Cheap lower bound of the gain (paper, Theorem 3.2): D' = Tr(S^-1 C A_pp^-1 C^T) <= D, equal iff A_cp = 0.

    Args:
        C: (..., m, p) residual cross moment of the units, see `residual_cross`.
        A_pp: (..., p, p) E[a_p a_p^T].
        S: (..., m, m) pseudo-gradient covariance.
        locations: rows per sample.
        damping: relative.

    Returns:
        (...) D' >= 0; 0 for a unit that is never active.

    >>> one = torch.ones(1, 1)
    >>> width_gain_bound(one, 2 * one, one, damping=0.0)
    tensor(0.5000, dtype=torch.float64)
    """
    white = whiten(cholesky(S, damping), C)
    return trace_product(white, white, A_pp.double() + _level(A_pp, damping), locations=locations)


def held_out_gain(
    step: Tensor, G: Tensor, A: Tensor, S: Tensor, *, locations: float = 1.0
) -> Tensor:
    """Gain of a step on samples that it wasn't fitted to: 2 <g, d> - d^T F d.

    In expectation never above the true gain, and negative for noise: the gain of a useless unit on the samples
    that it was fitted to is about p m / n > 0, on other samples about the negative of that.

    Args:
        step: (..., m, p) d, the step that would be subtracted from the new weights.
        G: (..., m, p) residual cross moment on the held-out samples.
        A: (..., p, p) moment of the (residual) activations on the held-out samples.
        S: (..., m, m) pseudo-gradient covariance.
        locations: rows per sample.

    Returns:
        (...) the gain in eta, of either sign.

    >>> one = torch.ones(1, 1)
    >>> held_out_gain(one, one, one, one), held_out_gain(one, -one, one, one)
    (tensor(1., dtype=torch.float64), tensor(-3., dtype=torch.float64))
    """
    step = step.double()
    slope = (step * G.double()).sum((-2, -1))
    # d^T F d with F = A (x) S, as Tr(S d A d^T): the Kronecker product isn't formed.
    curvature = ((S.double() @ step) * (step @ A.double())).sum((-2, -1))
    return locations * quadratic_decrease(slope, curvature)


def diagonal_gain(
    gradient: Tensor, curvature: Tensor, *, locations: float = 1.0, damping: float = DAMPING
) -> Tensor:
    """Expansion score g^T H^-1 g of parameters that become live together, such as activation parameters.

    For h_i(x) delta_i entering z through the columns M_i: g_i = M_i^T E[d_r h_i] and
    H_ij = E[h_i h_j] (M_i^T S M_j) (identity insertion: paper, section 3).

    Args:
        gradient: (..., q) g.
        curvature: (..., q, q) H, the mean over rows.
        locations: rows per sample.
        damping: relative.

    Returns:
        (...) the gain in eta.

    >>> diagonal_gain(torch.tensor([1.0, 2.0]), torch.eye(2), damping=0.0)
    tensor(5., dtype=torch.float64)
    """
    return locations * whiten(cholesky(curvature, damping), gradient[..., None]).square().sum(
        (-2, -1)
    )


def pruning_cost(
    w: Tensor, step: Tensor, A_inv: Tensor, S: Tensor, *, locations: float = 1.0
) -> Tensor:
    """Cost of removing units while the others compensate, in eta: Tr(S v [A^-1]_jj^-1 v^T), v = w - step.

    The optimal brain surgeon (Hassibi & Stork 1993) under Kronecker factors (Wang et al. 2019, *EigenDamage*, arXiv
    1905.05934). It is the mirror of the gain: half of it is the loss difference, after convergence, between having the
    units and not having them. Away from a stationary point the natural step would move the weights first: w - step.

    Args:
        w: (..., m, p) the columns that read the units.
        step: (..., m, p) those columns of the natural step; zeros at a stationary point.
        A_inv: (..., p, p) the units' block of A^-1.
        S: (..., m, m) pseudo-gradient covariance.
        locations: rows per sample.

    Returns:
        (...) the cost >= 0.

    >>> one = torch.ones(1, 1)
    >>> pruning_cost(3 * one, one, 2 * one, one)
    tensor(2., dtype=torch.float64)
    """
    v = w.double() - step.double()
    return trace_product(v, S.double() @ v, A_inv.double(), locations=locations)


def compensation(A_inv: Tensor, units: Tensor) -> Tensor:
    """Coefficients K with which kept columns take over: W_kept += W_gone @ K, K = -([A^-1]_jj)^-1 [A^-1]_j,kept.

    Optimal brain surgeon (Hassibi & Stork 1993), for all outputs at once since S cancels.

    Args:
        A_inv: (c, c) inverse input covariance.
        units: (p,) columns that go.

    Returns:
        (p, c - p) coefficients K, columns in the order of the kept ones.

    >>> A = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    >>> compensation(torch.linalg.inv(A), torch.tensor([1]))  # the kept one predicts half of it
    tensor([[0.5000]], dtype=torch.float64)
    """
    kept = torch.ones(len(A_inv), dtype=torch.bool)
    kept[units] = False
    # Minimizes E|a_gone + K a_kept|^2 over the data, whose solution is a block of A^-1.
    rows = A_inv[units].double()
    taken_over: Tensor = -torch.linalg.solve(rows[:, units], rows[:, kept])
    return taken_over


def max_additions(tau: float, alpha: float) -> float:
    """Bound on the number of additions in one round (paper, Theorem 3.1): 1 + (ln lambda - ln alpha) / ln(1 + tau).

    A round makes fewer than that because each addition raises eta by more than a factor 1 + tau and eta can't exceed
    lambda. `PaperPolicy` follows the rule, so nothing has to compute the bound but whoever wants to know it.

    Args:
        tau: relative improvement that is required, above 0.
        alpha: absolute improvement that is required, as a fraction of lambda, between 0 and 1.

    Returns:
        1 - ln(alpha) / ln(1 + tau), the same with alpha counted in lambda.

    >>> round(max_additions(1.0, 2.5e-3), 2)
    9.64
    """
    # log1p: tau may be far below 1.
    return 1.0 - math.log(alpha) / math.log1p(tau)


# -- on factors that are inverted or whitened already


def eliminated_cross(C: Tensor, G: Tensor, prediction: Tensor) -> Tensor:
    """Residual cross moment C - G P, with P = A^-1 A_cp what the existing columns predict of the new ones.

    Args:
        C: (..., m, p) E[dz a_p^T].
        G: (..., m, c) gradient of the existing weights.
        prediction: (..., c, p) P.

    Returns:
        (..., m, p) E[d_r a_p^T].
    """
    return C - G @ prediction


def schur_complement(A_pp: Tensor, A_cp: Tensor, prediction: Tensor) -> Tensor:
    """Moment of the residual activations, A_pp - A_pc A^-1 A_cp, with P = A^-1 A_cp.

    Args:
        A_pp: (..., p, p) E[a_p a_p^T].
        A_cp: (..., c, p) E[a a_p^T].
        prediction: (..., c, p) P.

    Returns:
        (..., p, p).
    """
    return A_pp - prediction.mT @ A_cp


def divided(rows: Tensor, moment: Tensor) -> Tensor:
    """Multiply rows by the inverse of a symmetric moment.

    Args:
        rows: (..., m, p).
        moment: (..., p, p), symmetric.

    Returns:
        (..., m, p).
    """
    # one column is the usual case, and a division is far cheaper than a batch of factorizations
    return rows / moment if moment.shape[-1] == 1 else torch.linalg.solve(moment, rows.mT).mT


def trace_product(left: Tensor, right: Tensor, moment: Tensor, *, locations: float = 1.0) -> Tensor:
    """Scores of the form locations * Tr(X M^-1 Y^T).

    With X = Y = L_S^-1 C it is a gain: D for M the Schur complement, D' (Theorem 3.2) for M = A_pp. With X and Y the
    columns of [W | b] less their step, whitened, it is a cost of removal for M = [A^-1]_jj.

    Args:
        left: (..., m, p) X.
        right: (..., m, p) Y.
        moment: (..., p, p) M, symmetric.
        locations: rows per sample.

    Returns:
        (...) in eta.
    """
    total: Tensor = locations * (divided(left, moment) * right).sum((-2, -1))
    return total


def quadratic_decrease(slope: Tensor, curvature: Tensor, length: Tensor | float = 1.0) -> Tensor:
    """Twice the decrease of a quadratic along a step of that length: 2 t <g, d> - t^2 d^T F d.

    Args:
        slope: <g, d>, of any shape.
        curvature: d^T F d, of the same shape.
        length: t, of a shape that goes with theirs.

    Returns:
        in eta, of their shape.
    """
    return 2 * length * slope - length**2 * curvature


def _level(A_pp: Tensor, damping: float) -> Tensor:
    """Damping of each unit's own moment; the last term makes the gain of a unit that is never active 0, not 0 / 0."""
    diagonal = A_pp.double().diagonal(dim1=-2, dim2=-1)
    return torch.diag_embed(diagonal * damping + 1e-30)
