"""The candidates of one consideration, scored, and kept up to date while some are accepted.

Width, depth and pruning are read off the same moments: candidate units are dormant columns of their consumers, layers
are virtual columns of the map before which they would go, pruning removes existing columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from senn.candidates.candidate_set import Draw
from senn.candidates.new_layers import IdentityLayer, Layer
from senn.policy import Budget, Candidate, CandidateKey, Criterion, Kind
from senn.scoring.column_layout import Columns
from senn.scoring.gains import Gains, Ledger, Prices
from senn.scoring.greedy import Group, best_choices
from senn.scoring.pruning_costs import PruningLedger
from senn.scoring.stream import Beside
from senn.structure import LinearMap, Slot, Space, Structure, linear_map
from senn.structure import columns as columns_of
from senn.surgery import Move, Prune, Widen, parameters_per_unit


@dataclass(eq=False)
class Option:
    """A candidate and what accepting it means."""

    candidate: Candidate
    chosen: tuple[int, ...]
    layer: int | None = None


class Menu:
    """All candidates of one consideration.

    Args:
        model: the model as it is.
        structure: what in it can change.
        maps: the linear maps that are read, by name.
        draw: the candidates that were drawn.
        ledgers: by linear map.
        pruning: by linear map; empty offers no pruning.
        columns: by linear map.
        beside: accounts of what could be added beside streams.
        prices: what gains are held against; their `eta` is the network's before anything is accepted.
        budget: limits.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        maps: Mapping[str, LinearMap],
        draw: Draw,
        ledgers: Mapping[str, Ledger],
        pruning: Mapping[str, PruningLedger],
        columns: Mapping[str, Columns],
        beside: Beside,
        *,
        prices: Prices,
        budget: Budget,
    ) -> None:
        self.model, self.structure, self.maps, self.draw = model, structure, maps, draw
        self.ledgers, self.pruning, self.columns, self.beside = ledgers, pruning, columns, beside
        self.prices, self.budget = prices, budget
        self.parameters = sum(p.numel() for p in model.parameters())
        self.per_unit = {space.name: parameters_per_unit(model, space) for space in structure.spaces}
        self.grown: dict[str, list[int]] = {}
        self.inserted: dict[str, tuple[int, list[int]]] = {}
        self.removed: dict[str, list[int]] = {}
        self.repeated: list[str] = []
        self.accepted: list[Candidate] = []
        self._removals: list[tuple[str, tuple[int, ...]]] = []
        self._options: dict[CandidateKey, Option] = {}
        self._scored: dict[str, list[Option]] = {}
        self._scored_sites: dict[str, list[Option]] = {}

    def candidates(self) -> list[Candidate]:
        """The best candidates of each kind at each place, with all that is accepted already taken into account."""
        if self.repeated:  # a copy is one of the block as it is now, so nothing else changes in this round
            return []
        for space in self.structure.spaces:
            if space.name not in self._scored:
                self._scored[space.name] = [*self._widen(space), *self._prune(space)]
        for site, layers in self.draw.layers.items():
            if site not in self._scored_sites:
                found = [self._insert(site, number, layer) for number, layer in enumerate(layers)]
                self._scored_sites[site] = [option for options in found for option in options]
        options = [o for scored in (self._scored, self._scored_sites) for place in scored.values() for o in place]
        options += [self._repeat(block) for block in self.beside.repeats] if not self.accepted else []
        offered = [option for option in options if self.budget.allows(option.candidate, self.parameters)]
        self._options = {option.candidate.key: option for option in offered}
        assert len(self._options) == len(offered), "two candidates with one key"
        return [replace(option.candidate, eta=self.eta) for option in offered]

    @property
    def eta(self) -> float:
        """The network's expansion score now, with all that is accepted."""
        return self.prices.eta

    def accept(self, candidate: Candidate) -> None:
        """Take a candidate of the last `candidates()`, or a copy of one, as done and bring every figure up to date."""
        option = self._options[candidate.key]
        place = candidate.place
        if candidate.kind == "prune":
            self.removed.setdefault(place, []).extend(option.chosen)
            self._removals.append((place, option.chosen))
            for slot in self.structure.space(place).of("consumer"):
                if slot.map in self.pruning:
                    self.pruning[slot.map].remove(self._owned(slot)[list(option.chosen)].flatten())
        elif candidate.kind == "widen":
            self.grown.setdefault(place, []).extend(option.chosen)
            for name, columns in self._consumers(place):
                for unit in option.chosen:
                    self.ledgers[name].accept(columns[unit])
        elif option.layer is None:
            self.repeated.append(place)
        else:
            self.inserted.setdefault(place, (option.layer, []))[1].extend(option.chosen)
            layer = self.draw.layers[place][option.layer]
            if not isinstance(layer, IdentityLayer):
                ledger, groups = self._account(place)
                for unit in option.chosen:
                    ledger.accept(groups[option.layer][unit], self._onto(place))
        self._forget(place if candidate.kind == "insert" else None, None if candidate.kind == "insert" else place)
        if candidate.kind != "prune":
            self.prices = replace(self.prices, eta=self.eta + candidate.gain)
        self.parameters += candidate.parameters
        self.accepted.append(candidate)

    def _forget(self, site: str | None, space: str | None) -> None:
        """Score anew what shares a linear map with a place that has changed."""
        maps = {site} if space is None else {slot.map for slot in self.structure.space(space).of("consumer")}
        for name in maps:
            self._scored_sites.pop(name or "", None)
        for other in self.structure.spaces:
            if other.name == space or any(slot.map in maps for slot in other.of("consumer")):
                self._scored.pop(other.name, None)

    def moves(self, removals: int | None = None) -> list[Move]:
        """What has been accepted, as moves for the surgery; of the removals the first so many, None for all."""
        moves: list[Move] = []
        for name, units in self.grown.items():
            moves.append(select(self.draw.widen[name], units, self.structure.space(name)))
        removed: dict[str, list[int]] = {}
        for name, gone in self._removals[:removals]:
            removed.setdefault(name, []).extend(gone)
        for name, units in removed.items():
            moves.append(self._removal(self.structure.space(name), sorted(units)))
        for site, (number, units) in self.inserted.items():
            layer = self.draw.layers[site][number]
            moves.append(layer.move() if isinstance(layer, IdentityLayer) else layer.move(units))
        moves += [self.draw.repeats[block] for block in self.repeated]
        return moves

    # -- width

    def _consumers(self, space: str) -> list[tuple[str, Tensor]]:
        """The scored maps that read a space, with the columns of its candidates."""
        return [(name, columns.spaces[space]) for name, columns in self.columns.items() if space in columns.spaces]

    def _widen(self, space: Space) -> list[Option]:
        """The best next units of a space: by held-out gain and by the bound, which may be different ones."""
        consumers = self._consumers(space.name)
        blocked = space.name in self.removed or any(name in self.inserted for name, _ in consumers)
        if not consumers or blocked:
            return []
        accepted = self.grown.get(space.name, [])
        width = space.width + len(accepted)
        step = _lcm(self.budget.round_to, space.quantum)
        units = step - width % step
        groups = [Group(self.ledgers[name], columns) for name, columns in consumers]
        change = Change(
            kind="widen",
            place=space.name,
            detail=f"{units} of {len(groups[0].columns)} candidates",
            units=units,
            width=width + units,
            parameters=units * self.per_unit[space.name],
        )
        return [
            Option(change.scored(choice.gains, self.prices, choice.criterion), choice.units)
            for choice in best_choices(groups, units, accepted)
        ]

    # -- depth

    def _insert(self, site: str, number: int, layer: Layer) -> list[Option]:
        chosen = self.inserted.get(site)
        touched = {*self.grown, *self.removed}
        if (chosen is not None and chosen[0] != number) or any(s in touched for s in self.columns[site].spaces):
            return []
        ledger, groups = self._account(site)
        columns = groups[number]
        if isinstance(layer, IdentityLayer):
            return [] if chosen else [self._identity(site, number, layer, columns)]
        accepted = chosen[1] if chosen else []
        step = self.budget.round_to
        units = step - len(accepted) % step
        change = Change(
            kind="insert",
            place=site,
            detail=layer.name,
            units=units,
            width=len(accepted) + units,
            parameters=layer.parameters(units),
            layer_number=number,
        )
        return [
            Option(change.scored(choice.gains, self.prices, choice.criterion), choice.units, number)
            for choice in best_choices([Group(ledger, columns, self._onto(site))], units, accepted)
        ]

    def _identity(self, site: str, number: int, layer: IdentityLayer, columns: Tensor) -> Option:
        """Score of the activation parameters that an identity insertion makes live."""
        ledger = self.ledgers[site]
        weight = linear_map(self.model, site).weight.detach().double()
        mixed = ledger.whitener.mT @ weight @ torch.linalg.inv(layer.weight.double())
        through = mixed.repeat_interleave(columns.shape[1], 1)
        change = Change(
            kind="insert",
            place=site,
            detail=layer.name,
            units=layer.site.features,
            width=layer.site.features,
            parameters=layer.parameters(),
            layer_number=number,
        )
        return Option(change.scored(ledger.diagonal(columns.flatten(), through), self.prices), (), number)

    def _account(self, site: str) -> tuple[Ledger, list[Tensor]]:
        """Where layers before a map are scored, and which columns are theirs: at its input for a convolution."""
        if site in self.beside.layers:
            return self.beside.layers[site]
        return self.ledgers[site], self.columns[site].layers

    def _repeat(self, block: str) -> Option:
        """A silent copy of a residual block after it."""
        copy = self.draw.repeats[block].copy
        parameters = sum(p.numel() for p in copy.parameters())
        change = Change(kind="insert", place=block, detail="a copy after it", units=1, width=1, parameters=parameters)
        return Option(change.scored(self.beside.worth(block, copy), self.prices), ())

    def _onto(self, site: str) -> Tensor | None:
        """Orthonormal basis, in whitened outputs, of what the map makes of changes of its input; None for all."""
        if site in self.beside.layers:
            return None
        weight = linear_map(self.model, site).weight.detach().double()
        if weight.shape[0] <= weight.shape[1]:
            return None
        basis: Tensor = torch.linalg.qr(self.ledgers[site].whitener.mT @ weight).Q
        return basis

    # -- pruning

    def _prune(self, space: Space) -> list[Option]:
        """The units that cost least one by one, as many as leave a width that the budget's rounding allows."""
        slots = space.of("consumer")
        if (
            not all(slot.map in self.pruning for slot in slots)
            or len({slot.map for slot in slots}) < len(slots)  # costs of two parts of one map don't add up
            or space.name in self.grown
            or any(slot.map in self.inserted for slot in slots)
        ):
            return []
        gone = self.removed.get(space.name, [])
        left = torch.tensor([unit for unit in range(space.width) if unit not in gone])
        step = _lcm(self.budget.round_to, space.quantum)
        count = len(left) % step or step
        if count >= len(left):
            return []
        accounts = [(self.pruning[slot.map], self._owned(slot)) for slot in slots]
        cost = torch.stack([account.costs(owned[left]) for account, owned in accounts]).sum(0)
        order = cost.argsort()[:count]
        agreed = torch.stack([account.agreed(owned[left[order]]) for account, owned in accounts]).sum()
        chosen = tuple(int(unit) for unit in left[order])
        return [self._removal_option(space, chosen, float(cost[order].sum()), float(agreed), len(left) - count)]

    def _owned(self, slot: Slot) -> Tensor:
        """Columns of a consumer's matrix that each unit owns, (width, k * taps)."""
        return columns_of(slot, self.maps[slot.map].taps)

    def _removal_option(self, space: Space, units: tuple[int, ...], cost: float, agreed: float, width: int) -> Option:
        change = Change(
            kind="prune",
            place=space.name,
            detail="units " + ", ".join(map(str, units)),
            units=len(units),
            width=width,
            parameters=-len(units) * self.per_unit[space.name],
        )
        gains = Gains(gain=-cost, gain_lower_bound=-cost, held_out_gain=-cost, cross_fold_gain=-agreed)
        return Option(change.scored(gains, self.prices), units)

    def _removal(self, space: Space, units: Sequence[int]) -> Prune:
        coefficients = {}
        for slot in space.of("consumer"):
            if slot.map in self.pruning:
                taken = self.pruning[slot.map].coefficients(self._owned(slot)[list(units)].flatten())
                biased = self.maps[slot.map].bias is not None
                coefficients[slot.map] = taken if biased else torch.cat([taken, taken.new_zeros(len(taken), 1)], 1)
        return Prune(space.name, tuple(units), coefficients)


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
            bound=gains.gain_lower_bound,
            heldout=gains.held_out_gain,
            error=gains.held_out_stderr,
            agreed=gains.cross_fold_gain,
            eta=prices.eta,
            limit=prices.score_limit,
            samples=prices.samples,
            nat=prices.loss_per_nat,
            criterion=criterion,
        )


def select(move: Widen, units: Sequence[int], space: Space) -> Widen:
    """The move that adds only some of the units."""
    chosen, values = torch.as_tensor(list(units)), {}
    for slot in space.slots:
        if slot.role != "consumer" and slot.name in move.values:
            k = slot.index.shape[1]
            index = (chosen[:, None] * k + torch.arange(k)).flatten()
            values[slot.name] = move.values[slot.name].index_select(slot.dim, index)
    return Widen(move.space, len(units), values)


def _lcm(a: int, b: int) -> int:
    return int(torch.lcm(torch.tensor(a), torch.tensor(b)))
