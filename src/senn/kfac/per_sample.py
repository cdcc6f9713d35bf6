"""Single samples that are kept for exact curvatures along a step: d^T F d = E[(sum over locations of s^T d a)^2].

What is needed of a sample is K = sum over its locations of s a^T (and of dz a^T). Where that has fewer numbers than the
rows s, dz and a themselves it is `Summed`, otherwise the rows are kept (`Rowwise`). Both answer the same questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class PerSampleFactors:
    """Samples kept as rows, sample-major.

    Attributes:
        a: (samples * locations, columns).
        pseudo_grad: (samples * locations, m).
        output_grad: (samples * locations, m).
        locations: rows per sample.
        weight: (samples * locations,) the samples' weights, which s and dz carry already; None for ones.
    """

    a: Tensor
    pseudo_grad: Tensor
    output_grad: Tensor
    locations: int = 1
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.a) // self.locations

    def __add__(self, other: PerSampleFactors) -> PerSampleFactors:
        """Both sets of samples."""
        a, s, dz = (
            torch.cat(pair)
            for pair in (
                (self.a, other.a),
                (self.pseudo_grad, other.pseudo_grad),
                (self.output_grad, other.output_grad),
            )
        )
        weighted = self.weight is not None or other.weight is not None
        return PerSampleFactors(
            a=a,
            pseudo_grad=s,
            output_grad=dz,
            locations=self.locations,
            weight=torch.cat([self.weights, other.weights]) if weighted else None,
        )

    @property
    def weights(self) -> Tensor:
        """The rows' weights."""
        return self.a.new_ones(len(self.a)) if self.weight is None else self.weight

    @property
    def total(self) -> float:
        """Sum of the rows' weights."""
        return float(len(self.a)) if self.weight is None else float(self.weight.sum())

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Everything that is kept, by sample: (samples, ...) each."""
        rows = (
            (self.a, self.pseudo_grad, self.output_grad)
            if self.weight is None
            else (self.a, self.pseudo_grad, self.output_grad, self.weight)
        )
        return tuple(x.reshape(len(self), self.locations, *x.shape[1:]) for x in rows)

    def of(self, tensors: Sequence[Tensor]) -> PerSampleFactors:
        """Other samples of the same map, from their `tensors`."""
        a, s, dz, *weight = (x.flatten(0, 1) for x in tensors)
        return PerSampleFactors(
            a=a, pseudo_grad=s, output_grad=dz, locations=self.locations, weight=weight[0] if weight else None
        )

    def first(self, samples: int) -> PerSampleFactors:
        """The first samples."""
        kept = slice(0, samples * self.locations)
        weight = None if self.weight is None else self.weight[kept]
        return replace(
            self, a=self.a[kept], pseudo_grad=self.pseudo_grad[kept], output_grad=self.output_grad[kept], weight=weight
        )

    def residual(self, predict: Tensor) -> PerSampleFactors:
        """Candidate columns less what the existing ones predict of them, a_p - predict^T a_c, for predict (c, P)."""
        c = len(predict)
        return replace(self, a=self.a[:, c:] - self.a[:, :c] @ predict.to(self.a.dtype))

    def without(self, columns: Tensor, taken: Tensor) -> PerSampleFactors:
        """What is left of all columns after these (p,) took their part, a - taken a_p, for taken (P, p)."""
        return replace(self, a=self.a - self.a[:, columns] @ taken.mT.to(self.a.dtype))

    def directional(self, kind: str, step: Tensor, columns: Tensor) -> Tensor:
        """r^T d a summed over each sample's locations, (samples, groups).

        Args:
            kind: `s` or `dz`, what r is.
            step: d, (m, groups * p).
            columns: (groups, p).
        """
        rows = self.pseudo_grad if kind == "pseudo_grad" else self.output_grad
        through = (rows @ step.to(rows.dtype)).view(len(rows), *columns.shape)
        return self._by_sample((through * self.a[:, columns]).sum(-1))

    def of_existing(self, step: Tensor) -> Tensor:
        """s^T d a_c summed over each sample's locations, (samples,), for d (m, c)."""
        rows = ((self.pseudo_grad.double() @ step) * self.a[:, : step.shape[1]].double()).sum(1)
        return self._by_sample(rows[:, None])[:, 0]

    def _by_sample(self, rows: Tensor) -> Tensor:
        return rows.view(-1, self.locations, rows.shape[1]).sum(1)


