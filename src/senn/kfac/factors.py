"""Kronecker factors of a linear map z = W a, and their inverses. Pure tensor math.

Notation, used throughout `senn.kfac` and `senn.scoring`. A row is one sample at one location, and a sample has
`locations` rows: 1 for a vector input, T for tokens or pixels. Of each row we keep

    a   (rows, c)  input of the map, ending with a constant 1 where the map has a bias
    dz  (rows, m)  output gradient dL/dz for the true targets, per sample and unaveraged
    s   (rows, m)  pseudo-gradient: random, with E[s s^T] the curvature of the loss at z (`LossMetric.pseudo_grad`)

and of all rows that can change the loss (`live_locations`) the factors, means over samples and locations:

    A = E[a a^T]  (c, c)      S = E[s s^T]  (m, m)      G = E[dz a^T]  (m, c)

The Fisher block of the map is approximated by F = locations * A (x) S, and its gradient is locations * G, so that
F^-1 g = S^-1 G A^-1 (Martens and Grosse 2015, *Optimizing neural networks with Kronecker-factored approximate
curvature*, arXiv 1503.05671). Several locations that share a weight are treated as independent and alike, as in KFC
(Grosse and Martens 2016, arXiv 1602.01407) and in K-FAC "expand" (Eschenhagen et al. 2023, arXiv 2311.00636).
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
"""Relative damping: this fraction of the mean diagonal is added before a factor is inverted.

Small, since it takes from every gain: a column of which the others can't predict a fraction r of the mean variance
loses about damping / (r + damping) of its gain. Large enough that rounding of sums in float32, 1e-7 of the largest
entries, stays below it for hundreds of columns.
"""

DENSE_OUTPUTS = 8192
"""Outputs of a map up to which S is a matrix, beyond which it is its diagonal (`whitening`): at half a gigabyte in
float64, and ten seconds to factorize on one core, which grow with its square and its cube."""

SMALL = 64
"""Products of up to this many columns are computed whole rather than by symmetric blocks.

