"""Layers that could be inserted, scored by what the map after them gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from senn.candidates.new_layers import IdentityLayer, Layer, ResidualLayer
from senn.graph import get_linear
from senn.kfac.factors import DENSE_OUTPUTS, gram
from senn.kfac.whitening import whiten_weights
from senn.policies import Budget
from senn.scoring.accounts import Accounts
from senn.scoring.changes import Change, Prices, ScoredCandidate
from senn.scoring.column_layout import ColumnLayout
from senn.scoring.gains import LayerGains
from senn.scoring.greedy import Consumer, best_choices, scored_choices
from senn.surgery import Move


class Insertions:
    """Insertions of one round: those that are accepted, and the next ones.

    Args:
        model: the model as it is.
        layers: candidate layers by insertion point.
        accounts: what is known of each linear map.
        columns: layout of each linear map's columns.
        budget: limits of the network's size.

    Attributes:
        units: the accepted layer's number and its accepted units, by insertion point.
        weights: weights of the maps after these, as they were scored.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        layers: Mapping[str, Sequence[Layer]],
        accounts: Accounts,
        columns: Mapping[str, ColumnLayout],
        budget: Budget,
    ) -> None:
        self.model, self.layers, self.budget = model, layers, budget
        self.layer_gains, self.stream, self.columns = accounts.layer_gains, accounts.stream, columns
        self.units: dict[str, tuple[int, list[int]]] = {}
        self.weights: dict[str, Tensor] = {}

    def candidates(self, point: str, prices: Prices) -> list[ScoredCandidate]:
        """Score the next units of each layer at an insertion point.

        Args:
            point: name of the linear map before which the layers would go.
            prices: figures of the round.

        Returns:
            The best units by each criterion; for an identity insertion all units at once. Once units of one layer
            are accepted, only that layer is offered.
        """
        found: list[ScoredCandidate] = []
        for number, layer in enumerate(self.layers[point]):
            # One layer for each insertion point and round: the others were scored before it stood there.
            if point in self.units and self.units[point][0] != number:
                continue
            if not isinstance(layer, IdentityLayer):
                found += self._next_units(point, number, layer, prices)
            elif point not in self.units:
                found.append(self._identity(point, number, layer, prices))
        return found

    def commit(self, point: str, number: int, units: Sequence[int]) -> None:
        """Accept units of a layer, and bring the gains of the map after it up to date.

        Args:
            point: name of the linear map before which the layer goes.
            number: number of the layer at this point.
            units: numbers of its units.
        """
        self.units.setdefault(point, (number, []))[1].extend(units)
        # As it is now: surgery exchanges the data of the map, and puts the layer before it.
        self.weights[point] = get_linear(self.model, point).weight.detach()
        # Of an identity insertion all units come at once, so nothing is left to score.
        is_whole = isinstance(self.layers[point][number], IdentityLayer)
        if is_whole or point not in self.layer_gains:
            return
        layer_gains, columns = self.scored_columns(point)
        for unit in units:
            layer_gains.eliminate(columns[number][unit], self.output_basis(point))

    def to_moves(self) -> list[Move]:
        """Return the moves that carry out the accepted insertions."""
        moves: list[Move] = []
        for point, (number, units) in self.units.items():
            layer = self.layers[point][number]
            moves.append(layer.move() if isinstance(layer, IdentityLayer) else layer.move(units))
        return moves

    def scored_columns(self, point: str) -> tuple[LayerGains, list[Tensor]]:
        """Find the gains that score the layers before a map, and each layer's columns, (units, p)."""
        # Before a convolution, the layers' outputs are added to its input: their columns lie there.
        if point in self.stream.layers:
            return self.stream.layers[point]
        return self.layer_gains[point], self.columns[point].layers

    def _next_units(
        self, point: str, number: int, layer: ResidualLayer, prices: Prices
    ) -> list[ScoredCandidate]:
        accepted = self.units[point][1] if point in self.units else []
        # Up to the next width that is allowed.
        count = self.budget.round_to - len(accepted) % self.budget.round_to
        change = Change(
            kind="insert",
            place=point,
            detail=layer.name,
            units=count,
            width=len(accepted) + count,
            parameters=layer.parameters(count),
            layer_number=number,
        )
        layer_gains, columns = self.scored_columns(point)
        consumer = Consumer(layer_gains, columns[number], self.output_basis(point))
        return scored_choices(change, best_choices([consumer], count, accepted), prices)

    def _identity(
        self, point: str, number: int, layer: IdentityLayer, prices: Prices
    ) -> ScoredCandidate:
        """Score the activation parameters that an identity insertion makes live."""
        columns = self.scored_columns(point)[1][number]
        layer_gains = self.layer_gains[point]
        through = self.through(point, layer)
        features = layer.insertion_point.features
        change = Change(
            kind="insert",
            place=point,
            detail=layer.name,
            units=features,
            width=features,
            parameters=layer.parameters(),
            layer_number=number,
        )
        gains = layer_gains.diagonal(columns.flatten(), through)
        return ScoredCandidate(change.scored(gains, prices), (), number)

    def through(self, point: str, layer: IdentityLayer) -> Tensor:
        """Where each feature of an identity insertion enters the map's outputs, whitened, (m, columns)."""
        # A unit h of the new layer reaches z through W B^-1, whitened by L^T with S = L L^T.
        mixed: Tensor = self.whitened_weight(point) @ torch.linalg.inv(layer.weight.double())
        return mixed.repeat_interleave(layer.columns_per_unit, 1)

    def whitened_weight(self, point: str) -> Tensor:
        """L^T W of the map after an insertion point, (m, in), as it was scored."""
        return whiten_weights(self.layer_gains[point].whitener, self._weight(point))

    def _weight(self, point: str) -> Tensor:
        known = self.weights.get(point)
        weight = get_linear(self.model, point).weight.detach() if known is None else known
        return weight.double()

    def output_basis(self, point: str) -> Tensor | None:
        """Return what the input of a map can reach of its outputs.

        Returns:
            (m, r) orthonormal basis, in whitened outputs; None if that is everything.
        """
        if point in self.stream.layers:
            return None
        weight = self._weight(point)
        # W has full row rank then: every output can be reached.
        if weight.shape[0] <= weight.shape[1]:
            return None
        # With more outputs than inputs, z = W a moves within the range of W only; whitened, of L^T W.
        return orthonormal_basis(self.whitened_weight(point))


def orthonormal_basis(matrix: Tensor) -> Tensor:
    """Orthonormal basis Q (m, r) of the range of a matrix (m, r) with m > r.

    Of very many outputs by a Cholesky factor, in a third of the time: M^T M = R^T R and Q = M R^-1 (Cholesky QR), which
    is orthonormal to the rounding of float64 times the square of the matrix's condition.

    Args:
        matrix: float64.
    """
    if len(matrix) > DENSE_OUTPUTS:
        factor, info = torch.linalg.cholesky_ex(gram(matrix))
        pivots = factor.diagonal()
        if not info and bool(pivots.min() > 1e-5 * pivots.max()):
            found: Tensor = torch.linalg.solve_triangular(factor.mT, matrix, upper=True, left=False)
            return found
    basis: Tensor = torch.linalg.qr(matrix).Q
    return basis
