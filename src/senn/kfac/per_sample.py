"""Single samples that are kept for exact curvatures along a step, d^T F d = E[(sum over locations of s^T d a)^2].

The Kronecker product gives the curvature of a whole map, but along one step d the Fisher can be had exactly: it is the
mean square of s^T d a, summed over a sample's locations (Martens and Grosse 2015, section 6.4, use the same to rescale
a step). All that this needs of a sample is the sum over its locations of s a^T (and of dz a^T). Where that has fewer
numbers than the rows s, dz and a themselves it is kept (`PerSampleGrads`), otherwise the rows are
(`PerSampleFactors`). Both answer the same questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from senn.kfac.kept_rows import KeptRows, Kind
from senn.kfac.transposed_samples import TransposedSamples

MANY_NUMBERS = 1 << 13
"""Outputs at all locations of a sample from which on the gradients of kept rows are held in bfloat16.

Rows that are kept at all maps together are a multiple of the activations that training holds. An entry is rounded by
0.4 % at most, at random, and figures are sums over thousands of them, whose noise is a few per cent.
"""


@dataclass(frozen=True, eq=False, kw_only=True)
class PerSampleFactors(KeptRows):
    """Samples kept as rows over a map's columns; s and dz in bfloat16 where they are many (`MANY_NUMBERS`)."""

    def as_grads(self) -> PerSampleGrads:
        """The same samples kept as sums."""
        a, s, dz = (
            rows.to(self.a.dtype).view(len(self), self.locations, -1)
            for rows in (self.a, self.pseudo_grad, self.output_grad)
        )
        weight = None if self.weight is None else self.weight.view(len(self), -1)[:, 0]
        return PerSampleGrads(pseudo_grad=s.mT @ a, output_grad=dz.mT @ a, weight=weight)

    def residual(self, predict: Tensor) -> PerSampleFactors | PerSampleGrads:
        """Subtract from the candidate columns what the existing ones predict of them: a_p - predict^T a_c.

        Args:
            predict: (c, P) A_cc^-1 A_cp.

        Returns:
            Samples over the candidate columns alone: as sums where their rows are many (`MANY_NUMBERS`) and these
            columns few.
        """
        # existing columns come first in every row, [a_c | a_p]
        c = len(predict)
        rest = replace(self, a=self.a[:, c:] - self.a[:, :c] @ predict.to(self.a.dtype))
        is_many = self.pseudo_grad.dtype != self.a.dtype
        return rest.as_grads() if is_many and rest.a.shape[1] < rest.pseudo_grad.shape[1] else rest

    def without(self, columns: Tensor, taken: Tensor) -> PerSampleFactors:
        """Subtract from all columns what accepted ones predict of them: a - taken a_p.

        Args:
            columns: (p,) positions of the accepted columns.
            taken: (P, p) coefficients.
        """
        return replace(self, a=self.a - self.a[:, columns] @ taken.mT.to(self.a.dtype))

    def directional(self, kind: Kind, step: Tensor, columns: Tensor) -> Tensor:
        """Sum r^T d a over each sample's locations, for several groups of columns at once.

        Args:
            kind: what r is, s or dz.
            step: d, (m, groups * p).
            columns: (groups, p) positions of the columns that d steps along.

        Returns:
            (samples, groups).
        """
        # s for curvature d^T F d = E[(s^T d a)^2], dz for the slope <g, d> = E[dz^T d a]
        rows = self.pseudo_grad if kind == "pseudo_grad" else self.output_grad
        rows = rows.to(self.a.dtype)
        # r^T d first, (rows, groups p): the outer products of r and a are never formed
        through = (rows @ step.to(rows.dtype)).view(len(rows), *columns.shape)
        return self._by_sample((through * self.a[:, columns]).sum(-1))

    def of_existing(self, step: Tensor) -> Tensor:
        """Sum s^T d a_c over each sample's locations, (samples,) float64, for a step d (m, c) of existing weights."""
        # float64, as the step is: this one is compared with eta
        rows = ((self.pseudo_grad.double() @ step) * self.a[:, : step.shape[1]].double()).sum(1)
        return self._by_sample(rows[:, None])[:, 0]


