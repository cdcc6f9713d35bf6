"""Rows of single samples that are kept: what doesn't depend on which side of a map new columns are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["pseudo_grad", "output_grad"]


@dataclass(frozen=True, eq=False, kw_only=True)
class KeptRows:
    """Samples kept as rows, sample-major.

    Attributes:
        a: (samples * locations, columns) inputs.
        pseudo_grad: (samples * locations, m) s.
        output_grad: (samples * locations, m) dz.
        locations: rows per sample; a sample that has fewer is filled up with zeros.
        weight: (samples * locations,) weight of each row's sample, which s and dz carry already; None for ones.
    """

    a: Tensor
    pseudo_grad: Tensor
    output_grad: Tensor
    locations: int = 1
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.a) // self.locations

    @property
    def width(self) -> int:
        """Number of outputs."""
        return self.pseudo_grad.shape[1]

    def __add__(self, other: Self) -> Self:
        """Concatenate two sets of samples of the same map."""
        # samples of one set may be longer than those of the other
        locations = max(self.locations, other.locations)
        if self.locations != other.locations:
            return self.filled(locations) + other.filled(locations)
        # ones are written out only where the other side has weights
        weighted = self.weight is not None or other.weight is not None
        return replace(
            self,
            a=torch.cat([self.a, other.a]),
            pseudo_grad=torch.cat([self.pseudo_grad, other.pseudo_grad]),
            output_grad=torch.cat([self.output_grad, other.output_grad]),
            weight=torch.cat([self.weights, other.weights]) if weighted else None,
        )

    def filled(self, locations: int) -> Self:
        """Fill samples up with rows of zeros, to so many locations."""
        if locations == self.locations:
            return self

        def fill(rows: Tensor) -> Tensor:
            by_sample = rows.view(len(self), self.locations, rows.shape[1])
            return F.pad(by_sample, (0, 0, 0, locations - self.locations)).flatten(0, 1)

        weight = self.weight
        if weight is not None:
            weight = weight.view(len(self), -1)[:, :1].expand(-1, locations).flatten()
        return replace(
            self,
            a=fill(self.a),
            pseudo_grad=fill(self.pseudo_grad),
            output_grad=fill(self.output_grad),
            locations=locations,
            weight=weight,
        )

    @property
    def weights(self) -> Tensor:
        """Weight of each row's sample, (samples * locations,), ones included."""
        if self.weight is not None:
            return self.weight
        # inputs of a table are numbers of its rows
        dtype = torch.promote_types(self.a.dtype, torch.float32)
        return torch.ones(len(self.a), dtype=dtype, device=self.a.device)

    @property
    def total(self) -> float:
        """Sum of the weights of all samples."""
        return (
            float(len(self)) if self.weight is None else float(self.weight.sum() / self.locations)
        )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that is kept, with samples first: (samples, ...) each, so that ranks can gather it by position."""
        rows = [self.a, self.pseudo_grad, self.output_grad]
        if self.weight is not None:
            rows.append(self.weight)
        return tuple(x.reshape(len(self), self.locations, *x.shape[1:]) for x in rows)

    def of(self, tensors: Sequence[Tensor]) -> Self:
        """Rebuild samples of the same map from `tensors`."""
        a, s, dz, *weight = (x.flatten(0, 1) for x in tensors)
        return replace(
            self, a=a, pseudo_grad=s, output_grad=dz, weight=weight[0] if weight else None
        )

    def first(self, samples: int) -> Self:
        """Keep the first samples only."""
        kept = slice(0, samples * self.locations)
        weight = None if self.weight is None else self.weight[kept]
        return replace(
            self,
            a=self.a[kept],
            pseudo_grad=self.pseudo_grad[kept],
            output_grad=self.output_grad[kept],
            weight=weight,
        )

    def _by_sample(self, rows: Tensor) -> Tensor:
        return rows.view(-1, self.locations, rows.shape[1]).sum(1)
