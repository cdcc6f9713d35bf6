"""Hessians of losses at a network's outputs, never formed where m is large. Pure tensor math.

Notation as in `loss_metric`: outputs y are (N, m), rows are per sample and unaveraged, and the loss is the mean of
`LocalLoss.losses`. For a likelihood of an exponential family in its natural parameters (cross-entropy of logits,
squared error) H_i doesn't depend on the target. So it is the Fisher at y_i, and the generalized Gauss-Newton matrix is
the Fisher matrix (Martens 2014, *New insights and perspectives on the natural gradient method*, arXiv 1412.1193).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

LOGIT = 69.0
"""Logits and log-probabilities are clamped to this size in Hessians: p >= e^-69 = 1e-30, so every limit is finite.

In float32 a p below 1e-38 would be zero, and g^2 / p infinite.
"""

NEGLIGIBLE = 1e-7
"""Curvature, relative to the largest of a batch, below which a sample has none: the rounding of float32."""

CHUNK = 1 << 22
"""Numbers that are converted to float64 at once: 32 MiB, a fraction of what the probabilities of a large batch take."""


class LossHessian(Protocol):
    """Hessian H_i of every sample's loss with respect to its outputs, positive semidefinite."""

    def root(self, r: Tensor) -> Tensor:
        """Multiply rows r (N, m) by a square root of H: R_i r_i with R_i R_i^T = H_i."""

    def product(self, u: Tensor) -> Tensor:
        """Multiply rows u (N, m) by H: H_i u_i."""

    def score_limit(self, gradient: Tensor) -> Tensor:
        """Compute g_i^T H_i^+ g_i, (N,) float64, for gradient rows g; infinite where H lacks a direction of g."""

    def scaled(self, weight: Tensor) -> LossHessian:
        """Weight each sample, w_i H_i, by w (N,)."""


def _ratio(square: Tensor, curvature: Tensor) -> Tensor:
    """Divide in float64, with 0 / 0 = 0: the pseudo-inverse."""
    return torch.where(square == 0, 0.0, square.double() / curvature.double())