@dataclass(frozen=True, eq=False, kw_only=True)
class PerSampleGrads:
    """Samples kept as sums over their locations; methods as in `PerSampleFactors`.

    Attributes:
        pseudo_grad: (samples, m, columns) sums of s a^T.
        output_grad: (samples, m, columns) sums of dz a^T, the samples' own weight gradients.
        weight: (samples,) weight of each sample, which the sums carry already; None for ones.
    """

    pseudo_grad: Tensor
    output_grad: Tensor
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pseudo_grad)

    @property
    def width(self) -> int:
        """Number of outputs."""
        return self.pseudo_grad.shape[1]

    def __add__(self, other: PerSampleGrads) -> PerSampleGrads:
        """Concatenate two sets of samples of the same map."""
        weighted = self.weight is not None or other.weight is not None
        return PerSampleGrads(
            pseudo_grad=torch.cat([self.pseudo_grad, other.pseudo_grad]),
            output_grad=torch.cat([self.output_grad, other.output_grad]),
            weight=torch.cat([self._weights, other._weights]) if weighted else None,
        )

    @property
    def _weights(self) -> Tensor:
        return (
            self.pseudo_grad.new_ones(len(self.pseudo_grad)) if self.weight is None else self.weight
        )

    @property
    def total(self) -> float:
        """Sum of the weights of all samples."""
        return float(len(self)) if self.weight is None else float(self.weight.sum())

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that is kept, with samples first."""
        sums = (self.pseudo_grad, self.output_grad)
        return sums if self.weight is None else (*sums, self.weight)

    def of(self, tensors: Sequence[Tensor]) -> PerSampleGrads:
        """Rebuild samples of the same map from `tensors`."""
        s, dz, *weight = tensors
        return PerSampleGrads(
            pseudo_grad=s,
            output_grad=dz,
            weight=weight[0] if weight else None,
        )

    def first(self, samples: int) -> PerSampleGrads:
        """Keep the first samples only."""
        weight = None if self.weight is None else self.weight[:samples]
        return replace(
            self,
            pseudo_grad=self.pseudo_grad[:samples],
            output_grad=self.output_grad[:samples],
            weight=weight,
        )

    def residual(self, predict: Tensor) -> PerSampleGrads:
        """Subtract from the candidate columns what the existing ones predict of them.

        Args:
            predict: (c, P) A_cc^-1 A_cp.
        """
        # a enters the sums linearly, so a column's prediction can be subtracted after summing
        c, predict = len(predict), predict.to(self.pseudo_grad.dtype)
        s, dz = (
            sums[..., c:] - sums[..., :c] @ predict for sums in (self.pseudo_grad, self.output_grad)
        )
        return replace(self, pseudo_grad=s, output_grad=dz)

    def without(self, columns: Tensor, taken: Tensor) -> PerSampleGrads:
        """Subtract from all columns what accepted ones predict of them.

        Args:
            columns: (p,) positions of the accepted columns.
            taken: (P, p) coefficients.
        """
        s, dz = (
            sums - sums[..., columns] @ taken.mT.to(sums.dtype)
            for sums in (self.pseudo_grad, self.output_grad)
        )
        return replace(self, pseudo_grad=s, output_grad=dz)

    def directional(self, kind: Kind, step: Tensor, columns: Tensor) -> Tensor:
        """Sum r^T d a over each sample's locations, for several groups of columns at once.

        Args:
            kind: what r is, s or dz.
            step: d, (m, groups * p).
            columns: (groups, p) positions of the columns that d steps along.

        Returns:
            (samples, groups).
        """
        sums = self.pseudo_grad if kind == "pseudo_grad" else self.output_grad
        # the sums are gradients already, so the step's direction derivative is one inner product
        chosen = sums[..., columns]  # (samples, m, groups, p)
        return (chosen * step.to(sums.dtype).view(len(step), *columns.shape)).sum((1, 3))

    def of_existing(self, step: Tensor) -> Tensor:
        """Sum s^T d a_c over each sample's locations, (samples,) float64, for a step d (m, c) of existing weights."""
        # <sum s a_c^T, d>, the same as s^T d a_c summed over locations
        return (self.pseudo_grad[..., : step.shape[1]].double() * step).sum((1, 2))


Samples = PerSampleFactors | PerSampleGrads | TransposedSamples
"""Some samples of one map, kept one by one."""


def joined(one: Samples, other: Samples) -> Samples:
    """Concatenate two sets of samples of the same map, in whatever form each is kept."""
    if isinstance(one, TransposedSamples) or isinstance(other, TransposedSamples):
        assert isinstance(one, TransposedSamples)
        assert isinstance(other, TransposedSamples)
        return one + other
    if isinstance(one, PerSampleFactors) and isinstance(other, PerSampleFactors):
        return one + other
    sums = [x.as_grads() if isinstance(x, PerSampleFactors) else x for x in (one, other)]
    return sums[0] + sums[1]
