"""Second moments of a linear map z = W a, and how they are inverted. Pure tensor maths.

Layout, named once: rows are samples times locations (`locations` of them per sample: 1 for a vector input,
T for tokens or output pixels); a is (rows, c) and ends with a constant 1 where the map has a bias; dz and s are
(rows, m). A = E[a a^T] is (c, c), G = E[dz a^T] is (m, c), S = E[s s^T] is (m, m), expectations over samples and
locations.
The Fisher block of the map is F = locations * A (x) S and its gradient is locations * G.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from senn.errors import DivergenceError, SennError

DAMPING = 1e-4
"""Relative damping: this fraction of the mean diagonal is added before a factor is inverted."""


SMALL = 64
"""Symmetric products of up to so many columns are computed whole."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums of outer products over the rows of one linear map; add two to merge two sets of rows.

    Attributes:
        rows: number of rows summed (weighted by the samples' weights).
        locations: rows per sample.
        inputs: sum of a a^T, (c, c); where the mutual moment of the first k columns is known already, without these
            columns, (c, c - k).
        cross: sum of dz a^T, (m, c).
        outputs: sum of s s^T, (m, m).
    """

    rows: float
    locations: int
    inputs: Tensor
    cross: Tensor
    outputs: Tensor

    def __add__(self, other: Moments) -> Moments:
        """Moments of both sets of rows together."""
        if self.inputs.shape != other.inputs.shape or self.outputs.shape != other.outputs.shape:
            raise SennError(
                f"moments of different maps cannot be merged: {tuple(self.cross.shape)} and {tuple(other.cross.shape)}"
            )
        return Moments(
            self.rows + other.rows,
            self.locations,
            self.inputs + other.inputs,
            self.cross + other.cross,
            self.outputs + other.outputs,
        )

    @property
    def A(self) -> Tensor:
        """E[a a^T], (c, c) or (c, c - k), float64."""
        return _mean(self.inputs, self.rows)

    @property
    def G(self) -> Tensor:
        """E[dz a^T], (m, c), float64."""
        return _mean(self.cross, self.rows)

    @property
    def S(self) -> Tensor:
        """E[s s^T], (m, m), float64."""
        return _mean(self.outputs, self.rows)


def moments(
    a: Tensor,
    dz: Tensor,
    s: Tensor,
    *,
    locations: int = 1,
    weights: Tensor | None = None,
    known: int = 0,
) -> Moments:
    """Sum the outer products of rows a (rows, c), dz (rows, m) and s (rows, m).

    Args:
        a: inputs.
        dz: output gradients.
        s: curvature-propagated signs.
        locations: rows per sample.
        weights: (rows,) the samples' weights; dz and s carry theirs already (a weight enters a gradient once and a
            curvature once), so only the input moment is weighted here, and a weight of zero is a missing row.
        known: k, the number of first columns whose mutual moment is known already and is left out.
    """
    weighted = a if weights is None else a * weights[:, None]
    rows = float(len(a)) if weights is None else float(weights.sum())
    inputs = weighted.mT @ a[:, known:] if known else _gram(weighted, a)
    return Moments(rows, locations, inputs, dz.mT @ a, _gram(s, s))


def _gram(left: Tensor, right: Tensor) -> Tensor:
    """left^T right where that is symmetric: what lies below the diagonal blocks is copied, not computed."""
    size = right.shape[1]
    if size <= SMALL:
        return left.mT @ right
    half = size // 2
    result = right.new_empty(size, size)
    result[:half, :half] = _gram(left[:, :half], right[:, :half])
    result[half:, half:] = _gram(left[:, half:], right[:, half:])
    result[:half, half:] = left[:, :half].mT @ right[:, half:]
    result[half:, :half] = result[:half, half:].mT
    return result


def _mean(total: Tensor, rows: float) -> Tensor:
    """In float64 with one pass over memory; never the sum itself."""
    return total.to(torch.float64, copy=True).div_(rows)


def damped(matrix: Tensor, damping: float = DAMPING) -> Tensor:
    """`matrix` (..., d, d) in float64 with `damping` times its mean diagonal added to the diagonal."""
    matrix = matrix.to(torch.float64, copy=True)
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    diagonal += diagonal.mean(-1, keepdim=True).clamp_min(1e-30) * damping
    return matrix


def cholesky(matrix: Tensor, damping: float = DAMPING) -> Tensor:
    """Lower Cholesky factor (..., d, d), float64, of the damped matrix; damping grows tenfold until it exists.

    Raises:
        DivergenceError: the matrix holds NaN or infinity.
        SennError: it is indefinite beyond any sensible damping.
    """
    factor: Tensor
    for attempt in range(5):
        factor, info = torch.linalg.cholesky_ex(damped(matrix, damping * 10**attempt))
        # a NaN anywhere in a row of the matrix reaches that row's pivot
        if not info.any() and torch.isfinite(factor.diagonal(dim1=-2, dim2=-1)).all():
            return factor
    if not torch.isfinite(matrix).all():
        raise DivergenceError("a curvature factor holds NaN or infinity: the network or its loss has diverged")
    raise SennError("a curvature factor is not positive semidefinite")


def solve(factor: Tensor, right: Tensor) -> Tensor:
    """M^-1 right, for the lower Cholesky factor of M (..., d, d) and right (..., d, n), float64."""
    solution: Tensor = torch.linalg.solve_triangular(factor.mT, whiten(factor, right), upper=True)
    return solution


def whiten(factor: Tensor, right: Tensor) -> Tensor:
    """L^-1 right, so that the squared length of a column is its square under M^-1, float64."""
    white: Tensor = torch.linalg.solve_triangular(factor, right.double(), upper=False)
    return white
