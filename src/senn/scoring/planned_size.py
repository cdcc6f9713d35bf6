"""Size of the model with changes that haven't been made yet: its parameters by shapes, its operations by a trial."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from senn.candidates.candidate_set import CandidateSet
from senn.candidates.new_layers import IdentityLayer
from senn.errors import in_one_line, warn
from senn.flops import known_flops
from senn.graph import ChannelGroup, DependencyGraph
from senn.graph.model_copy import copy_model
from senn.policies import Budget, Candidate, Kind
from senn.scoring.global_batch import Samples
from senn.surgery import Move, Prune, Widen, apply_moves
from senn.surgery.plan import added_parameters

_Change = tuple[Kind, str, int | None]
"""Kind, place and number of the layer."""


class PlannedSize:
    """Parameters and operations of the model with some candidates.

    The operations of a change follow from no rule that would hold for all: attention's grow with heads, a layer's with
    the pixels that it is applied to, those of a dimension that two groups share with their product. So a copy of the
    model is changed by surgery, runs one sample, and is changed back.

    Args:
        model: the model as it is.
        graph: what in it can change.
        candidate_set: the candidates that were sampled.
        budget: limits of the size.
        sample: gives one sample; called only if operations are counted.
        counts_flops: True to count operations though the budget doesn't limit them.

    Attributes:
        counts_flops: True if operations are counted.

    Raises:
        UnsupportedError: operations are to be counted, and the model has some whose work isn't known.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        graph: DependencyGraph,
        candidate_set: CandidateSet,
        budget: Budget,
        sample: Callable[[], Samples],
        counts_flops: bool = False,
    ) -> None:
        self.model, self.graph, self.candidate_set = model, graph, candidate_set
        self.budget = budget
        self.counts_flops = counts_flops or budget.max_flops is not None
        self._present = sum(parameter.numel() for parameter in model.parameters())
        self._known: dict[frozenset[tuple[_Change, int]], int | None] = {}
        if self.counts_flops:
            self._trial, self._inputs = copy_model(model), sample()[0]
            flops = self._known[frozenset()] = known_flops(self._trial, self._inputs)
            self._flops_per_parameter = flops / max(self._present, 1)

    def allows(self, candidate: Candidate, accepted: Sequence[Candidate]) -> bool:
        """Return True if the model stays within the budget.

        Removals don't make room within a round: they may turn out to cost too much, and be left out.

        Args:
            candidate: what would be accepted next.
            accepted: what is accepted already.
        """
        if candidate.kind == "prune" or not self.budget.allows_width(candidate):
            return candidate.kind == "prune"
        additions = [*(one for one in accepted if one.kind != "prune"), candidate]
        flops = None if self.budget.max_flops is None else self.flops(additions)
        # no sum of the candidates' own numbers: where two of them meet in one map, that has further weights
        return self.budget.allows_size(self.parameters(additions), flops)

    def counted(self, candidate: Candidate, accepted: Sequence[Candidate]) -> Candidate | None:
        """Return a candidate with its operations where these are counted; None if they can't be.

        Args:
            candidate: what would be accepted next.
            accepted: what is accepted already.
        """
        if not self.counts_flops:
            return candidate
        before, after = self.flops(accepted), self.flops([*accepted, candidate])
        if before is None or after is None:
            return None
        ratio = self._flops_per_parameter
        return replace(candidate, flops=after - before, flops_per_parameter=ratio)

    def parameters(self, changes: Sequence[Candidate]) -> int:
        """Return the number of parameters of the model with these changes."""
        units: Counter[ChannelGroup] = Counter()
        others = 0
        for one in changes:
            if one.kind == "insert":
                others += one.parameters  # of its own, whatever else changes
            else:
                sign = -1 if one.kind == "prune" else 1
                units[self.graph.group(one.place)] += sign * one.units
        return self._present + others + added_parameters(self.model, units)

    def flops(self, changes: Sequence[Candidate]) -> int | None:
        """Return the operations of a forward pass with these changes, per sample; None if they can't be counted."""
        units: Counter[_Change] = Counter()
        for one in changes:
            units[one.kind, one.place, one.layer_number] += one.units
        key = frozenset(units.items())
        if key not in self._known:
            self._known[key] = self._measure(units)
        return self._known[key]

    def _measure(self, units: Mapping[_Change, int]) -> int | None:
        # Making a layer draws initial weights.
        with torch.random.fork_rng(devices=[]):
            moves = [self._move(*change, number) for change, number in units.items()]
        try:
            log = apply_moves(self._trial, moves, self.graph)
            try:
                return known_flops(self._trial, self._inputs)
            finally:
                log.undo()
        except Exception as error:
            places = ", ".join(dict.fromkeys(place for _, place, _ in units))
            warn(f"operations with a change of {places} can't be counted: {in_one_line(error)}")
            return None

    def _move(self, kind: Kind, place: str, layer: int | None, units: int) -> Move:
        """Return a move of so many units: how many there are counts, and not which."""
        candidates, which = self.candidate_set, range(units)
        if kind == "prune":
            return Prune(place, tuple(which))
        if kind == "widen":
            return select(candidates.of_group(place), which, self.graph.group(place))
        if layer is None:
            return candidates.repeats[place]
        found = candidates.layers[place][layer]
        return found.move() if isinstance(found, IdentityLayer) else found.move(which)


def select(move: Widen, units: Sequence[int], group: ChannelGroup) -> Widen:
    """Restrict a move to some of its units.

    Args:
        move: a widening of the group.
        units: numbers of the units to keep.
        group: the group.
    """
    chosen, values = torch.as_tensor(list(units)), {}
    for coupled in group.dims:
        if coupled.name in move.values and (coupled.role == "consumer") == coupled.behind_norm:
            k = coupled.index.shape[1]  # entries of each unit, one after the other
            index = (chosen[:, None] * k + torch.arange(k)).flatten()
            values[coupled.name] = move.values[coupled.name].index_select(coupled.dim, index)
    return Widen(move.group, len(units), values)
