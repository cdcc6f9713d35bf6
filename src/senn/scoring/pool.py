"""The candidates of one consideration, scored, and kept up to date while some are accepted.

Width, depth and pruning are read off the same moments: candidate units are dormant columns of their consumers, layers
are virtual columns of the map before which they would go, pruning removes existing columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from senn.candidates.candidate_set import CandidateSet
from senn.candidates.new_layers import IdentityLayer, Layer
from senn.graph import ChannelGroup, CoupledDim, DependencyGraph, LinearMap, get_linear
from senn.graph import owned_columns as columns_of
from senn.policies import Budget, Candidate, CandidateKey, Criterion, Kind
from senn.scoring.column_layout import ColumnLayout
from senn.scoring.gains import Gains, LayerGains, Prices
from senn.scoring.greedy import Group, best_choices
from senn.scoring.pruning_costs import PruningCosts
from senn.scoring.stream import StreamCandidates
from senn.surgery import Move, Prune, Widen, parameters_per_unit


@dataclass(eq=False)
class ScoredCandidate:
    """A candidate and what accepting it means."""

    candidate: Candidate
    chosen: tuple[int, ...]
    layer: int | None = None


class CandidatePool:
    """All candidates of one consideration.

    Args:
        model: the model as it is.
        graph: what in it can change.
        maps: the linear maps that are read, by name.
        draw: the candidates that were drawn.
        layer_gains_by_map: by linear map.
        pruning: by linear map; empty offers no pruning.
        columns: by linear map.
        beside: accounts of what could be added beside streams.
        prices: what gains are held against; their `eta` is the network's before anything is accepted.
        budget: limits.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: DependencyGraph,
        maps: Mapping[str, LinearMap],
        draw: CandidateSet,
        layer_gains_by_map: Mapping[str, LayerGains],
        pruning: Mapping[str, PruningCosts],
        columns: Mapping[str, ColumnLayout],
        beside: StreamCandidates,
        *,
        prices: Prices,
        budget: Budget,
    ) -> None:
        self.model, self.graph, self.maps, self.draw = model, graph, maps, draw
        self.layer_gains_by_map, self.pruning, self.columns, self.beside = layer_gains_by_map, pruning, columns, beside
        self.prices, self.budget = prices, budget
        self.parameters = sum(p.numel() for p in model.parameters())
        self.per_unit = {group.name: parameters_per_unit(model, group) for group in graph.groups}
        self.grown: dict[str, list[int]] = {}
        self.inserted: dict[str, tuple[int, list[int]]] = {}
        self.removed: dict[str, list[int]] = {}
        self.repeated: list[str] = []
        self.accepted: list[Candidate] = []
        self._removals: list[tuple[str, tuple[int, ...]]] = []
        self._options: dict[CandidateKey, ScoredCandidate] = {}
        self._scored: dict[str, list[ScoredCandidate]] = {}
        self._scored_insertion_points: dict[str, list[ScoredCandidate]] = {}

    def candidates(self) -> list[Candidate]:
        """The best candidates of each kind at each place, with all that is accepted already taken into account."""
        if self.repeated:  # a copy is one of the block as it is now, so nothing else changes in this round
            return []
        for group in self.graph.groups:
            if group.name not in self._scored:
                self._scored[group.name] = [*self._widen(group), *self._prune(group)]
        for insertion_point, layers in self.draw.layers.items():
            if insertion_point not in self._scored_insertion_points:
                found = [self._insert(insertion_point, number, layer) for number, layer in enumerate(layers)]
                self._scored_insertion_points[insertion_point] = [option for options in found for option in options]
        options = [
            o for scored in (self._scored, self._scored_insertion_points) for place in scored.values() for o in place
        ]
        options += [self._repeat(block) for block in self.beside.repeats] if not self.accepted else []
        offered = [option for option in options if self.budget.allows(option.candidate, self.parameters)]
        self._options = {option.candidate.key: option for option in offered}
        assert len(self._options) == len(offered), "two candidates with one key"
        return [replace(option.candidate, eta=self.eta) for option in offered]

    @property
    def eta(self) -> float:
        """The network's expansion score now, with all that is accepted."""
        return self.prices.eta

    def commit(self, candidate: Candidate) -> None:
        """Take a candidate of the last `candidates()`, or a copy of one, as done and bring every figure up to date."""
        option = self._options[candidate.key]
        place = candidate.place
        if candidate.kind == "prune":
            self.removed.setdefault(place, []).extend(option.chosen)
            self._removals.append((place, option.chosen))
            for coupled in self.graph.group(place).dims_of("consumer"):
                if coupled.map in self.pruning:
                    self.pruning[coupled.map].remove(self._owned(coupled)[list(option.chosen)].flatten())
        elif candidate.kind == "widen":
            self.grown.setdefault(place, []).extend(option.chosen)
            for name, columns in self._consumers(place):
                for unit in option.chosen:
                    self.layer_gains_by_map[name].eliminate(columns[unit])
        elif option.layer is None:
            self.repeated.append(place)
        else:
            self.inserted.setdefault(place, (option.layer, []))[1].extend(option.chosen)
            layer = self.draw.layers[place][option.layer]
            if not isinstance(layer, IdentityLayer):
                layer_gains, groups = self._account(place)
                for unit in option.chosen:
                    layer_gains.eliminate(groups[option.layer][unit], self._onto(place))
        self._forget(place if candidate.kind == "insert" else None, None if candidate.kind == "insert" else place)
        if candidate.kind != "prune":
            self.prices = replace(self.prices, eta=self.eta + candidate.gain)
        self.parameters += candidate.parameters
        self.accepted.append(candidate)

    def _forget(self, insertion_point: str | None, group: str | None) -> None:
        """Score anew what shares a linear map with a place that has changed."""
        maps = (
            {insertion_point}
            if group is None
            else {coupled.map for coupled in self.graph.group(group).dims_of("consumer")}
        )
        for name in maps:
            self._scored_insertion_points.pop(name or "", None)
        for other in self.graph.groups:
            if other.name == group or any(coupled.map in maps for coupled in other.dims_of("consumer")):
                self._scored.pop(other.name, None)

    def to_moves(self, removals: int | None = None) -> list[Move]:
        """What has been accepted, as moves for the surgery; of the removals the first so many, None for all."""
        moves: list[Move] = []
        for name, units in self.grown.items():
            moves.append(select(self.draw.widen[name], units, self.graph.group(name)))
        removed: dict[str, list[int]] = {}
        for name, gone in self._removals[:removals]:
            removed.setdefault(name, []).extend(gone)
        for name, units in removed.items():
            moves.append(self._removal(self.graph.group(name), sorted(units)))
        for insertion_point, (number, units) in self.inserted.items():
            layer = self.draw.layers[insertion_point][number]
            moves.append(layer.move() if isinstance(layer, IdentityLayer) else layer.move(units))
        moves += [self.draw.repeats[block] for block in self.repeated]
        return moves

    # -- width

    def _consumers(self, group: str) -> list[tuple[str, Tensor]]:
        """The scored maps that read a space, with the columns of its candidates."""
        return [(name, columns.groups[group]) for name, columns in self.columns.items() if group in columns.groups]

    def _widen(self, group: ChannelGroup) -> list[ScoredCandidate]:
        """The best next units of a space: by held-out gain and by the bound, which may be different ones."""
        consumers = self._consumers(group.name)
        blocked = group.name in self.removed or any(name in self.inserted for name, _ in consumers)
        if not consumers or blocked:
            return []
        accepted = self.grown.get(group.name, [])
        width = group.width + len(accepted)
        step = _lcm(self.budget.round_to, group.granularity)
        units = step - width % step
        groups = [Group(self.layer_gains_by_map[name], columns) for name, columns in consumers]
        change = Change(
            kind="widen",
            place=group.name,
            detail=f"{units} of {len(groups[0].columns)} candidates",
            units=units,
            width=width + units,
            parameters=units * self.per_unit[group.name],
        )
        return [
            ScoredCandidate(change.scored(choice.gains, self.prices, choice.criterion), choice.units)
            for choice in best_choices(groups, units, accepted)
        ]

    # -- depth

    def _insert(self, insertion_point: str, number: int, layer: Layer) -> list[ScoredCandidate]:
        chosen = self.inserted.get(insertion_point)
        touched = {*self.grown, *self.removed}
        if (chosen is not None and chosen[0] != number) or any(
            s in touched for s in self.columns[insertion_point].groups
        ):
            return []
        layer_gains, groups = self._account(insertion_point)
        columns = groups[number]
        if isinstance(layer, IdentityLayer):
            return [] if chosen else [self._identity(insertion_point, number, layer, columns)]
        accepted = chosen[1] if chosen else []
        step = self.budget.round_to
        units = step - len(accepted) % step
        change = Change(
            kind="insert",
            place=insertion_point,
            detail=layer.name,
            units=units,
            width=len(accepted) + units,
            parameters=layer.parameters(units),
            layer_number=number,
        )
        return [
            ScoredCandidate(change.scored(choice.gains, self.prices, choice.criterion), choice.units, number)
            for choice in best_choices([Group(layer_gains, columns, self._onto(insertion_point))], units, accepted)
        ]

    def _identity(self, insertion_point: str, number: int, layer: IdentityLayer, columns: Tensor) -> ScoredCandidate:
        """Score of the activation parameters that an identity insertion makes live."""
        layer_gains = self.layer_gains_by_map[insertion_point]
        weight = get_linear(self.model, insertion_point).weight.detach().double()
        mixed = layer_gains.whitener.mT @ weight @ torch.linalg.inv(layer.weight.double())
        through = mixed.repeat_interleave(columns.shape[1], 1)
        change = Change(
            kind="insert",
            place=insertion_point,
            detail=layer.name,
            units=layer.insertion_point.features,
            width=layer.insertion_point.features,
            parameters=layer.parameters(),
            layer_number=number,
        )
        return ScoredCandidate(change.scored(layer_gains.diagonal(columns.flatten(), through), self.prices), (), number)

    def _account(self, insertion_point: str) -> tuple[LayerGains, list[Tensor]]:
        """Where layers before a map are scored, and which columns are theirs: at its input for a convolution."""
        if insertion_point in self.beside.layers:
            return self.beside.layers[insertion_point]
        return self.layer_gains_by_map[insertion_point], self.columns[insertion_point].layers

    def _repeat(self, block: str) -> ScoredCandidate:
        """A silent copy of a residual block after it."""
        copy = self.draw.repeats[block].copy
        parameters = sum(p.numel() for p in copy.parameters())
        change = Change(kind="insert", place=block, detail="a copy after it", units=1, width=1, parameters=parameters)
        return ScoredCandidate(change.scored(self.beside.gains(block, copy), self.prices), ())

    def _onto(self, insertion_point: str) -> Tensor | None:
        """Orthonormal basis, in whitened outputs, of what the map makes of changes of its input; None for all."""
        if insertion_point in self.beside.layers:
            return None
        weight = get_linear(self.model, insertion_point).weight.detach().double()
        if weight.shape[0] <= weight.shape[1]:
            return None
        basis: Tensor = torch.linalg.qr(self.layer_gains_by_map[insertion_point].whitener.mT @ weight).Q
        return basis

    # -- pruning

    def _prune(self, group: ChannelGroup) -> list[ScoredCandidate]:
        """The units that cost least one by one, as many as leave a width that the budget's rounding allows."""
        coupled_dims = group.dims_of("consumer")
        if (
            not all(coupled.map in self.pruning for coupled in coupled_dims)
            or len({coupled.map for coupled in coupled_dims})
            < len(coupled_dims)  # costs of two parts of one map don't add up
            or group.name in self.grown
            or any(coupled.map in self.inserted for coupled in coupled_dims)
        ):
            return []
        gone = self.removed.get(group.name, [])
        left = torch.tensor([unit for unit in range(group.width) if unit not in gone])
        step = _lcm(self.budget.round_to, group.granularity)
        count = len(left) % step or step
        if count >= len(left):
            return []
        accounts = [(self.pruning[coupled.map], self._owned(coupled)) for coupled in coupled_dims]
        cost = torch.stack([account.costs(owned[left]) for account, owned in accounts]).sum(0)
        order = cost.argsort()[:count]
        agreed = torch.stack([account.cross_fold_costs(owned[left[order]]) for account, owned in accounts]).sum()
        chosen = tuple(int(unit) for unit in left[order])
        return [self._removal_option(group, chosen, float(cost[order].sum()), float(agreed), len(left) - count)]

    def _owned(self, coupled: CoupledDim) -> Tensor:
        """Columns of a consumer's matrix that each unit owns, (width, k * taps)."""
        return columns_of(coupled, self.maps[coupled.map].kernel_numel)

    def _removal_option(
        self, group: ChannelGroup, units: tuple[int, ...], cost: float, agreed: float, width: int
    ) -> ScoredCandidate:
        change = Change(
            kind="prune",
            place=group.name,
            detail="units " + ", ".join(map(str, units)),
            units=len(units),
            width=width,
            parameters=-len(units) * self.per_unit[group.name],
        )
        gains = Gains(gain=-cost, gain_lower_bound=-cost, held_out_gain=-cost, cross_fold_gain=-agreed)
        return ScoredCandidate(change.scored(gains, self.prices), units)

    def _removal(self, group: ChannelGroup, units: Sequence[int]) -> Prune:
        coefficients = {}
        for coupled in group.dims_of("consumer"):
            if coupled.map in self.pruning:
                taken = self.pruning[coupled.map].coefficients(self._owned(coupled)[list(units)].flatten())
                biased = self.maps[coupled.map].bias is not None
                coefficients[coupled.map] = taken if biased else torch.cat([taken, taken.new_zeros(len(taken), 1)], 1)
        return Prune(group.name, tuple(units), coefficients)


