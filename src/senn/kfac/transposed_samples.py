"""Single samples of a map over its outputs, kept for exact curvatures along a step of its rows (`transposed`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False, kw_only=True)
class TransposedSamples:
    """Single samples of a map, over its outputs; methods as in `PerSampleFactors`.

    Attributes:
        a: (samples * locations, c) inputs, zeros where a location is dead; of a table (samples * locations, 1) numbers
            of its rows.
        pseudo_grad: (samples * locations, outputs) s.
        output_grad: (samples * locations, outputs) dz.
        locations: rows per sample.
        weight: (samples,) weight of each sample, which s and dz carry already; None for ones.
    """

    a: Tensor
    pseudo_grad: Tensor
    output_grad: Tensor
    locations: int
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.a) // self.locations

    def __add__(self, other: TransposedSamples) -> TransposedSamples:
        """Concatenate two sets of samples of the same map."""
        locations = max(self.locations, other.locations)
        if self.locations != other.locations:
            return self.filled(locations) + other.filled(locations)
        weight = None
        if self.weight is not None or other.weight is not None:
            weight = torch.cat([self._weights, other._weights])
        return TransposedSamples(
            a=torch.cat([self.a, other.a]),
            pseudo_grad=torch.cat([self.pseudo_grad, other.pseudo_grad]),
            output_grad=torch.cat([self.output_grad, other.output_grad]),
            locations=locations,
            weight=weight,
        )

    @property
    def width(self) -> int:
        """Numbers of one row, of which as many are kept of the other side."""
        return self.pseudo_grad.shape[1]

    @property
    def _weights(self) -> Tensor:
        return self.pseudo_grad.new_ones(len(self)) if self.weight is None else self.weight

    @property
    def total(self) -> float:
        """Sum of the weights of all samples."""
        return float(len(self)) if self.weight is None else float(self.weight.sum())

    def filled(self, locations: int) -> TransposedSamples:
        """Fill samples up with rows of zeros, to so many locations."""

        def fill(rows: Tensor) -> Tensor:
            by_sample = rows.view(len(self), self.locations, rows.shape[1])
            return F.pad(by_sample, (0, 0, 0, locations - self.locations)).flatten(0, 1)

        return replace(
            self,
            a=fill(self.a),
            pseudo_grad=fill(self.pseudo_grad),
            output_grad=fill(self.output_grad),
            locations=locations,
        )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that is kept, with samples first."""
        rows = [
            one.reshape(len(self), self.locations, one.shape[1])
            for one in (self.a, self.pseudo_grad, self.output_grad)
        ]
        return (*rows,) if self.weight is None else (*rows, self.weight)

    def of(self, tensors: Sequence[Tensor]) -> TransposedSamples:
        """Rebuild samples of the same map from `tensors`."""
        a, s, dz, *weight = tensors
        return replace(
            self,
            a=a.flatten(0, 1),
            pseudo_grad=s.flatten(0, 1),
            output_grad=dz.flatten(0, 1),
            weight=weight[0] if weight else None,
        )

    def first(self, samples: int) -> TransposedSamples:
        """Keep the first samples only."""
        kept = slice(0, samples * self.locations)
        return replace(
            self,
            a=self.a[kept],
            pseudo_grad=self.pseudo_grad[kept],
            output_grad=self.output_grad[kept],
            weight=None if self.weight is None else self.weight[:samples],
        )

    def residual(self, predict: Tensor) -> TransposedSamples:
        """Subtract from the new outputs what the existing ones predict of them.

        Args:
            predict: (c, P) A'_cc^-1 A'_cp.
        """
        c, predict = len(predict), predict.to(self.pseudo_grad.dtype)
        s, dz = (rows[:, c:] - rows[:, :c] @ predict for rows in self._both)
        return replace(self, pseudo_grad=s, output_grad=dz)

    def without(self, columns: Tensor, taken: Tensor) -> TransposedSamples:
        """Subtract from all outputs what accepted ones predict of them.

        Args:
            columns: (p,) positions of the accepted outputs.
            taken: (P, p) coefficients.
        """
        taken = taken.to(self.pseudo_grad.dtype)
        s, dz = (rows - rows[:, columns] @ taken.mT for rows in self._both)
        return replace(self, pseudo_grad=s, output_grad=dz)

    @property
    def _both(self) -> tuple[Tensor, Tensor]:
        return self.pseudo_grad, self.output_grad

    def directional(
        self, kind: Literal["pseudo_grad", "output_grad"], step: Tensor, columns: Tensor
    ) -> Tensor:
        """Sum a^T d r over each sample's locations, for several groups of outputs at once.

        Args:
            kind: what r is, s or dz.
            step: d, (inputs, groups * p).
            columns: (groups, p) positions of the outputs that d steps along.

        Returns:
            (samples, groups).
        """
        rows = self.pseudo_grad if kind == "pseudo_grad" else self.output_grad
        step = step.to(rows.dtype)
        through = self.a @ step if self.a.is_floating_point() else step[self.a[:, 0]]
        effect = (through.view(len(rows), *columns.shape) * rows[:, columns]).sum(-1)
        return effect.view(-1, self.locations, effect.shape[1]).sum(1)
