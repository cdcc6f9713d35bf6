"""Second moments of a linear map z = W a, and how they are inverted. Pure tensor maths.

Layout, named once: rows are samples times locations (`locations` of them per sample: 1 for a vector input,
T for tokens or output pixels); a is (rows, c) and ends with a constant 1 where the map has a bias; dz and s are
(rows, m). A = E[a a^T] is (c, c), G = E[dz a^T] is (m, c), S = E[s s^T] is (m, m), expectations over samples and
locations.
The Fisher block of the map is F = locations * A (x) S and its gradient is locations * G.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from senn import _deprecated
from senn.errors import DivergenceError, SennError

__all__ = [
    "DAMPING",
    "FactorInverse",
    "KroneckerFactors",
    "WoodburyInverse",
    "cholesky",
    "damped",
    "gram",
    "input_covariance",
    "kronecker_factors",
    "solve",
    "whiten",
]

if not TYPE_CHECKING:
    __getattr__ = _deprecated.old_names(__name__)


DAMPING = 1e-4
"""Relative damping: this fraction of the mean diagonal is added before a factor is inverted."""


SMALL = 64
"""Symmetric products of up to so many columns are computed whole."""


@_deprecated.aliased
@dataclass(frozen=True, eq=False, kw_only=True)
class KroneckerFactors:
    """Sums of outer products over the rows of one linear map; add two to merge two sets of rows.

    Attributes:
        rows: number of rows summed (weighted by the samples' weights).
        locations: rows per sample.
        input_cov: sum of a a^T, (c, c), over `read` of the rows; where the mutual moment of the first k columns is
            known already, without these columns, (c, c - k).
        cross_cov: sum of dz a^T, (m, c).
        grad_cov: sum of s s^T, (m, m).
        n_rows_read: number of rows that `inputs` sums: a moment of many columns needs some rows a column, not all of
            them.
    """

    rows: float
    locations: int
    input_cov: Tensor
    cross_cov: Tensor
    grad_cov: Tensor
    n_rows_read: float

    def __add__(self, other: KroneckerFactors) -> KroneckerFactors:
        """Moments of both sets of rows together."""
        if self.input_cov.shape != other.input_cov.shape or self.grad_cov.shape != other.grad_cov.shape:
            raise SennError(
                f"moments of different maps cannot be merged: {tuple(self.cross_cov.shape)} and "
                f"{tuple(other.cross_cov.shape)}"
            )
        return KroneckerFactors(
            rows=self.rows + other.rows,
            locations=self.locations,
            input_cov=self.input_cov + other.input_cov,
            cross_cov=self.cross_cov + other.cross_cov,
            grad_cov=self.grad_cov + other.grad_cov,
            n_rows_read=self.n_rows_read + other.n_rows_read,
        )

    @property
    def A(self) -> Tensor:
        """E[a a^T], (c, c) or (c, c - k), float64."""
        return _mean(self.input_cov, self.n_rows_read)

    @property
    def G(self) -> Tensor:
        """E[dz a^T], (m, c), float64."""
        return _mean(self.cross_cov, self.rows)

    @property
    def S(self) -> Tensor:
        """E[s s^T], (m, m), float64."""
        return _mean(self.grad_cov, self.rows)


def kronecker_factors(
    a: Tensor,
    output_grad: Tensor,
    pseudo_grad: Tensor,
    *,
    locations: int = 1,
    weights: Tensor | None = None,
    known: int = 0,
) -> KroneckerFactors:
    """Sum the outer products of rows a (rows, c), output_grad (rows, m) and pseudo_grad (rows, m).

    Args:
        a: inputs.
        output_grad: output gradients.
        pseudo_grad: pseudo-gradients.
        locations: rows per sample.
        weights: (rows,) the samples' weights; dz and s carry theirs already (a weight enters a gradient once and a
            curvature once), so only the input moment is weighted here, and a weight of zero is a missing row.
        known: k, the number of first columns whose mutual moment is known already and is left out.
    """
    rows = float(len(a)) if weights is None else float(weights.sum())
    return KroneckerFactors(
        rows=rows,
        locations=locations,
        input_cov=input_covariance(a, weights, known),
        cross_cov=output_grad.mT @ a,
        grad_cov=gram(pseudo_grad),
        n_rows_read=rows,
    )


def input_covariance(a: Tensor, weights: Tensor | None = None, known: int = 0) -> Tensor:
    """Weighted sum of a a^T over rows (rows, c), without its first `known` columns: (c, c - known)."""
    if weights is None and not known:
        return gram(a)
    weighted = a if weights is None else a * weights[:, None]
    return weighted.mT @ a[:, known:] if known else _gram(weighted, a)


def gram(a: Tensor) -> Tensor:
    """a^T a, (c, c)."""
    return _gram(a, a)


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


@_deprecated.aliased
class FactorInverse:
    """The inverse of a damped second moment.

    Attributes:
        factor: lower Cholesky factor of the moment, (c, c).
    """

    def __init__(self, factor: Tensor) -> None:
        self.factor = factor

    def solve(self, right: Tensor) -> Tensor:
        """M^-1 right, for right (c, n), float64."""
        return solve(self.factor, right)

    def quadratic_form(self, right: Tensor) -> tuple[float, Callable[[], Tensor]]:
        """The sum of right * M^-1 right, and what finishes M^-1 right: often the sum is all that is wanted."""
        half = whiten(self.factor, right)
        return float(half.square().sum()), lambda: torch.linalg.solve_triangular(self.factor.mT, half, upper=True)

    @cached_property
    def dense(self) -> Tensor:
        """(c, c)."""
        return torch.cholesky_inverse(self.factor)

    def blocks(self, columns: Tensor) -> Tensor:
        """The diagonal blocks (groups, p, p) of groups of columns (groups, p)."""
        return self.dense[columns[:, :, None], columns[:, None, :]]


@_deprecated.aliased
class WoodburyInverse(FactorInverse):
    """The same where there are fewer rows than columns: of a^T a / n + d I, through the (n, n) products of the rows.

    (a^T a / n + d I)^-1 = (I - a^T K^-1 a) / d with K = a a^T + n d I.

    Args:
        a: (n, c) all rows of the moment.

    Attributes:
        level: d, `DAMPING` times the mean diagonal.
        products: lower Cholesky factor of K, (n, n).
    """

    def __init__(self, a: Tensor) -> None:
        self.a = a.double()
        self.level = max(float(self.a.square().mean()) * DAMPING, 1e-30 * DAMPING)
        products = self.a @ self.a.mT
        products.diagonal().add_(len(a) * self.level)
        self.products = cholesky(products, 0.0)

    def solve(self, right: Tensor) -> Tensor:
        """M^-1 right, for right (c, n), float64."""
        right = right.double()
        return (right - self.a.mT @ solve(self.products, self.a @ right)) / self.level

    def quadratic_form(self, right: Tensor) -> tuple[float, Callable[[], Tensor]]:
        """See `Inverse.start`."""
        found = self.solve(right)
        return float((right * found).sum()), lambda: found

    @cached_property
    def dense(self) -> Tensor:
        """(c, c)."""
        white = whiten(self.products, self.a)
        return (torch.eye(white.shape[1], dtype=white.dtype, device=white.device) - white.mT @ white) / self.level

    def blocks(self, columns: Tensor) -> Tensor:
        """The diagonal blocks (groups, p, p) of groups of columns (groups, p)."""
        white = whiten(self.products, self.a)[:, columns].movedim(0, 1)  # (groups, n, p)
        same = torch.eye(columns.shape[1], dtype=white.dtype, device=white.device)
        return (same - white.mT @ white) / self.level

    def residual(self, new: Tensor) -> Tensor:
        """Rows (n, P) of further columns less what the moment's own columns predict of them."""
        return len(new) * self.level * solve(self.products, new)
