"""Hessians known by their products alone: square roots and inverses by Lanczos iterations, all samples side by side.

From a start b, k products give an orthonormal basis Q of b, H b, ..., H^(k-1) b, and T = Q^T H Q, tridiagonal. Then

    f(H) b ~ |b| Q f(T) e_1        b^T f(H) b ~ |b|^2 e_1^T f(T) e_1

exact after as many steps as H has different eigenvalues; the second is a Gauss quadrature of 2 k - 1 moments (Golub and
Meurant 2010, *Matrices, moments and quadrature*; Higham 2008, *Functions of matrices*, section 13.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from senn.errors import SennError
from senn.kfac.loss_graph import LossGraph

STEPS = 48
"""Products that a root or an inverse takes at most.

A root of a Hessian whose eigenvalues reach down to zero evenly is then exact to about 2 %, others far better; memory
and time grow in proportion.
"""

CHECKED = 8
"""After so many further products a root is compared with the one before, and taken if it is the same to 0.1 %."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ProductHessian:
    """Hessians of any loss that is differentiable twice.

    Attributes:
        graph: the loss at a batch's outputs.
        weight: (N,) weight of each sample's Hessian, or None for ones.
    """

    graph: LossGraph
    weight: Tensor | None = None

    def root(self, r: Tensor) -> Tensor:
        """Multiply rows r (N, m) by the symmetric square root of H."""
        found = self._lanczos(r, lambda values: values.clamp_min(0).sqrt())
        return self._weighted(found.applied(), root=True)

    def product(self, u: Tensor) -> Tensor:
        """Multiply rows u (N, m) by H: H_i u_i."""
        return self._weighted(self.graph.product(u))

    def score_limit(self, gradient: Tensor) -> Tensor:
        """Compute g_i^T H_i^+ g_i, (N,) float64, for gradient rows g; infinite where H lacks a direction of g."""
        weight = None if self.weight is None else self.weight.double()
        found = self._lanczos(gradient, torch.reciprocal)
        limit = found.quadratic(torch.finfo(gradient.dtype).eps * gradient.shape[1])
        # a sample of weight zero has neither slope nor curvature
        return limit if weight is None else torch.where(limit == 0, 0.0, limit / weight)

    def scaled(self, weight: Tensor) -> ProductHessian:
        """Weight each sample, w_i H_i, by w (N,)."""
        return replace(self, weight=weight if self.weight is None else self.weight * weight)

    def _weighted(self, rows: Tensor, root: bool = False) -> Tensor:
        if self.weight is None:
            return rows
        return rows * (self.weight.sqrt() if root else self.weight)[:, None]

    def _lanczos(self, start: Tensor, function: Callable[[Tensor], Tensor]) -> _Projection:
        """Project the Hessians onto the Krylov space of a start, until a function of them settles."""
        length = start.norm(dim=1)
        basis = [_unit(start, length)]
        diagonal: list[Tensor] = []
        off_diagonal: list[Tensor] = []
        before: Tensor | None = None
        while True:
            image = self.graph.product(basis[-1])
            diagonal.append((image * basis[-1]).sum(1).double())
            # against all vectors and twice, or rounding brings back directions that were found already
            for _ in range(2):
                for vector in basis:
                    image = image - (image * vector).sum(1, keepdim=True) * vector
            found = _Projection.of(self.graph, basis, diagonal, off_diagonal, length, function)
            if len(basis) % CHECKED == 0:
                now = found.coefficients
                if before is not None and _is_settled(now, before):
                    return found
                before = now
            rest = image.norm(dim=1)
            scale = torch.stack([one.abs() for one in diagonal]).amax(0)
            is_done = rest.double() <= 30 * torch.finfo(start.dtype).eps * scale
            if len(basis) >= min(STEPS, start.shape[1]) or bool(is_done.all()):
                return found
            rest = torch.where(is_done, 0.0, rest)
            off_diagonal.append(rest.double())
            basis.append(_unit(image, rest))


def _unit(rows: Tensor, length: Tensor) -> Tensor:
    return torch.where(length[:, None] > 0, rows / length[:, None], 0.0)


def _is_settled(now: Tensor, before: Tensor) -> bool:
    change = now.clone()
    change[:, : before.shape[1]] -= before
    return bool((change.norm(dim=1) <= 1e-3 * now.norm(dim=1)).all())


@dataclass(frozen=True, eq=False, kw_only=True)
class _Projection:
    """A function of the Hessians on a Krylov space.

    Attributes:
        basis: Q, k vectors (N, m).
        values: eigenvalues of T, (N, k) float64.
        share: of the start along each eigenvector, (N, k).
        coefficients: |b| f(T) e_1, (N, k).
        length: |b|, (N,).
    """

    basis: list[Tensor]
    values: Tensor
    share: Tensor
    coefficients: Tensor
    length: Tensor

    @classmethod
    def of(
        cls,
        graph: LossGraph,
        basis: list[Tensor],
        diagonal: list[Tensor],
        off_diagonal: list[Tensor],
        length: Tensor,
        function: Callable[[Tensor], Tensor],
    ) -> _Projection:
        T = torch.diag_embed(torch.stack(diagonal, 1))
        if off_diagonal:
            edge = torch.stack(off_diagonal, 1)
            T = T + torch.diag_embed(edge, 1) + torch.diag_embed(edge, -1)
        if not torch.isfinite(T).all():
            raise SennError(
                f"the loss {graph.name} has a curvature that is NaN or infinite on this batch"
            )
        values, vectors = torch.linalg.eigh(T)
        values = graph.without_rounding(values)
        share = vectors[:, 0]
        of = torch.where(share == 0, 0.0, function(values) * share)
        coefficients = length[:, None].double() * (vectors @ of[:, :, None])[:, :, 0]
        return cls(
            basis=list(basis), values=values, share=share, coefficients=coefficients, length=length
        )

    def applied(self) -> Tensor:
        """f(H) b, (N, m)."""
        terms = zip(self.coefficients.unbind(1), self.basis, strict=True)
        return sum((c.to(q)[:, None] * q for c, q in terms), torch.zeros_like(self.basis[0]))

    def quadratic(self, noise: float) -> Tensor:
        """b^T H^+ b, (N,)."""
        # rounding leaves a part of b along directions of zero curvature, which would make the ratio infinite
        share = torch.where(self.share.abs() <= 10 * noise, 0.0, self.share)
        ratio = torch.where(share == 0, 0.0, share**2 / self.values)
        return torch.where(self.length == 0, 0.0, self.length.double() ** 2 * ratio.sum(1))
