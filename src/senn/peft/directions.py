"""The best new directions of a low-rank pair, in closed form, and what its units are worth.

A pair adds B A x to a layer's output; the adapted map z = W x has the moments A = E[x x^T] (d, d), G = E[dz x^T] (m, d)
and S = E[s s^T] (m, m) (`senn.scoring.formulas`). A new unit reads w^T x and is read by a column v of B. Its gain is
that of the best v, and of all sets of k units with uncorrelated w^T x the largest joint gain is

    locations * (sigma_1^2 + ... + sigma_k^2),    sigma_i of M = S^-1/2 G A^-1/2,

by the theorem of Eckart and Young (1936): w_i = A^-1/2 v_i for the right singular vectors v_i. What the units that are
there explain is projected out of M first, as other columns are eliminated elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from senn.kfac.factors import DAMPING, KroneckerFactors, cholesky, whiten
from senn.scoring.formulas import compensation


@dataclass(frozen=True, eq=False, kw_only=True)
class Directions:
    """New units of a pair, the best first.

    Attributes:
        weight: rows of the first factor, (k, d), of which each makes a unit of variance 1.
        step: natural steps of the second factor's columns, (m, k): what is *subtracted* from zeros.
        gains: (k,) gain of each unit in eta, on the samples that it was fitted to; they add.
    """

    weight: Tensor
    step: Tensor
    gains: Tensor

    def lengths(self, curvatures: Tensor) -> Tensor:
        """How much of each unit's step to take, at most 1: (k,).

        K-FAC takes activations for independent of gradients, and locations of one another; where they aren't, the
        curvature along a step is larger than the slope, which is the gain.

        Args:
            curvatures: exact ones along the steps, (k,).
        """
        return (self.gains / curvatures.clamp_min(1e-300)).clamp(max=1.0)


def best_directions(
    factors: KroneckerFactors, existing: Tensor, count: int, *, damping: float = DAMPING
) -> Directions:
    """Find the best new units beside the ones that are there.

    Args:
        factors: of the adapted map, whose outputs are at most `senn.kfac.factors.DENSE_OUTPUTS`.
        existing: rows of the first factor that are there, (rank, d).
        count: most units to return.
        damping: relative damping of A and S.

    Returns:
        The units, fewer than `count` where the map has no more.

    >>> from senn.kfac.factors import kronecker_factors
    >>> x, dz = torch.eye(2) * 2**0.5, torch.tensor([[3.0], [4.0]])
    >>> factors = kronecker_factors(x, dz, torch.ones(2, 1))
    >>> found = best_directions(factors, torch.zeros(1, 2), 2, damping=0.0)
    >>> [round(gain, 3) for gain in found.gains.tolist()]  # |G|^2 with A = 1 and S = 1; a second output would be needed
    [12.5]
    """
    inputs, outputs = cholesky(factors.A, damping), cholesky(factors.S, damping)
    # M = L_S^-1 G L_A^-T: any square root of A and S serves
    whitened = whiten(inputs, whiten(outputs, factors.G).mT).mT
    basis = _basis(inputs.mT @ existing.double().mT)
    whitened = whitened - (whitened @ basis) @ basis.mT
    left, sigma, right = torch.linalg.svd(whitened, full_matrices=False)
    most = min(count, len(sigma), whitened.shape[1] - basis.shape[1])
    left, sigma, right = left[:, :most], sigma[:most], right[:most]
    return Directions(
        weight=torch.linalg.solve_triangular(inputs.mT, right.mT, upper=True).mT,
        step=torch.linalg.solve_triangular(outputs.mT, left * sigma, upper=True),
        gains=factors.locations * sigma.square(),
    )


def _basis(columns: Tensor) -> Tensor:
    """Orthonormal basis of some columns (d, n): (d, rank)."""
    left, sigma, _ = torch.linalg.svd(columns, full_matrices=False)
    basis: Tensor = left[:, sigma > 1e-9 * sigma.max().clamp_min(1e-300)]
    return basis


def residual_rows(factors: KroneckerFactors, down: Tensor, *, damping: float = DAMPING) -> Tensor:
    """Rows that make of each unit what the others don't predict: what is missing if it goes and they compensate.

    Args:
        factors: of the adapted map.
        down: A, (rank, d).
        damping: relative damping of the units' covariance.

    Returns:
        (rank, d) float64.
    """
    down = down.double()
    inverse = torch.cholesky_inverse(cholesky(unit_covariance(factors, down), damping))
    # row j of the inverse over its diagonal is 1 at j, and minus the regression on the others elsewhere
    return (inverse / inverse.diagonal()[:, None]) @ down


def directional_derivatives(
    a: Tensor, grad: Tensor, rows: Tensor, columns: Tensor, locations: int
) -> Tensor:
    """Derivatives along steps: of each sample, the sum over locations of (grad . column_i) (row_i . a).

    Args:
        a: inputs (samples * locations, d), sample-major.
        grad: gradients or pseudo-gradients at the outputs, (samples * locations, m).
        rows: (k, d).
        columns: (m, k).
        locations: of a sample.

    Returns:
        (samples, k) float64.
    """
    products = (a @ rows.to(a).mT) * (grad @ columns.to(grad))
    return products.double().view(-1, locations, len(rows)).sum(1)


def unit_compensation(
    factors: KroneckerFactors, down: Tensor, units: Tensor, *, damping: float = DAMPING
) -> Tensor:
    """Coefficients with which the columns of B that stay take over from those that leave.

    Args:
        factors: of the adapted map.
        down: A, (rank, d).
        units: (p,) numbers of the units that leave.
        damping: relative damping of the units' covariance.

    Returns:
        (p, rank - p), as of `senn.scoring.formulas.compensation`.
    """
    factor = cholesky(unit_covariance(factors, down.double()), damping)
    return compensation(torch.cholesky_inverse(factor), units)


def unit_covariance(factors: KroneckerFactors, down: Tensor) -> Tensor:
    """Covariance of a pair's units, (rank, rank).

    Args:
        factors: of the adapted map.
        down: A, (rank, d), float64.
    """
    return down @ factors.A @ down.mT