@dataclass(frozen=True, eq=False, kw_only=True)
class PerSampleGrads:
    """Samples kept as sums over their locations.

    Attributes:
        pseudo_grad: (samples, m, columns) sums of s a^T.
        output_grad: (samples, m, columns) sums of dz a^T.
        locations: that they sum.
        weight: (samples,) the samples' weights; None for ones.
    """

    pseudo_grad: Tensor
    output_grad: Tensor
    locations: int
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pseudo_grad)

    def __add__(self, other: PerSampleGrads) -> PerSampleGrads:
        """Both sets of samples."""
        weighted = self.weight is not None or other.weight is not None
        weight = torch.cat([self._weights, other._weights]) if weighted else None
        return PerSampleGrads(
            pseudo_grad=torch.cat([self.pseudo_grad, other.pseudo_grad]),
            output_grad=torch.cat([self.output_grad, other.output_grad]),
            locations=self.locations,
            weight=weight,
        )

    @property
    def _weights(self) -> Tensor:
        return self.pseudo_grad.new_ones(len(self.pseudo_grad)) if self.weight is None else self.weight

    @property
    def total(self) -> float:
        """Sum of the rows' weights."""
        return self.locations * float(self._weights.sum())

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """See `Rowwise.tensors`."""
        return (
            (self.pseudo_grad, self.output_grad)
            if self.weight is None
            else (self.pseudo_grad, self.output_grad, self.weight)
        )

    def of(self, tensors: Sequence[Tensor]) -> PerSampleGrads:
        """See `Rowwise.of`."""
        s, dz, *weight = tensors
        return PerSampleGrads(
            pseudo_grad=s, output_grad=dz, locations=self.locations, weight=weight[0] if weight else None
        )

    def first(self, samples: int) -> PerSampleGrads:
        """The first samples."""
        weight = None if self.weight is None else self.weight[:samples]
        return replace(
            self, pseudo_grad=self.pseudo_grad[:samples], output_grad=self.output_grad[:samples], weight=weight
        )

    def residual(self, predict: Tensor) -> PerSampleGrads:
        """See `Rowwise.residual`."""
        c, predict = len(predict), predict.to(self.pseudo_grad.dtype)
        s, dz = (sums[..., c:] - sums[..., :c] @ predict for sums in (self.pseudo_grad, self.output_grad))
        return replace(self, pseudo_grad=s, output_grad=dz)

    def without(self, columns: Tensor, taken: Tensor) -> PerSampleGrads:
        """See `Rowwise.without`."""
        s, dz = (sums - sums[..., columns] @ taken.mT.to(sums.dtype) for sums in (self.pseudo_grad, self.output_grad))
        return replace(self, pseudo_grad=s, output_grad=dz)

    def directional(self, kind: str, step: Tensor, columns: Tensor) -> Tensor:
        """See `Rowwise.along`."""
        sums = (self.pseudo_grad if kind == "pseudo_grad" else self.output_grad)[
            ..., columns
        ]  # (samples, m, groups, p)
        return (sums * step.to(sums.dtype).view(len(step), *columns.shape)).sum((1, 3))

    def of_existing(self, step: Tensor) -> Tensor:
        """See `Rowwise.of_existing`."""
        return (self.pseudo_grad[..., : step.shape[1]].double() * step).sum((1, 2))


Samples = PerSampleFactors | PerSampleGrads
"""Some samples, kept one by one."""