def _parts(samples: int, numbers: int) -> Iterator[slice]:
    """Divide samples of so many numbers each into parts of at most `CHUNK` numbers."""
    size = max(CHUNK // max(numbers, 1), 1)
    for start in range(0, samples, size):
        yield slice(start, start + size)


@dataclass(frozen=True, eq=False)
class DiagonalHessian:
    """Diagonal Hessians H_i = diag(h_i), h (N, m)."""

    h: Tensor

    def root(self, r: Tensor) -> Tensor:
        """Multiply rows r (N, m) by a square root of H: R_i r_i with R_i R_i^T = H_i."""
        return self.h.sqrt() * r

    def product(self, u: Tensor) -> Tensor:
        """Multiply rows u (N, m) by H: H_i u_i."""
        return self.h * u

    def score_limit(self, gradient: Tensor) -> Tensor:
        """Compute g_i^T H_i^+ g_i, (N,) float64, for gradient rows g; infinite where H lacks a direction of g."""
        parts = _parts(*gradient.shape)
        return torch.cat([_ratio(gradient[part] ** 2, self.h[part]).sum(1) for part in parts])

    def scaled(self, weight: Tensor) -> DiagonalHessian:
        """Weight each sample, w_i H_i, by w (N,)."""
        return DiagonalHessian(self.h * weight[:, None])


@dataclass(frozen=True, eq=False, kw_only=True)
class SoftmaxHessian:
    """Hessians of softmax likelihoods: H = total (diag(p) - p p^T) of each position, zero between positions.

    A sample has one position where outputs are (N, C). It has many where they are (N, C, ...) or (N, ..., C), as those
    of segmentation and language models: its Hessian is block-diagonal then, and as cheap as that of so many samples.

    Attributes:
        p: probabilities, (N, ...), m of each sample in the order of the outputs.
        total: weight of each position, of size 1 along `dim`; 0 for positions without a target.
        dim: the dimension of classes.
    """

    p: Tensor
    total: Tensor
    dim: int = 1

    def root(self, r: Tensor) -> Tensor:
        """Multiply rows r (N, m) by a square root of H: R_i r_i with R_i R_i^T = H_i."""
        # R = diag(sqrt p) - p sqrt(p)^T, since R R^T = diag p - 2 p p^T + p (sum p) p^T = diag p - p p^T
        root = self.p.sqrt() * r.reshape(self.p.shape)
        root = root - self.p * root.sum(self.dim, keepdim=True)
        return (self.total.sqrt() * root).flatten(1)

    def product(self, u: Tensor) -> Tensor:
        """Multiply rows u (N, m) by H: H_i u_i."""
        product = self.p * u.reshape(self.p.shape)
        product = product - self.p * product.sum(self.dim, keepdim=True)
        return (self.total * product).flatten(1)

    def score_limit(self, gradient: Tensor) -> Tensor:
        """Compute g_i^T H_i^+ g_i, (N,) float64, for gradient rows g; infinite where H lacks a direction of g."""
        gradient = gradient.reshape(self.p.shape)
        parts = _parts(len(gradient), gradient[0].numel())
        return torch.cat([self._limit(gradient, part) for part in parts])

    def _limit(self, gradient: Tensor, part: slice) -> Tensor:
        # H ignores shifts of all logits. On vectors that sum to zero diag(1/p) inverts it; the part along p is taken
        # off, since log-probabilities can't move that way.
        g, p = gradient[part], self.p[part]
        g = g - p * g.sum(self.dim, keepdim=True)
        return _ratio(g**2, self.total[part] * p).flatten(1).sum(1)

    def scaled(self, weight: Tensor) -> SoftmaxHessian:
        """Weight each sample, w_i H_i, by w (N,)."""
        weight = weight.view(-1, *[1] * (self.p.ndim - 1))
        return SoftmaxHessian(p=self.p, total=self.total * weight, dim=self.dim)


@dataclass(frozen=True, eq=False)
class SumHessian:
    """Hessians of several losses of which each has outputs of its own: those of a network with several heads, say.

    Attributes:
        terms: Hessians, each with the outputs where it isn't zero, (N, m) or (m,) Boolean; no two share one.
    """

    terms: tuple[tuple[LossHessian, Tensor], ...]

    def root(self, r: Tensor) -> Tensor:
        """Multiply rows r (N, m) by a square root of H: R_i r_i with R_i R_i^T = H_i."""
        # blocks that don't overlap: roots of the terms, each applied to its own part of r, are a root of the sum
        return torch.stack([term.root(r * support) for term, support in self.terms]).sum(0)

    def product(self, u: Tensor) -> Tensor:
        """Multiply rows u (N, m) by H: H_i u_i."""
        return torch.stack([term.product(u * support) for term, support in self.terms]).sum(0)

    def score_limit(self, gradient: Tensor) -> Tensor:
        """Compute g_i^T H_i^+ g_i, (N,) float64, for gradient rows g; infinite where H lacks a direction of g."""
        limits = [term.score_limit(gradient * support) for term, support in self.terms]
        # outputs without any curvature in which there is a slope
        free = gradient * ~torch.stack([support for _, support in self.terms]).any(0)
        return torch.where(free.any(1), torch.inf, torch.stack(limits).sum(0))

    def scaled(self, weight: Tensor) -> SumHessian:
        """Weight each sample, w_i H_i, by w (N,)."""
        return SumHessian(tuple((term.scaled(weight), support) for term, support in self.terms))


@dataclass(frozen=True, eq=False, kw_only=True)
class DenseHessian:
    """Hessians of any other loss by their eigenvectors, H_i = V_i diag(e_i) V_i^T: V (N, m, m), e (N, m)."""

    vectors: Tensor
    values: Tensor

    def root(self, r: Tensor) -> Tensor:
        """Multiply rows r (N, m) by a square root of H: R_i r_i with R_i R_i^T = H_i."""
        # The symmetric root, V sqrt(e) V^T: entries that the loss ignores keep numbers of their own, so that leaving
        # them out changes nothing.
        return torch.einsum("nij,nj,nkj,nk->ni", self.vectors, self.values.sqrt(), self.vectors, r)

    def product(self, u: Tensor) -> Tensor:
        """Multiply rows u (N, m) by H: H_i u_i."""
        return torch.einsum("nij,nj,nkj,nk->ni", self.vectors, self.values, self.vectors, u)

    def score_limit(self, gradient: Tensor) -> Tensor:
        """Compute g_i^T H_i^+ g_i, (N,) float64, for gradient rows g; infinite where H lacks a direction of g."""
        projected = torch.einsum("nij,ni->nj", self.vectors, gradient)
        # Rounding leaves a part of g along eigenvectors of zero curvature, which would make the ratio infinite.
        noise = (
            torch.finfo(projected.dtype).eps
            * len(projected.mT)
            * gradient.norm(dim=1, keepdim=True)
        )
        return _ratio(
            torch.where(projected.abs() <= 10 * noise, 0.0, projected) ** 2, self.values
        ).sum(1)

    def scaled(self, weight: Tensor) -> DenseHessian:
        """Weight each sample, w_i H_i, by w (N,)."""
        return DenseHessian(vectors=self.vectors, values=self.values * weight[:, None])


@dataclass(frozen=True, eq=False, kw_only=True)
class LocalLoss:
    """A loss around the outputs of one batch: values l_i (N,), gradient rows (N, m) and Hessians."""

    losses: Tensor
    gradient: Tensor
    curvature: LossHessian

    @property
    def score_limit(self) -> float:
        """Lambda, the mean of g_i^T H_i^+ g_i; see `LossMetric.score_limit`."""
        limits = self.curvature.score_limit(self.gradient)
        squares = self.gradient.double().square().sum(1)
        # Curvature along each sample's own gradient. Where there is none beside that of others (Huber beyond delta,
        # log-cosh far out, a softmax that is hopelessly wrong), the quadratic model of this sample has no minimum, and
        # lambda would be infinite for the sake of one sample: it is given the typical curvature.
        curvatures = _ratio(squares, limits)
        has_curvature = curvatures > NEGLIGIBLE * curvatures.max()
        if has_curvature.any():
            typical = curvatures[has_curvature].median()
            limits = torch.where(has_curvature, limits, squares / typical)
        return float(limits.mean())

    def scaled(self, weight: Tensor) -> LocalLoss:
        """Weight the samples of the batch by w (N,)."""
        return LocalLoss(
            losses=self.losses * weight,
            gradient=self.gradient * weight[:, None],
            curvature=self.curvature.scaled(weight),
        )
