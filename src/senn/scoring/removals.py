"""Units that could be removed, scored by what that costs the maps that read them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from senn.graph import ChannelGroup, CoupledDim, DependencyGraph, LinearMap, owned_columns
from senn.policies import Budget
from senn.scoring.changes import Change, Gains, Prices, ScoredCandidate
from senn.scoring.pruning_costs import PruningCosts
from senn.surgery import Prune


class Removals:
    """Removals of one round: those that are accepted, and the next ones.

    Args:
        graph: what in the model can change.
        maps: the linear maps that are read, by name.
        costs: costs of each linear map's columns; none offers no removal.
        per_unit: by channel group, the number of parameters of one unit.
        budget: limits of the network's size.
    """

    def __init__(
        self,
        *,
        graph: DependencyGraph,
        maps: Mapping[str, LinearMap],
        costs: Mapping[str, PruningCosts],
        per_unit: Mapping[str, int],
        budget: Budget,
    ) -> None:
        self.graph, self.maps, self.costs, self.per_unit, self.budget = (
            graph,
            maps,
            costs,
            per_unit,
            budget,
        )
        self.units: dict[str, list[int]] = {}
        self._accepted: list[tuple[str, tuple[int, ...]]] = []

    def candidates(self, group: ChannelGroup, prices: Prices) -> list[ScoredCandidate]:
        """The units that cost least one by one, as many as leave a width that is allowed.

        Args:
            group: the channel group.
            prices: figures of the round.

        Returns:
            one candidate, or none if a map that reads the group can't be scored.
        """
        readers = group.dims_of("consumer")
        names = [coupled.map for coupled in readers]
        # costs of two parts of one map don't add up: each would compensate by the other's columns
        if not all(name in self.costs for name in names) or len(set(names)) < len(names):
            return []
        # Units keep the numbers that they had before the round.
        gone = self.units.get(group.name, [])
        left = torch.tensor([unit for unit in range(group.width) if unit not in gone])
        step = math.lcm(self.budget.round_to, group.granularity)
        # Down to the next width that is allowed, a whole step if the width is allowed already.
        count = len(left) % step or step
        if count >= len(left):
            return []
        owned = [(self.costs[coupled.map], self.owned(coupled)) for coupled in readers]
        # the group's outputs go to several maps, and the loss pays for each of them
        cost = torch.stack([costs.costs(columns[left]) for costs, columns in owned]).sum(0)
        cheapest = cost.argsort()[:count]
        chosen = left[cheapest]
        agreed = torch.stack(
            [costs.cross_fold_costs(columns[chosen]) for costs, columns in owned]
        ).sum()
        units = tuple(int(unit) for unit in chosen)
        total = float(cost[cheapest].sum())
        change = Change(
            kind="prune",
            place=group.name,
            detail="units " + ", ".join(map(str, units)),
            units=count,
            width=len(left) - count,
            parameters=-count * self.per_unit[group.name],
        )
        gains = Gains(
            gain=-total,
            gain_lower_bound=-total,
            held_out_gain=-total,
            cross_fold_gain=-float(agreed),
        )
        return [ScoredCandidate(change.scored(gains, prices), units)]

    def commit(self, place: str, units: tuple[int, ...]) -> None:
        """Accept a removal, and bring the costs of the maps that read the group up to date.

        Args:
            place: name of the channel group.
            units: numbers of the units, as at the start of the round.
        """
        self.units.setdefault(place, []).extend(units)
        self._accepted.append((place, units))
        for coupled in self.graph.group(place).dims_of("consumer"):
            if coupled.map in self.costs:
                self.costs[coupled.map].remove(self.owned(coupled)[list(units)].flatten())

    def to_moves(self, number: int | None) -> list[Prune]:
        """Moves that carry out the first `number` accepted removals, or all of them."""
        removed: dict[str, list[int]] = {}
        for name, units in self._accepted[:number]:
            removed.setdefault(name, []).extend(units)
        return [
            self._move(self.graph.group(name), sorted(units)) for name, units in removed.items()
        ]

    def _move(self, group: ChannelGroup, units: Sequence[int]) -> Prune:
        """Removal of units, with the compensation of every map whose costs are known."""
        # Maps that aren't scored lose the units' contribution without compensation.
        coefficients = {}
        for coupled in group.dims_of("consumer"):
            if coupled.map in self.costs:
                columns = self.owned(coupled)[list(units)].flatten()
                taken = self.costs[coupled.map].coefficients(columns)
                if self.maps[coupled.map].bias is None:  # the bias takes over nothing
                    taken = torch.cat([taken, taken.new_zeros(len(taken), 1)], 1)
                coefficients[coupled.map] = taken
        return Prune(group.name, tuple(units), coefficients)

    def owned(self, coupled: CoupledDim) -> Tensor:
        """Columns of a consumer's matrix that each unit owns, (width, k * kernel_numel)."""
        return owned_columns(coupled, self.maps[coupled.map].kernel_numel)
