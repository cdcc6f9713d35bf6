"""The account of one linear map: what its candidate columns are worth, brought up to date as some are accepted.

The map reads existing columns a_c (c of them, with the constant 1) and candidate columns a_p (P of them), all in one set of
moments for each of two folds of samples. Everything follows by elimination: accepting columns is one step of a block
Cholesky on the (P, P) residual moment, so a greedy choice of many units costs no further pass over the data, and a
duplicate of an accepted unit is worth nothing.

Residual activations are those less what the columns that are in already predict. `all` uses every sample (eta, gain,
bound, as in the paper); `fit` and `held` the two folds (held-out gain).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from senn.curvature.factors import DAMPING, Moments, cholesky, solve, whiten
from senn.scores import heldout_gain

UNIT_DAMPING = 1e-3
"""Relative damping of a candidate column's own moment, so that an exact copy of an existing one gains nothing."""


class Ledger:
    """Scores of candidate columns of one linear map.

    Args:
        fit: moments of the fold on which steps are fitted, over [a_c | a_p].
        held: moments of the fold on which they are valued.
        existing: c, the number of existing columns.

    Attributes:
        eta: the map's expansion score now, accepted columns included.
        whitener: (m, m) lower factor L of S = L L^T; cross moments here are L^-1 times theirs.
    """

    def __init__(self, fit: Moments, held: Moments, existing: int) -> None:
        both = fit + held
        self.locations = both.locations
        self.existing = existing
        self.whitener = cholesky(both.S, DAMPING)
        self.all_residual, self.all_cross, weights, self.factor = _residual(both, existing, self.whitener)
        self.eta = self.locations * float((weights @ self.factor).square().sum())
        self.step = torch.linalg.solve_triangular(self.whitener.mT, weights, upper=True)
        self.raw = both.A[existing:, existing:]
        self.fit_residual, self.fit_cross, step, factor = _residual(fit, existing, self.whitener)
        self.held_moment, self.held_cross = _project(held, fit, existing, self.whitener, step, factor)
        level = self.raw.diagonal() * UNIT_DAMPING
        self.all_residual.diagonal().add_(level)
        self.fit_residual.diagonal().add_(level)

    def gain(self, columns: Tensor, onto: Tensor | None = None) -> Tensor:
        """Exact gain D of each group of columns, (groups, p) long to (groups,), see `scores.width_gain`."""
        return self._quadratic(self.all_cross, self.all_residual, columns, onto)

    def bound(self, columns: Tensor, onto: Tensor | None = None) -> Tensor:
        """Lower bound D' of each group (Theorem 3.2), see `scores.width_gain_bound`; residuals include what is accepted."""
        raw = self.raw + torch.diag(self.raw.diagonal() * UNIT_DAMPING)
        return self._quadratic(self.all_cross, raw, columns, onto)

    def heldout(self, columns: Tensor, onto: Tensor | None = None) -> Tensor:
        """Held-out gain of each group, see `scores.heldout_gain`."""
        fit, held = _gather(self.fit_cross, columns, onto), _gather(self.held_cross, columns, onto)
        block = self.fit_residual[columns[:, :, None], columns[:, None, :]]
        step = torch.linalg.solve(block, fit.mT).mT
        moment = self.held_moment[columns[:, :, None], columns[:, None, :]]
        identity = torch.eye(fit.shape[-2], dtype=fit.dtype)
        return heldout_gain(step, held, moment, identity, locations=self.locations)

    def accept(self, columns: Tensor, onto: Tensor | None = None) -> None:
        """Count these columns (p,) as part of the map from now on."""
        self.eta += float(self.gain(columns[None], onto)[0])
        block = torch.linalg.solve(self.fit_residual[columns][:, columns], self.fit_residual[columns]).mT
        cross = self.fit_cross[:, columns] if onto is None else onto @ (onto.mT @ self.fit_cross[:, columns])
        step = torch.linalg.solve(self.fit_residual[columns][:, columns], cross.mT).mT
        self.held_cross = self.held_cross - step @ self.held_moment[columns]
        self.held_cross = self.held_cross - self.held_cross[:, columns] @ block.mT
        self.fit_cross = self.fit_cross - self.fit_cross[:, columns] @ block.mT
        self.fit_residual = self.fit_residual - block @ self.fit_residual[columns]
        half = self.held_moment - block @ self.held_moment[columns]
        self.held_moment = half - half[:, columns] @ block.mT
        block = torch.linalg.solve(self.all_residual[columns][:, columns], self.all_residual[columns]).mT
        self.all_cross = self.all_cross - self.all_cross[:, columns] @ block.mT
        self.all_residual = self.all_residual - block @ self.all_residual[columns]

    def clone(self) -> Ledger:
        """A ledger to try acceptances on: tensors are replaced, never written to, so a shallow copy is enough."""
        return copy.copy(self)

    def _quadratic(self, cross: Tensor, moment: Tensor, columns: Tensor, onto: Tensor | None) -> Tensor:
        """Tr(C M^-1 C^T) of each group."""
        taken = _gather(cross, columns, onto)
        block = moment[columns[:, :, None], columns[:, None, :]]
        return self.locations * (torch.linalg.solve(block, taken.mT) * taken.mT).sum((-2, -1))


def _gather(cross: Tensor, columns: Tensor, onto: Tensor | None) -> Tensor:
    """Columns of the whitened cross moment by group, (groups, m, p), projected on an orthonormal basis (m, r) if given."""
    taken = cross[:, columns].movedim(1, 0)
    return taken if onto is None else onto.mT @ taken


def _residual(moments: Moments, c: int, whitener: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Schur complement, residual cross moment, whitened natural step (m, c) and factor of A_cc."""
    A, G = moments.A, whiten(whitener, moments.G)
    factor = cholesky(A[:c, :c], DAMPING)
    step = solve(factor, G[:, :c].mT).mT
    predicted = whiten(factor, A[:c, c:])
    residual = A[c:, c:] - predicted.mT @ predicted
    return residual, G[:, c:] - step @ A[:c, c:], step, factor


def _project(
    held: Moments, fit: Moments, c: int, whitener: Tensor, step: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """Moments on the held fold of residual activations and gradients, both with the fit fold's predictions."""
    A, G = held.A, whiten(whitener, held.G)
    predict = solve(factor, fit.A[:c, c:])
    mixed = A[:c, c:] - A[:c, :c] @ predict
    moment = A[c:, c:] - predict.mT @ A[:c, c:] - mixed.mT @ predict
    cross = G[:, c:] - G[:, :c] @ predict - step @ mixed
    return moment, cross