@dataclass(frozen=True, kw_only=True)
class Change:
    """What one change does to the model; attributes as of `Candidate`."""

    kind: Kind
    place: str
    detail: str
    units: int
    width: int
    parameters: int
    layer_number: int | None = None

    def scored(self, gains: Gains, prices: Prices, criterion: Criterion = "held_out_gain") -> Candidate:
        """The candidate, with what the change gains and what that is held against."""
        return Candidate(
            **vars(self),
            gain=gains.gain,
            gain_lower_bound=gains.gain_lower_bound,
            held_out_gain=gains.held_out_gain,
            held_out_stderr=gains.held_out_stderr,
            cross_fold_gain=gains.cross_fold_gain,
            eta=prices.eta,
            score_limit=prices.score_limit,
            samples=prices.samples,
            loss_per_nat=prices.loss_per_nat,
            criterion=criterion,
        )


def select(move: Widen, units: Sequence[int], group: ChannelGroup) -> Widen:
    """The move that adds only some of the units."""
    chosen, values = torch.as_tensor(list(units)), {}
    for coupled in group.dims:
        if coupled.role != "consumer" and coupled.name in move.values:
            k = coupled.index.shape[1]
            index = (chosen[:, None] * k + torch.arange(k)).flatten()
            values[coupled.name] = move.values[coupled.name].index_select(coupled.dim, index)
    return Widen(move.group, len(units), values)


def _lcm(a: int, b: int) -> int:
    return int(torch.lcm(torch.tensor(a), torch.tensor(b)))
