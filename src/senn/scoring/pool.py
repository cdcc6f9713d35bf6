"""Pool of the scored candidates of a round, kept up to date while some of them are accepted.

Width, depth and pruning are read off the same moments: candidate units are dormant columns of the maps that would read
them, layers are virtual columns of the map before which they would go, pruning removes existing columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from senn.candidates.candidate_set import CandidateSet
from senn.candidates.new_layers import IdentityLayer, Layer
from senn.graph import ChannelGroup, DependencyGraph, LinearMap, get_linear
from senn.policies import Budget, Candidate, CandidateKey
from senn.scoring.changes import Change, Prices, ScoredCandidate
from senn.scoring.column_layout import ColumnLayout
from senn.scoring.gains import LayerGains
from senn.scoring.greedy import Choice, Consumer, best_choices
from senn.scoring.pruning_costs import PruningCosts
from senn.scoring.removals import Removals
from senn.scoring.stream import StreamCandidates
from senn.surgery import Move, Widen, parameters_per_unit


class CandidatePool:
    """All candidates of one round.

    Args:
        model: the model as it is.
        graph: what in it can change.
        maps: the linear maps that are read, by name.
        candidate_set: the candidates that were sampled.
        layer_gains: gains of each linear map's columns.
        pruning_costs: costs of each linear map's columns; none offers no pruning.
        columns: layout of each linear map's columns.
        stream: candidates that would be added to a residual stream.
        prices: what gains are compared with; their `eta` is the network's before anything is accepted.
        budget: limits of the network's size.

    Attributes:
        accepted: the candidates accepted so far, in order.
        parameters: number of parameters of the model with these.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        graph: DependencyGraph,
        maps: Mapping[str, LinearMap],
        candidate_set: CandidateSet,
        layer_gains: Mapping[str, LayerGains],
        pruning_costs: Mapping[str, PruningCosts],
        columns: Mapping[str, ColumnLayout],
        stream: StreamCandidates,
        prices: Prices,
        budget: Budget,
    ) -> None:
        self.model, self.graph, self.maps, self.candidate_set = model, graph, maps, candidate_set
        self.layer_gains, self.pruning_costs, self.columns, self.stream = (
            layer_gains,
            pruning_costs,
            columns,
            stream,
        )
        self.prices, self.budget = prices, budget
        self.parameters = sum(p.numel() for p in model.parameters())
        self.per_unit = {group.name: parameters_per_unit(model, group) for group in graph.groups}
        self.grown: dict[str, list[int]] = {}
        self.inserted: dict[str, tuple[int, list[int]]] = {}
        self.repeated: list[str] = []
        self.accepted: list[Candidate] = []
        self.removals = Removals(
            graph=graph, maps=maps, costs=pruning_costs, per_unit=self.per_unit, budget=budget
        )
        self._offered: dict[CandidateKey, ScoredCandidate] = {}
        # figures of a place stand until something that shares a linear map with it is accepted
        self._scored_groups: dict[str, list[ScoredCandidate]] = {}
        self._scored_points: dict[str, list[ScoredCandidate]] = {}

    @property
    def eta(self) -> float:
        """The network's expansion score with all that is accepted."""
        return self.prices.eta

    def candidates(self) -> list[Candidate]:
        """The best candidates of each kind at each place, given all that is accepted."""
        if (
            self.repeated
        ):  # the copy is one of the block as it is now, so nothing else may change in this round
            return []
        for group in self.graph.groups:
            if group.name not in self._scored_groups:
                self._scored_groups[group.name] = [*self._widen(group), *self._remove(group)]
        for point, layers in self.candidate_set.layers.items():
            if point not in self._scored_points:
                scored = [self._insert(point, number, layer) for number, layer in enumerate(layers)]
                self._scored_points[point] = [one for several in scored for one in several]
        found = [one for several in self._scored_groups.values() for one in several]
        found += [one for several in self._scored_points.values() for one in several]
        if not self.accepted:
            found += [self._repeat(block) for block in self.stream.repeats]
        allowed = [one for one in found if self.budget.allows(one.candidate, self.parameters)]
        self._offered = {one.candidate.key: one for one in allowed}
        assert len(self._offered) == len(allowed), "two candidates with one key"
        return [replace(one.candidate, eta=self.eta) for one in allowed]

    def commit(self, candidate: Candidate) -> None:
        """Accept a candidate of the last `candidates()`, or a copy of one, and bring every figure up to date."""
        scored = self._offered[candidate.key]
        place = candidate.place
        if candidate.kind == "prune":
            self.removals.commit(place, scored.units)
        elif candidate.kind == "widen":
            self.grown.setdefault(place, []).extend(scored.units)
            for name, columns in self._readers(place):
                for unit in scored.units:
                    self.layer_gains[name].eliminate(columns[unit])
        elif scored.layer is None:
            self.repeated.append(place)
        else:
            self._commit_layer(place, scored.layer, scored.units)
        if candidate.kind == "insert":
            self._forget_point(place)
        else:
            self._forget_group(place)
        if candidate.kind != "prune":
            # Theorem 3.1 holds only if eta counts what was accepted before (paper, section 3.3).
            self.prices = replace(self.prices, eta=self.eta + candidate.gain)
        # The budget counts what is accepted, too.
        self.parameters += candidate.parameters
        self.accepted.append(candidate)

    def to_moves(self, removals: int | None = None) -> list[Move]:
        """Moves that carry out what is accepted.

        Args:
            removals: how many of the removals to carry out, the first ones; None for all.
        """
        moves: list[Move] = []
        for name, units in self.grown.items():
            moves.append(select(self.candidate_set.widen[name], units, self.graph.group(name)))
        moves += self.removals.to_moves(removals)
        for point, (number, units) in self.inserted.items():
            layer = self.candidate_set.layers[point][number]
            moves.append(layer.move() if isinstance(layer, IdentityLayer) else layer.move(units))
        moves += [self.candidate_set.repeats[block] for block in self.repeated]
        return moves

    def _commit_layer(self, place: str, number: int, units: tuple[int, ...]) -> None:
        self.inserted.setdefault(place, (number, []))[1].extend(units)
        if isinstance(self.candidate_set.layers[place][number], IdentityLayer):
            return
        layer_gains, columns = self._columns_of_layers(place)
        for unit in units:
            layer_gains.eliminate(columns[number][unit], self._output_basis(place))

    def _forget_point(self, point: str) -> None:
        """Score anew whatever shares the linear map after an insertion point."""
        self._forget_readers({point})

    def _forget_group(self, name: str) -> None:
        """Score anew a group and whatever shares a linear map with it."""
        self._forget_readers(
            {coupled.map for coupled in self.graph.group(name).dims_of("consumer")}
        )
        self._scored_groups.pop(name, None)

    def _forget_readers(self, maps: set[str]) -> None:
        for name in maps:
            self._scored_points.pop(name, None)
        for group in self.graph.groups:
            if any(coupled.map in maps for coupled in group.dims_of("consumer")):
                self._scored_groups.pop(group.name, None)

    # -- width

    def _readers(self, group: str) -> list[tuple[str, Tensor]]:
        """Scored maps that read a group, with the columns of its candidates, (units, p)."""
        return [
            (name, columns.groups[group])
            for name, columns in self.columns.items()
            if group in columns.groups
        ]

    def _widen(self, group: ChannelGroup) -> list[ScoredCandidate]:
        """The best next units of a group by each criterion."""
        readers = self._readers(group.name)
        # A group either grows or shrinks in a round, and layers before its readers were scored
        # on the width that it has.
        is_blocked = group.name in self.removals.units or any(
            name in self.inserted for name, _ in readers
        )
        if not readers or is_blocked:
            return []
        accepted = self.grown.get(group.name, [])
        width = group.width + len(accepted)
        step = math.lcm(self.budget.round_to, group.granularity)
        units = step - width % step  # up to the next width that is allowed
        # Gains of the maps that read a unit add: the Fisher matrix is taken block-diagonal.
        consumers = [Consumer(self.layer_gains[name], columns) for name, columns in readers]
        change = Change(
            kind="widen",
            place=group.name,
            detail=f"{units} of {len(consumers[0].columns)} candidates",
            units=units,
            width=width + units,
            parameters=units * self.per_unit[group.name],
        )
        return self._chosen(change, best_choices(consumers, units, accepted))

    def _chosen(self, change: Change, choices: Iterable[Choice]) -> list[ScoredCandidate]:
        return [
            ScoredCandidate(
                change.scored(choice.gains, self.prices, choice.criterion),
                choice.units,
                change.layer_number,
            )
            for choice in choices
        ]

    def _remove(self, group: ChannelGroup) -> list[ScoredCandidate]:
        """The next units to remove from a group, unless something was added there in this round."""
        readers = group.dims_of("consumer")
        if group.name in self.grown or any(coupled.map in self.inserted for coupled in readers):
            return []
        return self.removals.candidates(group, self.prices)

    # -- depth

    def _insert(self, point: str, number: int, layer: Layer) -> list[ScoredCandidate]:
        """The best next units of a layer before a map, by each criterion; of an identity insertion all at once."""
        started, units = self.inserted.get(point, (number, []))
        has_changed = any(
            name in self.grown or name in self.removals.units for name in self.columns[point].groups
        )
        if started != number or has_changed:
            return []
        layer_gains, columns = self._columns_of_layers(point)
        if isinstance(layer, IdentityLayer):
            is_done = point in self.inserted
            return [] if is_done else [self._insert_identity(point, number, layer, columns[number])]
        count = self.budget.round_to - len(units) % self.budget.round_to
        change = Change(
            kind="insert",
            place=point,
            detail=layer.name,
            units=count,
            width=len(units) + count,
            parameters=layer.parameters(count),
            layer_number=number,
        )
        consumer = Consumer(layer_gains, columns[number], self._output_basis(point))
        return self._chosen(change, best_choices([consumer], count, units))

    def _insert_identity(
        self, point: str, number: int, layer: IdentityLayer, columns: Tensor
    ) -> ScoredCandidate:
        """Score the activation parameters that an identity insertion makes live."""
        layer_gains = self.layer_gains[point]
        weight = get_linear(self.model, point).weight.detach().double()
        # a unit h of the new layer reaches z through W B^-1, whitened by L^T with S = L L^T
        mixed = layer_gains.whitener.mT @ weight @ torch.linalg.inv(layer.weight.double())
        through = mixed.repeat_interleave(columns.shape[1], 1)
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
        return ScoredCandidate(change.scored(gains, self.prices), (), number)

    def _columns_of_layers(self, point: str) -> tuple[LayerGains, list[Tensor]]:
        """Gains that score the layers before a map, and each layer's columns: a convolution's are at its input."""
        if point in self.stream.layers:
            return self.stream.layers[point]
        return self.layer_gains[point], self.columns[point].layers

    def _repeat(self, block: str) -> ScoredCandidate:
        """Score a silent copy of a residual block after it."""
        # The copy computes zero: its output parameters are, and become live.
        copy = self.candidate_set.repeats[block].copy
        parameters = sum(p.numel() for p in copy.parameters())
        change = Change(
            kind="insert",
            place=block,
            detail="a copy after it",
            units=1,
            width=1,
            parameters=parameters,
        )
        return ScoredCandidate(change.scored(self.stream.gains(block, copy), self.prices), ())

    def _output_basis(self, point: str) -> Tensor | None:
        """Orthonormal basis (m, r), in whitened outputs, of what changes of a map's input can reach; None for all."""
        if point in self.stream.layers:
            return None
        weight = get_linear(self.model, point).weight.detach().double()
        # W has full row rank then: every output can be reached.
        if weight.shape[0] <= weight.shape[1]:
            return None
        basis: Tensor = torch.linalg.qr(self.layer_gains[point].whitener.mT @ weight).Q
        return basis


def select(move: Widen, units: Sequence[int], group: ChannelGroup) -> Widen:
    """Restrict a move to some of its units.

    Args:
        move: a widening of the group.
        units: numbers of the units to keep.
        group: the group.
    """
    chosen, values = torch.as_tensor(list(units)), {}
    for coupled in group.dims:
        if coupled.role != "consumer" and coupled.name in move.values:
            k = coupled.index.shape[1]  # entries of each unit, one after the other
            index = (chosen[:, None] * k + torch.arange(k)).flatten()
            values[coupled.name] = move.values[coupled.name].index_select(coupled.dim, index)
    return Widen(move.group, len(units), values)
