"""Units that could be removed, scored by what that costs the maps that read them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from senn.graph import ChannelGroup, CoupledDim, DependencyGraph, LinearMap, owned_columns
from senn.policies import Budget
from senn.scoring.accounts import Accounts
from senn.scoring.changes import Change, Gains, Prices, ScoredCandidate
from senn.scoring.pruning_costs import PruningCosts
from senn.surgery import Prune


@dataclass(frozen=True, eq=False, kw_only=True)
class _Offer:
    """Units of a group of which some may go.

    Attributes:
        group: the group.
        left: numbers of the units.
        width: width without those that may go.
        count: how many these are.
    """

    group: ChannelGroup
    left: Tensor
    width: int
    count: int


class Removals:
    """Removals of one round: those that are accepted, and the next ones.

    Args:
        graph: what in the model can change.
        maps: the linear maps that are read, by name.
        accounts: what is known of each linear map, and which rank knows it.
        per_unit: by channel group, the number of parameters of one unit.
        budget: limits of the network's size.
    """

    def __init__(
        self,
        *,
        graph: DependencyGraph,
        maps: Mapping[str, LinearMap],
        accounts: Accounts,
        per_unit: Mapping[str, int],
        budget: Budget,
    ) -> None:
        self.graph, self.maps, self.per_unit, self.budget = graph, maps, per_unit, budget
        self.owners, self.priced = accounts.owners, accounts.priced
        self.costs = accounts.pruning_costs
        self.units: dict[str, list[int]] = {}
        self._accepted: list[tuple[str, tuple[int, ...]]] = []

    def candidates(
        self, groups: Sequence[ChannelGroup], prices: Prices
    ) -> dict[str, list[ScoredCandidate]]:
        """The units of each group that cost least one by one, as many as leave a width that is allowed.

        Args:
            groups: the channel groups, the same ones on all ranks.
            prices: figures of the round.

        Returns:
            one candidate of each group of which units can go and all readers are priced.
        """
        offers = [one for group in groups if (one := self._offer(group)) is not None]
        # the group's outputs go to several maps, and the loss pays for each of them
        costs = [one.sum(0) for one in self._by_reader(offers, PruningCosts.costs)]
        cheapest = [cost.argsort()[: one.count] for cost, one in zip(costs, offers, strict=True)]
        chosen = [
            replace(one, left=one.left[best]) for one, best in zip(offers, cheapest, strict=True)
        ]
        agreed = self._by_reader(chosen, PruningCosts.cross_fold_costs)
        found = {}
        for one, cost, best, of_folds in zip(chosen, costs, cheapest, agreed, strict=True):
            figures = float(cost[best].sum()), float(of_folds.sum())
            found[one.group.name] = [self._scored(one, figures, prices)]
        return found

    def _offer(self, group: ChannelGroup) -> _Offer | None:
        """How many of which units may go; None if none may, or a map that reads the group can't be scored."""
        readers = group.dims_of("consumer")
        names = [coupled.map for coupled in readers]
        # costs of two parts of one map don't add up: each would compensate by the other's columns
        if not all(name in self.priced for name in names) or len(set(names)) < len(names):
            return None
        # Units keep the numbers that they had before the round.
        gone = self.units.get(group.name, [])
        left = torch.tensor([unit for unit in range(group.width) if unit not in gone])
        step = math.lcm(self.budget.round_to, group.granularity)
        # Down to the next width that is allowed, a whole step if the width is allowed already.
        count = len(left) % step or step
        if count >= len(left):
            return None
        return _Offer(group=group, left=left, width=len(left) - count, count=count)

    def _by_reader(
        self, offers: Sequence[_Offer], figure: Callable[[PruningCosts, Tensor], Tensor]
    ) -> list[Tensor]:
        """A figure of the units of each offer at each map that reads them, (readers, units), on all ranks."""
        if not offers:
            return []
        communicator = self.owners.communicator
        with communicator.fail_together("score the candidates"):
            own = [torch.stack([*self._own_figures(one, figure)]) for one in offers]
        # every row is zero on all ranks but one
        return communicator.all_reduce("score the candidates", own, meet=False)

    def _own_figures(
        self, offer: _Offer, figure: Callable[[PruningCosts, Tensor], Tensor]
    ) -> Iterator[Tensor]:
        for coupled in offer.group.dims_of("consumer"):
            if coupled.map in self.costs:
                yield figure(self.costs[coupled.map], self.owned(coupled)[offer.left])
            else:
                yield torch.zeros(len(offer.left), dtype=torch.float64)

    def _scored(
        self, offer: _Offer, figures: tuple[float, float], prices: Prices
    ) -> ScoredCandidate:
        """The candidate of an offer, whose units cost so much, and so much by both folds."""
        total, agreed = figures
        units = tuple(int(unit) for unit in offer.left)
        change = Change(
            kind="prune",
            place=offer.group.name,
            detail="units " + ", ".join(map(str, units)),
            units=offer.count,
            width=offer.width,
            parameters=-offer.count * self.per_unit[offer.group.name],
        )
        gains = Gains(
            gain=-total, gain_lower_bound=-total, held_out_gain=-total, cross_fold_gain=-agreed
        )
        return ScoredCandidate(change.scored(gains, prices), units)

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
            if coupled.map in self.priced:
                columns = self.owned(coupled)[list(units)].flatten()
                (taken,) = self.owners.share(
                    "send the decision",
                    coupled.map,
                    functools.partial(self._coefficients, coupled.map, columns),
                )
                if self.maps[coupled.map].bias is None:  # the bias takes over nothing
                    taken = torch.cat([taken, taken.new_zeros(len(taken), 1)], 1)
                coefficients[coupled.map] = taken
        return Prune(group.name, tuple(units), coefficients)

    def _coefficients(self, name: str, columns: Tensor) -> list[Tensor]:
        return [self.costs[name].coefficients(columns)]

    def owned(self, coupled: CoupledDim) -> Tensor:
        """Columns of a consumer's matrix that each unit owns, (width, k * kernel_numel)."""
        return owned_columns(coupled, self.maps[coupled.map].kernel_numel)