Half or double changes little; at 16, the copies of blocks take factors of 128 columns twice as long.
"""


@_deprecated.aliased
@dataclass(frozen=True, eq=False, kw_only=True)
class KroneckerFactors:
    """Sums of outer products over the rows of one linear map; add two of them to merge two sets of rows.

    The fields hold sums, so that batches and ranks can be added up; `A`, `G` and `S` are the means.

    Attributes:
        rows: number of rows summed, each weighted by its sample's weight.
        samples: number of samples, each with its weight.
        input_cov: sum of a a^T, (c, c), over `n_rows_read` rows. Where the covariance of the first k columns is known
            from elsewhere it is left out: (c, c - k). Empty while the rows themselves are kept (`Fold.rows`).
        cross_cov: sum of dz a^T, (m, c).
        grad_cov: sum of s s^T, (m, m); of a map with more than `DENSE_OUTPUTS` outputs its diagonal, (m,).
        n_rows_read: number of rows in `input_cov`: a covariance needs some rows for each column, not all of them.
    """

    rows: float
    samples: float
    input_cov: Tensor
    cross_cov: Tensor
    grad_cov: Tensor
    n_rows_read: float

    def __add__(self, other: KroneckerFactors) -> KroneckerFactors:
        """Merge the sums of two sets of rows of the same map."""
        if (
            self.input_cov.shape != other.input_cov.shape
            or self.grad_cov.shape != other.grad_cov.shape
        ):
            raise SennError(
                f"factors of different maps can't be merged: {tuple(self.cross_cov.shape)} and "
                f"{tuple(other.cross_cov.shape)}"
            )
        return KroneckerFactors(
            rows=self.rows + other.rows,
            samples=self.samples + other.samples,
            input_cov=self.input_cov + other.input_cov,
            cross_cov=self.cross_cov + other.cross_cov,
            grad_cov=self.grad_cov + other.grad_cov,
            n_rows_read=self.n_rows_read + other.n_rows_read,
        )

    @property
    def locations(self) -> float:
        """Rows per sample, in the mean."""
        return self.rows / max(self.samples, 1e-30)

    @property
    def A(self) -> Tensor:
        """Input covariance E[a a^T], (c, c) or (c, c - k), float64."""
        return _mean(self.input_cov, self.n_rows_read)

    @property
    def G(self) -> Tensor:
        """Mean gradient E[dz a^T], (m, c), float64."""
        return _mean(self.cross_cov, self.rows)

    @property
    def S(self) -> Tensor:
        """Covariance of pseudo-gradients E[s s^T], (m, m) or its diagonal (m,), float64."""
        return _mean(self.grad_cov, self.rows)


@_deprecated.keywords
def kronecker_factors(
    a: Tensor,
    output_grad: Tensor,
    pseudo_grad: Tensor,
    *,
    locations: int = 1,
    weights: Tensor | None = None,
    known: int = 0,
) -> KroneckerFactors:
    """Sum the outer products of a batch of rows.

    Args:
        a: (rows, c) inputs, with a trailing 1 where the map has a bias.
        output_grad: (rows, m) dz.
        pseudo_grad: (rows, m) s.
        locations: rows per sample.
        weights: (rows,) weight of each row's sample, which dz and s carry already; None for ones.
        known: k, the number of first columns whose covariance is known from elsewhere and is left out.

    Returns:
        The factors in the dtype of the rows.

    >>> a = torch.tensor([[1.0, 1.0], [3.0, 1.0]])  # two samples of one feature, and the bias
    >>> dz = torch.tensor([[1.0], [-1.0]])
    >>> factors = kronecker_factors(a, dz, torch.ones(2, 1))
    >>> factors.A
    tensor([[5., 2.],
            [2., 1.]], dtype=torch.float64)
    >>> factors.G
    tensor([[-1.,  0.]], dtype=torch.float64)
    """
    # dz is w times that of weight 1, and s sqrt(w) times: only the input covariance is weighted here.
    rows = float(len(a)) if weights is None else float(weights.sum())
    return KroneckerFactors(
        rows=rows,
        samples=rows / locations,
        input_cov=input_covariance(a, weights, known),
        cross_cov=output_grad.mT @ a,
        grad_cov=gradient_covariance(pseudo_grad),
        n_rows_read=rows,
    )


def gradient_covariance(s: Tensor) -> Tensor:
    """Sum s s^T over rows (rows, m): (m, m), or its diagonal (m,) where outputs are more than `DENSE_OUTPUTS`."""
    if s.shape[-1] > DENSE_OUTPUTS:
        # a norm, so that no squares of all rows are held
        squares: Tensor = torch.linalg.vector_norm(s, dim=0).square()
        return squares
    return gram(s)


def input_covariance(a: Tensor, weights: Tensor | None = None, known: int = 0) -> Tensor:
    """Sum a a^T over rows.

    Args:
        a: (rows, c) inputs.
        weights: (rows,) weight of each row, or None for ones.
        known: number of first columns to leave out of the result.

    Returns:
        (c, c - known), in the dtype of `a`.
    """
    if weights is None and not known:
        return gram(a)
    weighted = a if weights is None else a * weights[:, None]
    return weighted.mT @ a[:, known:] if known else _gram(weighted, a)


def gram(a: Tensor) -> Tensor:
    """Gram matrix a^T a, (c, c), of rows (rows, c)."""
    return _gram(a, a)


def _gram(left: Tensor, right: Tensor) -> Tensor:
    """left^T right where it is symmetric: blocks below the diagonal are copied, not computed, a quarter less work."""
    size = right.shape[1]
    if size <= SMALL:
        return left.mT @ right
    # halves recursively, so that blocks stay large enough for BLAS
    half = size // 2
    result = right.new_empty(size, size)
    result[:half, :half] = _gram(left[:, :half], right[:, :half])
    result[half:, half:] = _gram(left[:, half:], right[:, half:])
    result[:half, half:] = left[:, :half].mT @ right[:, half:]
    result[half:, :half] = result[:half, half:].mT
    return result


def _mean(total: Tensor, rows: float) -> Tensor:
    # one pass over memory; a copy always, since the sum is added to later
    return total.to(torch.float64, copy=True).div_(max(rows, 1e-30))


def damped(matrix: Tensor, damping: float = DAMPING) -> Tensor:
    """Add a fraction of the mean diagonal to the diagonal.

    Args:
        matrix: (..., d, d), symmetric.
        damping: the fraction.

    Returns:
        (..., d, d) float64, a copy.
    """
    matrix = matrix.to(torch.float64, copy=True)
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    # the floor keeps a matrix of zeros (a dead map) invertible
    diagonal += diagonal.mean(-1, keepdim=True).clamp_min(1e-30) * damping
    return matrix


def cholesky(matrix: Tensor, damping: float = DAMPING) -> Tensor:
    """Factorize the damped matrix; the damping grows tenfold, up to four times, until a factor exists.

    Args:
        matrix: (..., d, d), symmetric and positive semidefinite up to rounding.
        damping: fraction of the mean diagonal to add first.

    Returns:
        Lower Cholesky factor, (..., d, d) float64.

    Raises:
        DivergenceError: the matrix holds NaN or infinity.
        SennError: the matrix is indefinite beyond any sensible damping.
    """
    factor: Tensor
    for attempt in range(5):
        factor, info = torch.linalg.cholesky_ex(damped(matrix, damping * 10**attempt))
        # LAPACK may report success on NaN. A NaN anywhere in a row of the matrix reaches that row's pivot.
        if not info.any() and torch.isfinite(factor.diagonal(dim1=-2, dim2=-1)).all():
            return factor
    if not torch.isfinite(matrix).all():
        raise DivergenceError(
            "a curvature factor holds NaN or infinity: the network or its loss has diverged"
        )
    raise SennError("a curvature factor is not positive semidefinite")


def solve(factor: Tensor, right: Tensor) -> Tensor:
    """Solve M x = right.

    Args:
        factor: (..., d, d) lower Cholesky factor of M.
        right: (..., d, n).

    Returns:
        M^-1 right, (..., d, n) float64.
    """
    solution: Tensor = torch.linalg.solve_triangular(factor.mT, whiten(factor, right), upper=True)
    return solution


def whiten(factor: Tensor, right: Tensor) -> Tensor:
    """Solve L x = right, so that the squared length of a column of x is right^T M^-1 right.

    Args:
        factor: L, (..., d, d) lower Cholesky factor of M.
        right: (..., d, n).

    Returns:
        L^-1 right, (..., d, n) float64.
    """
    white: Tensor = torch.linalg.solve_triangular(factor, right.double(), upper=False)
    return white


@_deprecated.aliased
class FactorInverse:
    """Inverse of a damped covariance M, through its Cholesky factor.

    Attributes:
        factor: (c, c) lower Cholesky factor of M.
    """

    def __init__(self, factor: Tensor) -> None:
        self.factor = factor

    def solve(self, right: Tensor) -> Tensor:
        """Compute M^-1 right for right (c, n), float64."""
        return solve(self.factor, right)

    def quadratic_form(self, right: Tensor) -> tuple[float, Callable[[], Tensor]]:
        """Compute the trace of right^T M^-1 right, and defer M^-1 right itself.

        Args:
            right: (c, n).

        Returns:
            The trace, and a function that finishes M^-1 right, (c, n): often the trace is all that is needed, at half
            the cost.
        """
        half = whiten(self.factor, right)
        return float(half.square().sum()), lambda: torch.linalg.solve_triangular(
            self.factor.mT, half, upper=True
        )

    @cached_property
    def dense(self) -> Tensor:
        """M^-1 as a matrix, (c, c) float64."""
        return torch.cholesky_inverse(self.factor)

    def blocks(self, columns: Tensor) -> Tensor:
        """Cut out the diagonal blocks of M^-1, (groups, p, p), of groups of columns (groups, p)."""
        return self.dense[columns[:, :, None], columns[:, None, :]]


@_deprecated.aliased
class WoodburyInverse(FactorInverse):
    """Inverse of the damped covariance of fewer rows than columns, through the (n, n) products of the rows.

    By the Woodbury identity, with K = a a^T + n d I,

        (a^T a / n + d I)^-1 = (I - a^T K^-1 a) / d

    so an (n, n) factor replaces a (c, c) one: cheaper where 2 n <= c, which `Fold.stands_alone` tests.

    Args:
        a: (n, c) all rows of the covariance.

    Attributes:
        level: d, `DAMPING` times the mean diagonal.
        products: (n, n) lower Cholesky factor of K.

    >>> inverse = WoodburyInverse(torch.tensor([[1.0, 2.0, 0.0]]))
    >>> covariance = inverse.a.mT @ inverse.a + inverse.level * torch.eye(3)
    >>> torch.allclose(inverse.dense @ covariance, torch.eye(3).double())
    True
    """

    def __init__(self, a: Tensor) -> None:
        self.a = a.double()
        self.level = max(float(self.a.square().mean()) * DAMPING, 1e-30 * DAMPING)
        products = self.a @ self.a.mT
        products.diagonal().add_(len(a) * self.level)
        self.products = cholesky(products, 0.0)

    def solve(self, right: Tensor) -> Tensor:
        """Compute M^-1 right for right (c, n), float64."""
        right = right.double()
        # (I - a^T K^-1 a) right / d, from the inside out: no (c, c) matrix is formed
        return (right - self.a.mT @ solve(self.products, self.a @ right)) / self.level

    def quadratic_form(self, right: Tensor) -> tuple[float, Callable[[], Tensor]]:
        """Compute the trace and M^-1 right together; see `FactorInverse.quadratic_form`."""
        found = self.solve(right)
        return float((right * found).sum()), lambda: found

    @cached_property
    def dense(self) -> Tensor:
        """M^-1 as a matrix, (c, c) float64."""
        # K = L L^T, so a^T K^-1 a = (L^-1 a)^T (L^-1 a)
        white = whiten(self.products, self.a)
        return (
            torch.eye(white.shape[1], dtype=white.dtype, device=white.device) - white.mT @ white
        ) / self.level

    def blocks(self, columns: Tensor) -> Tensor:
        """Cut out the diagonal blocks of M^-1, (groups, p, p), of groups of columns (groups, p)."""
        white = whiten(self.products, self.a)[:, columns].movedim(0, 1)  # (groups, n, p)
        same = torch.eye(columns.shape[1], dtype=white.dtype, device=white.device)
        return (same - white.mT @ white) / self.level

    def residual(self, new: Tensor) -> Tensor:
        """Subtract from further columns (n, P), a row for each of a, what a's columns predict of them."""
        # ridge regression on a leaves new - a (a^T a / n + d I)^-1 a^T new / n = n d K^-1 new
        return len(new) * self.level * solve(self.products, new)
