"""Statistics of what candidate columns add to the existing ones, on some samples of one linear map.

Residual activations are a_p - A_pc A^-1 a_c: what the existing columns don't predict of the candidates. Accepting a
candidate is one step of block elimination on their (P, P) moment, so no choice needs a further pass over the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from senn.kfac.factors import (
    DAMPING,
    WoodburyInverse,
    cholesky,
    gram,
    input_covariance,
    solve,
    whiten,
)
from senn.kfac.folds import Fold
from senn.kfac.per_sample import PerSampleFactors, Samples
from senn.kfac.whitening import whiten_outputs
from senn.scoring.formulas import eliminated_cross, schur_complement

UNIT_DAMPING = 1e-3
"""Relative damping of a candidate column's own moment, so that an exact copy of an existing one gains nothing.

A unit whose residual moment is a fraction r of its own keeps r / (r + damping) of its gain: 99 % at r = 0.1, where ten
times the damping would leave 91 %. A copy's r is rounding, about 1e-7 in float32, far below a tenth of the damping.
"""


@dataclass(frozen=True, eq=False, kw_only=True)
class ResidualStatistics:
    """Residual moments of the candidate columns on some samples.

    Attributes:
        residual: (P, P) Schur complement A_pp - A_pc A^-1 A_cp, damped.
        cross: (m, P) L^-1 E[d_r a_p^T], whitened by S = L L^T.
        samples: single samples over the residual activations; None for all samples together, of which none are kept.
        weight: number of their rows, each with its sample's weight.
        accepted: (samples,) s^T d a of all steps accepted so far, summed; None if none was.
    """

    residual: Tensor
    cross: Tensor
    samples: Samples | None
    weight: float
    accepted: Tensor | None = None

    @classmethod
    def from_moments(
        cls,
        *,
        A: Tensor,
        G: Tensor,
        folds: Sequence[Fold],
        prediction: Tensor,
        damping: Tensor,
        whitener: Tensor,
        locations: float,
        by_rows: bool,
    ) -> ResidualStatistics:
        """Eliminate the existing columns from the moments of some samples.

        Args:
            A: (c + P, c + P) input covariance, or (c + P, P) without the existing columns where those are known.
            G: (m, c + P) gradient.
            folds: folds whose kept samples go along; of several, only their residual moments are used.
            prediction: (c, P) A^-1 A_cp.
            damping: (P,) added to the diagonal of the residual moment.
            whitener: root of S, (m, m) or (m,).
            locations: rows per sample.
            by_rows: whether the residual moment is that of the kept rows. With an A^-1 that comes from other samples,
                A_pp - A_pc A^-1 A_cp need not be positive; a moment of rows always is.
        """
        existing, candidates = prediction.shape
        # Every fold's rows lose what the same prediction explains of them.
        kept = [fold.samples.residual(prediction) for fold in folds]
        rows = max(locations * sum(one.total for one in kept), 1e-30)
        if by_rows:
            moments = [
                input_covariance(one.a, one.weight)
                for one in kept
                if isinstance(one, PerSampleFactors)
            ]
            residual = sum(moments[1:], moments[0]).double() / rows
        else:
            new = A[:, A.shape[1] - candidates :]
            residual = schur_complement(new[existing:], new[:existing], prediction)
        return cls(
            residual=residual + torch.diag(damping),
            cross=whiten_outputs(
                whitener, eliminated_cross(G[:, existing:], G[:, :existing], prediction)
            ),
            samples=kept[0] if len(kept) == 1 else None,
            weight=rows,
        )

    @classmethod
    def from_step(
        cls,
        *,
        new: Tensor,
        cross: Tensor,
        factor: Tensor,
        step: Tensor,
        damping: Tensor,
        whitener: Tensor,
    ) -> ResidualStatistics:
        """Eliminate the existing columns from the moments of all samples together, of which none is kept.

        What A^-1 A_cp would say is had from the existing weights' step and from half of a solution: with A = K K^T,
        A_pc A^-1 A_cp is the Gram matrix of K^-1 A_cp.

        Args:
            new: (c + P, P) columns A_cp and A_pp of the input covariance.
            cross: (m, P) C.
            factor: K, (c, c) lower Cholesky factor of the existing columns' A.
            step: (m, c) L^-1 G A^-1.
            damping: (P,) added to the diagonal of the residual moment.
            whitener: L, root of S, (m, m) or (m,).
        """
        side, moment = new[: len(factor)], new[len(factor) :]
        return cls(
            residual=moment - gram(whiten(factor, side)) + torch.diag(damping),
            cross=eliminated_cross(whiten_outputs(whitener, cross), step, side),
            samples=None,
            weight=1e-30,
        )

    @classmethod
    def from_rows(
        cls,
        *,
        new: Tensor,
        output_grad: Tensor,
        samples: PerSampleFactors | None,
        inverse: WoodburyInverse,
        damping: Tensor,
        whitener: Tensor,
    ) -> ResidualStatistics:
        """Eliminate the existing columns from rows of which there are fewer than columns.

        Args:
            new: (rows, P) candidate columns, float64.
            output_grad: (rows, m) dz.
            samples: the same rows, to be kept one by one; None keeps none.
            inverse: inverse of the moment of the rows' existing columns.
            damping: (P,) added to the diagonal of the residual moment.
            whitener: root of S, (m, m) or (m,).
        """
        # The (rows, rows) system says what the existing columns predict, without A.
        rest, rows = inverse.residual(new), len(new)
        return cls(
            residual=new.mT @ rest / rows + torch.diag(damping),
            cross=whiten_outputs(whitener, output_grad.double().mT @ rest / rows),
            samples=None if samples is None else replace(samples, a=rest.to(samples.a)),
            weight=float(rows),
        )

    def without(self, columns: Tensor) -> ResidualStatistics:
        """Count these columns (p,) among the existing ones: one step of block elimination."""
        # what the columns predict of all candidates, A_rest,p A_pp^-1
        # A - A_:p A_pp^-1 A_p: is one step of a block Cholesky factorization.
        share = torch.linalg.solve(self.residual[columns][:, columns], self.residual[columns]).mT
        return replace(
            self,
            residual=self.residual - share @ self.residual[columns],
            cross=self.cross - self.cross[:, columns] @ share.mT,
            samples=None if self.samples is None else self.samples.without(columns, share),
        )

    def newton_step(self, columns: Tensor, through: Tensor) -> Tensor:
        """Newton step of parameters that enter the outputs through fixed columns.

        Args:
            columns: (q,) numbers of their features.
            through: (m, q) where each enters, whitened.

        Returns:
            (q,), to be subtracted.
        """
        gradient = (through * self.cross[:, columns]).sum(0)
        curvature = self.residual[columns][:, columns] * (through.mT @ through)  # M^T S M
        return solve(cholesky(curvature, DAMPING), gradient[:, None])[:, 0]

    def moved(self, effect: Tensor) -> ResidualStatistics:
        """Add a step to the accepted ones, given its s^T d a on each sample, (samples, 1)."""
        total = effect[:, 0] if self.accepted is None else self.accepted + effect[:, 0]
        return replace(self, accepted=total)

    def accepted_effect(self, like: Tensor) -> Tensor:
        """Effect of the accepted steps on each sample, (samples, 1), in the dtype of (samples, groups)."""
        return (
            like.new_zeros(len(like), 1)
            if self.accepted is None
            else self.accepted[:, None].to(like)
        )

    def curvature(self, effect: Tensor) -> tuple[Tensor, Tensor]:
        """Exact curvature along steps, E[(sum over a sample's locations of s^T d a)^2], without K-FAC's independence.

        Args:
            effect: (samples, groups) s^T d a of each step d.

        Returns:
            d^T F d of each step, and d^T F d_0 with the sum d_0 of the accepted ones, (groups,) float64 each.
        """
        squared = effect.square().sum(0)
        crossed = (effect * self.accepted_effect(effect)).sum(0)
        # float32 rows, summed in their own precision; the quotient is compared with float64 gains.
        return squared.double() / self.weight, crossed.double() / self.weight

    def effect(
        self, kind: Literal["pseudo_grad", "output_grad"], step: Tensor, columns: Tensor
    ) -> Tensor:
        """Effect of steps on each kept sample.

        Args:
            kind: r, the rows that the step is multiplied with.
            step: d, (m, groups * p).
            columns: (groups, p) that each step is on.

        Returns:
            r^T d a summed over each sample's locations, (samples, groups).
        """
        assert self.samples is not None
        return self.samples.directional(kind, step, columns)


def column_damping(moment: Tensor) -> Tensor:
    """Damping of each candidate column, (P,), from their own moment (P, P)."""
    level = moment.diagonal() * UNIT_DAMPING
    # the floors keep columns that are never active, all zero, invertible: their gain is then 0
    return level + 1e-12 * level.sum() + 1e-30
