"""Pool of the scored candidates of a round, kept up to date while some of them are accepted.

Width, depth and pruning are read off the same moments: candidate units are dormant columns of the maps that would read
them, layers are virtual columns of the map before which they would go, pruning removes existing columns.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from senn.candidates.candidate_set import CandidateSet
from senn.graph import ChannelGroup, DependencyGraph, LinearMap
from senn.policies import Budget, Candidate, CandidateKey
from senn.scoring.accounts import Accounts
from senn.scoring.changes import Change, Prices, ScoredCandidate
from senn.scoring.column_layout import ColumnLayout
from senn.scoring.global_batch import Samples
from senn.scoring.greedy import Consumer, best_choices, scored_choices
from senn.scoring.insertions import Insertions
from senn.scoring.owners import exchange_scores
from senn.scoring.planned_size import PlannedSize, select
from senn.scoring.removals import Removals
from senn.surgery import Move, parameters_per_unit


class CandidatePool:
    """All candidates of one round.

    Args:
        model: the model as it is.
        graph: what in it can change.
        maps: the linear maps that are read, by name.
        candidate_set: the candidates that were sampled.
        accounts: what is known of each linear map, and which rank knows it.
        columns: layout of each linear map's columns.
        prices: what gains are compared with; their `eta` is the network's before anything is accepted.
        budget: limits of the network's size.
        sample: gives one sample, on which operations are counted.
        counts_flops: True to count operations though the budget doesn't limit them.

    Attributes:
        accepted: the candidates accepted so far, in order.
        size: the model's size with some of the candidates.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        graph: DependencyGraph,
        maps: Mapping[str, LinearMap],
        candidate_set: CandidateSet,
        accounts: Accounts,
        columns: Mapping[str, ColumnLayout],
        prices: Prices,
        budget: Budget,
        sample: Callable[[], Samples],
        counts_flops: bool = False,
    ) -> None:
        self.model, self.graph, self.maps, self.candidate_set = model, graph, maps, candidate_set
        self.owners, self.eta_by_map = accounts.owners, accounts.eta_by_map
        self.layer_gains, self.stream, self.columns = accounts.layer_gains, accounts.stream, columns
        self.prices, self.budget = prices, budget
        budget.check_places(_places(graph))
        self.size = PlannedSize(
            model=model,
            graph=graph,
            candidate_set=candidate_set,
            budget=budget,
            sample=sample,
            counts_flops=counts_flops,
        )
        self.per_unit = {group.name: parameters_per_unit(model, group) for group in graph.groups}
        self.grown: dict[str, list[int]] = {}
        self.repeated: list[str] = []
        self.accepted: list[Candidate] = []
        self.removals = Removals(
            graph=graph, maps=maps, accounts=accounts, per_unit=self.per_unit, budget=budget
        )
        self.insertions = Insertions(
            model=model,
            layers=candidate_set.layers,
            accounts=accounts,
            columns=columns,
            budget=budget,
        )
        self._offered: dict[CandidateKey, ScoredCandidate] = {}
        # Figures of a place stand until something that shares a linear map with it is accepted
        self._scored_groups: dict[str, list[ScoredCandidate]] = {}
        self._scored_points: dict[str, list[ScoredCandidate]] = {}
        self._scored_blocks: dict[str, list[ScoredCandidate]] = {}

    @property
    def eta(self) -> float:
        """The network's expansion score with all that is accepted."""
        return self.prices.eta

    def candidates(self) -> list[Candidate]:
        """Return the best candidates of each kind at each place, given all that is accepted."""
        if self.repeated:
            # The copy is one of the block as it is now, so nothing else may change in this round.
            return []
        self._score()
        found: list[ScoredCandidate] = []
        for scored in (*self._scored_groups.values(), *self._scored_points.values()):
            found += scored
        if not self.accepted:
            for scored in self._scored_blocks.values():
                found += scored
        allowed = [one for one in found if self.size.allows(one.candidate, self.accepted)]
        offered: list[Candidate] = []
        self._offered = {}
        for one in allowed:
            counted = self.size.counted(one.candidate, self.accepted)
            if counted is not None:
                assert counted.key not in self._offered, "two candidates with one key"
                self._offered[counted.key] = one
                offered.append(replace(counted, eta=self.eta))
        return offered

    def commit(self, candidate: Candidate) -> None:
        """Accept a candidate of the last `candidates()`, or a copy of one, and bring every figure up to date."""
        scored = self._offered[candidate.key]
        place = candidate.place
        if candidate.kind == "prune":
            self.removals.commit(place, scored.units)
        elif candidate.kind == "widen":
            self.grown.setdefault(place, []).extend(scored.units)
            for name, columns in self._readers(place):
                for unit in scored.units if name in self.layer_gains else ():
                    self.layer_gains[name].eliminate(columns[unit])
            for unit in scored.units if place in self.stream.units else ():
                self.stream.units[place].eliminate(torch.tensor([unit]))
        elif scored.layer is None:
            self.repeated.append(place)
        else:
            self.insertions.commit(place, scored.layer, scored.units)
        if candidate.kind == "insert":
            self._forget_point(place)
        else:
            self._forget_group(place)
        if candidate.kind != "prune":
            # Theorem 3.1 holds only if eta counts what was accepted before (paper, section 3.3).
            self.prices = replace(self.prices, eta=self.eta + candidate.gain)
        self.accepted.append(candidate)

    def to_moves(self, removals: int | None = None) -> list[Move]:
        """Return the moves that carry out what is accepted.

        Args:
            removals: how many of the removals to carry out, the first ones; None for all.
        """
        moves: list[Move] = []
        for name, units in self.grown.items():
            moves.append(select(self.candidate_set.of_group(name), units, self.graph.group(name)))
        moves += self.removals.to_moves(removals)
        moves += self.insertions.to_moves()
        moves += [self.candidate_set.repeats[block] for block in self.repeated]
        return moves

    def _score(self) -> None:
        """Score every place of which nothing is known, on the rank that has its account, and tell all others."""
        groups = [one for one in self.graph.groups if one.name not in self._scored_groups]
        points = [one for one in self.candidate_set.layers if one not in self._scored_points]
        blocks = [one for one in self.stream.outputs if one not in self._scored_blocks]
        if not (groups or points or blocks):
            return
        scored = exchange_scores(
            self.owners,
            {group.name: functools.partial(self._widen, group) for group in groups},
            {point: functools.partial(self._insert, point) for point in points},
            {block: functools.partial(self._repeat, block) for block in blocks},
        )
        removals = self.removals.candidates(
            [one for one in groups if self._may_shrink(one)], self.prices
        )
        for group in groups:
            self._scored_groups[group.name] = scored[0][group.name] + removals.get(group.name, [])
        self._scored_points |= {point: scored[1][point] for point in points}
        self._scored_blocks |= {block: scored[2][block] for block in blocks}

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

    def _consumers(self, group: str) -> list[Consumer]:
        """What scores a group's units: the maps that read them, or, of a stream, what writes them, transposed.

        Gains of the maps that read a unit add: the Fisher matrix is taken block-diagonal. Empty on ranks without their
        accounts.
        """
        if group in self.candidate_set.streams:
            every = torch.arange(self.candidate_set.streams[group].move.units)[:, None]
            found = self.stream.units.get(group)
            return [] if found is None else [Consumer(found, every)]
        readers = self._readers(group)
        is_own = readers and readers[0][0] in self.layer_gains
        return [Consumer(self.layer_gains[name], of) for name, of in readers] if is_own else []

    def _widen(self, group: ChannelGroup) -> list[ScoredCandidate]:
        """The best next units of a group by each criterion."""
        consumers = self._consumers(group.name)
        readers = [coupled.map for coupled in group.dims_of("consumer")]
        # A group either grows or shrinks in a round, and layers before its readers were scored
        # on the width that it has.
        has_layer = any(name in self.insertions.units for name in readers)
        if not consumers or has_layer or group.name in self.removals.units:
            return []
        accepted = self.grown.get(group.name, [])
        width = group.width + len(accepted)
        step = math.lcm(self.budget.round_to, group.granularity)
        units = step - width % step  # up to the next width that is allowed
        change = Change(
            kind="widen",
            place=group.name,
            detail=f"{units} of {len(consumers[0].columns)} candidates",
            units=units,
            width=width + units,
            parameters=units * self.per_unit[group.name],
        )
        choices = best_choices(consumers, units, accepted)
        return scored_choices(change, choices, self.prices)

    def _may_shrink(self, group: ChannelGroup) -> bool:
        """True if nothing was added at a group or before the maps that read it in this round."""
        readers = group.dims_of("consumer")
        has_layer = any(coupled.map in self.insertions.units for coupled in readers)
        return not has_layer and group.name not in self.grown

    # -- depth

    def _insert(self, point: str) -> list[ScoredCandidate]:
        """Score the next units of layers before a map, unless units that it reads came or went in this round."""
        groups = [*self.columns[point].groups, *self._streams_read_by(point)]
        if point not in self.layer_gains:
            return []
        if any(name in self.grown or name in self.removals.units for name in groups):
            return []
        return self.insertions.candidates(point, self.prices)

    def _streams_read_by(self, name: str) -> list[str]:
        """Streams with candidate units that a map reads."""
        return [
            stream
            for stream in self.candidate_set.streams
            if any(one.map == name for one in self.graph.group(stream).dims_of("consumer"))
        ]

    def _repeat(self, block: str) -> list[ScoredCandidate]:
        """Score a function-preserving copy of a residual block after it."""
        if not self.owners.owns_block(block):
            return []
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
        return [ScoredCandidate(change.scored(self.stream.gains(block, copy), self.prices), ())]


def _places(graph: DependencyGraph) -> list[str]:
    """Names of all places, also of those that can't change."""
    return [
        *(group.name for group in graph.groups),
        *(point.module for point in graph.insertion_points),
        *(block.module for block in graph.residual_blocks),
        *(refusal.place for refusal in graph.refusals),
    ]
