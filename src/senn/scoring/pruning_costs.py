"""Cost of the columns of one linear map, and how the others take over, kept up to date as columns go.

Optimal brain surgeon (Hassibi & Stork 1993) under Kronecker factors (Wang et al. 2019, *EigenDamage*, arXiv
1905.05934), see `formulas.pruning_cost`. Removing a column is one elimination step on A^-1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from senn.graph import DependencyGraph, LinearMap, get_tensor, weight_matrix
from senn.kfac.factors import FactorInverse
from senn.kfac.whitening import whiten_weights
from senn.scoring.formulas import compensation, trace_product
from senn.scoring.gains import LayerGains


class PruningCosts:
    """Costs of removing columns of one linear map.

    Args:
        inverse: inverse of the damped input covariance of the existing columns.
        weights: `LayerGains.next_weights` of the map, (3, m, c).
        locations: rows per sample.
    """

    def __init__(self, inverse: FactorInverse, weights: Tensor, locations: float) -> None:
        self.locations = locations
        self._start = inverse
        self._now: Tensor | None = None  # dense, so made only once a column goes
        self.weights = weights
        self.kept = torch.arange(weights.shape[-1])

    def costs(self, columns: Tensor) -> Tensor:
        """Cost of removing groups of columns, one group at a time, while the others compensate.

        A square, to which the noise of the step adds about the ratio of the columns' entries to the samples.

        Args:
            columns: (groups, p), numbered as at the start.

        Returns:
            (groups,) in eta.
        """
        return self._products(columns, 0, 0)

    def cross_fold_costs(self, columns: Tensor) -> Tensor:
        """Cost that the two folds agree on: a product of both, to which noise adds nothing on average.

        Args:
            columns: (groups, p), numbered as at the start.

        Returns:
            (groups,) in eta.
        """
        return self._products(columns, 1, 2)

    def _products(self, columns: Tensor, one: int, other: int) -> Tensor:
        """Tr(S v [A^-1]_jj^-1 v'^T) of groups, (groups,), for the columns v, v' of two of the whitened weights."""
        position = self._positions(columns)
        if self._now is None:
            # Until a column goes, the blocks alone are needed, never the dense inverse.
            block = self._start.blocks(position)
        else:
            block = self._now[position[:, :, None], position[:, None, :]]
        left, right = (self.weights[which][:, position].movedim(1, 0) for which in (one, other))
        return trace_product(left, right, block, locations=self.locations)

    def remove(self, columns: Tensor) -> None:
        """Take the columns (p,) out and let the others compensate."""
        gone = self._positions(columns)
        rest = torch.ones(len(self.kept), dtype=torch.bool)
        rest[gone] = False
        inverse = self._start.dense if self._now is None else self._now
        coefficients = compensation(inverse, gone)
        # The kept columns take over what the others did, for all outputs at once: S cancels.
        self.weights = self.weights[..., rest] + self.weights[..., gone] @ coefficients
        # the inverse of A without these columns is the Schur complement of their block of A^-1
        self._now = inverse[rest][:, rest] + inverse[rest][:, gone] @ coefficients
        self.kept = self.kept[rest]

    def coefficients(self, columns: Tensor) -> Tensor:
        """Compensation for removing all of `columns` (p,) from the map as it is: W_kept += W_gone @ K.

        Returns:
            K, (p, c - p).
        """
        return compensation(self._start.dense, columns)

    def _positions(self, columns: Tensor) -> Tensor:
        """Positions, among the kept columns, of columns that are numbered as at the start."""
        return torch.searchsorted(self.kept, columns)


def weight_of(model: nn.Module, linear_map: LinearMap) -> Tensor:
    """Weights [W | b] of a linear map, detached, (m, c).

    Args:
        model: the model.
        linear_map: the map, one of the model's dependency graph.
    """
    weight = weight_matrix(model, linear_map)
    if linear_map.bias is None:
        return weight
    return torch.cat([weight, get_tensor(model, linear_map.bias).detach()[:, None]], 1)


def priced_weights(
    model: nn.Module, graph: DependencyGraph, maps: Mapping[str, LinearMap]
) -> dict[str, Callable[[], Tensor]]:
    """Weights [W | b] of the maps whose columns could be removed, each made when it is asked for.

    Only units that a scored map reads can be priced: a removal costs what its consumers lose. A group of a convolution
    reads some channels only, and a transposed one writes patches: neither has one column for each channel.

    Args:
        model: the model.
        graph: what in it can change.
        maps: the linear maps that are scored, by name.
    """
    consumers = {coupled.map for group in graph.groups for coupled in group.dims_of("consumer")}
    return {
        name: functools.partial(weight_of, model, one)
        for name, one in maps.items()
        if name in consumers and one.groups == 1 and not one.transposed
    }


def hold_weights(
    costs: PruningCosts, model: nn.Module, linear_map: LinearMap, gains: LayerGains
) -> None:
    """Count the costs of a map from its weights as they are: nothing trains them where their natural step leads.

    Args:
        costs: the costs, of which no column is gone.
        model: the model.
        linear_map: the map.
        gains: gains of the map's columns.
    """
    weight = whiten_weights(gains.whitener, weight_of(model, linear_map).double())
    costs.weights = weight.expand_as(costs.weights)
