"""The account of one linear map when units leave it: costs and compensation, kept up to date.

Optimal brain surgeon under K-FAC: see `scores.pruning_cost`. Removing a column is one elimination step on A^-1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from senn.graph import LinearMap, get_tensor, weight_matrix
from senn.kfac.factors import FactorInverse
from senn.scoring.formulas import compensation


class PruningCosts:
    """What the columns of one linear map are worth to it.

    Args:
        inverse: of the damped input moment of the existing columns.
        value: [W | b] less its natural step, whitened by the root of S, on all samples and on each of two folds
            (`LayerGains.after`), (3, m, c).
        locations: rows per sample.
    """

    def __init__(self, inverse: FactorInverse, value: Tensor, locations: int) -> None:
        self.locations = locations
        self._start = inverse
        self._now: Tensor | None = None  # made when the first unit goes
        self.value = value
        self.kept = torch.arange(value.shape[-1])

    def costs(self, columns: Tensor) -> Tensor:
        """Cost in eta of removing each group of columns (groups, p), numbered as at the start, others compensating.

        A square, to which the noise of the step adds about the number of the columns' entries over that of samples.
        """
        return self._products(columns, 0, 0)

    def cross_fold_costs(self, columns: Tensor) -> Tensor:
        """The same as the two folds agree on it: a product, to which noise adds nothing on average."""
        return self._products(columns, 1, 2)

    def _products(self, columns: Tensor, one: int, other: int) -> Tensor:
        """Of two values, under the metric that removal costs; (groups,)."""
        position = self._positions(columns)
        if self._now is None:
            block = self._start.blocks(position)
        else:
            block = self._now[position[:, :, None], position[:, None, :]]
        v, right = (self.value[which][:, position].movedim(1, 0) for which in (one, other))
        left = v / block if block.shape[-1] == 1 else torch.linalg.solve(block, v.mT).mT
        return self.locations * (left * right).sum((-2, -1))

    def remove(self, columns: Tensor) -> None:
        """Take the columns (p,) out and let the others compensate."""
        gone = self._positions(columns)
        rest = torch.ones(len(self.kept), dtype=torch.bool)
        rest[gone] = False
        inverse = self._start.dense if self._now is None else self._now
        take_over = compensation(inverse, gone)
        self.value = self.value[..., rest] + self.value[..., gone] @ take_over
        self._now = inverse[rest][:, rest] + inverse[rest][:, gone] @ take_over
        self.kept = self.kept[rest]

    def coefficients(self, columns: Tensor) -> Tensor:
        """For the removal of all `columns` (p,) from the map as it is: W_kept += W_gone @ coefficients, (p, c - p)."""
        return compensation(self._start.dense, columns)

    def _positions(self, columns: Tensor) -> Tensor:
        """Where columns, numbered as at the start, are now."""
        return torch.searchsorted(self.kept, columns)


def weight_of(model: nn.Module, one: LinearMap) -> Tensor:
    """[W | b] of a linear map, detached, (m, c)."""
    weight = weight_matrix(model, one)
    return weight if one.bias is None else torch.cat([weight, get_tensor(model, one.bias).detach()[:, None]], 1)
