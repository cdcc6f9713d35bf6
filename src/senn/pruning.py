"""The account of one linear map when units leave it: costs, compensation and promise, kept up to date.

Optimal brain surgeon under K-FAC: see `scores.pruning_cost`. Removing a column is one elimination step on A^-1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from senn.curvature.factors import DAMPING, Moments, cholesky
from senn.scores import compensation


class PruningLedger:
    """What the columns of one linear map are worth to it.

    Args:
        moments: of all samples over the existing columns (c, with the constant 1 if there is a bias).
        weight: [W | b], (m, c).
        step: the natural step of these weights, (m, c).
    """

    def __init__(self, moments: Moments, weight: Tensor, step: Tensor) -> None:
        self._moments = moments
        self.root = cholesky(moments.S, DAMPING)
        self.locations = moments.locations
        self.inverse = torch.cholesky_inverse(cholesky(moments.A, DAMPING))
        self.weight = weight.double()
        self.step = step
        self.kept = torch.arange(weight.shape[1])

    def costs(self, columns: Tensor) -> Tensor:
        """Cost in eta of removing each group of columns (groups, p), numbered as at the start, others compensating."""
        position = self._positions(columns)
        block = self.inverse[position[:, :, None], position[:, None, :]]
        # `scores.pruning_cost` with the metric applied to all columns at once
        v = (self.root.mT @ (self.weight - self.step))[:, position].movedim(1, 0)
        return self.locations * (torch.linalg.solve(block, v.mT) * v.mT).sum((-2, -1))

    def remove(self, columns: Tensor) -> None:
        """Take the columns (p,) out and let the others compensate."""
        gone = self._positions(columns)
        rest = torch.ones(len(self.kept), dtype=torch.bool)
        rest[gone] = False
        take_over = compensation(self.inverse, gone)
        self.weight = self.weight[:, rest] + self.weight[:, gone] @ take_over
        self.step = self.step[:, rest] + self.step[:, gone] @ take_over
        self.inverse = self.inverse[rest][:, rest] + self.inverse[rest][:, gone] @ take_over
        self.kept = self.kept[rest]

    def coefficients(self, columns: Tensor) -> Tensor:
        """For the removal of all of `columns` (p,) from the map as it is: W_kept += W_gone @ coefficients, (p, c - p)."""
        return compensation(torch.cholesky_inverse(cholesky(self._moments.A, DAMPING)), columns)

    def _positions(self, columns: Tensor) -> Tensor:
        """Where columns, numbered as at the start, are now."""
        return torch.searchsorted(self.kept, columns)
