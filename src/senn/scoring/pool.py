"""The candidates of one consideration, scored, and kept up to date while some are accepted.

Width, depth and pruning are read off the same moments: candidate units are dormant columns of their consumers, layers
are virtual columns of the map before which they would go, pruning removes existing columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from senn.layers import IdentityLayer, Layer
from senn.policy import Budget, Candidate
from senn.proposals import Draw
from senn.scoring.column_layout import Columns
from senn.scoring.gains import Ledger
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
        limit: lambda.
        samples: training samples, for prices.
        nat: how much of the loss one nat per sample is.
        budget: limits.
        eta: the network's expansion score before anything is accepted; by default the sum over its maps.
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
        limit: float,
        samples: int,
        nat: float,
        budget: Budget,
        eta: float | None = None,
    ) -> None:
        self.eta = sum(ledger.eta for ledger in ledgers.values()) if eta is None else eta
        self.model, self.structure, self.maps, self.draw = model, structure, maps, draw
        self.ledgers, self.pruning, self.columns, self.beside = ledgers, pruning, columns, beside
        self.limit, self.samples, self.nat, self.budget = limit, samples, nat, budget
        self.parameters = sum(p.numel() for p in model.parameters())
        self.per_unit = {space.name: parameters_per_unit(model, space) for space in structure.spaces}
        self.grown: dict[str, list[int]] = {}
        self.inserted: dict[str, tuple[int, list[int]]] = {}
        self.removed: dict[str, list[int]] = {}
        self.repeated: list[str] = []
        self.accepted: list[Candidate] = []
        self._removals: list[tuple[str, tuple[int, ...]]] = []
        self._options: dict[int, Option] = {}
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
        self._options = {}
        for option in options:
            if self.budget.allows(option.candidate, self.parameters):
                candidate = replace(option.candidate, eta=self.eta)
                self._options[id(candidate)] = replace(option, candidate=candidate)
        return [option.candidate for option in self._options.values()]

    def accept(self, candidate: Candidate) -> None:
        """Take a candidate of the last `candidates()` as done and bring every figure up to date."""
        option = self._options[id(candidate)]
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
            self.eta += candidate.gain
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
        groups: list[Group] = [(self.ledgers[name], columns, None) for name, columns in consumers]
        options = []
        for figures in _best(groups, units, accepted):
            candidate = Candidate(
                "widen", space.name, f"{units} of {len(groups[0][1])} candidates", units, width + units,
                units * self.per_unit[space.name], *figures[1:-1], self.eta, self.limit, self.samples, self.nat,
                figures[-1],
            )  # fmt: skip
            options.append(Option(candidate, figures[0]))
        return options

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
        options = []
        for figures in _best([(ledger, columns, self._onto(site))], units, accepted):
            width = len(accepted) + units
            candidate = Candidate(
                "insert", site, layer.name, units, width, layer.parameters(units), *figures[1:-1],
                self.eta, self.limit, self.samples, self.nat, figures[-1],
            )  # fmt: skip
            options.append(Option(candidate, figures[0], number))
        return options

    def _identity(self, site: str, number: int, layer: IdentityLayer, columns: Tensor) -> Option:
        """Score of the activation parameters that an identity insertion makes live."""
        ledger = self.ledgers[site]
        weight = linear_map(self.model, site).weight.detach().double()
        mixed = ledger.whitener.mT @ weight @ torch.linalg.inv(layer.weight.double())
        through = mixed.repeat_interleave(columns.shape[1], 1)
        gain, heldout, error = ledger.diagonal(columns.flatten(), through)
        candidate = Candidate(
            "insert", site, layer.name, layer.site.features, layer.site.features, layer.parameters(), gain, gain,
            heldout, error, self.eta, self.limit, self.samples, self.nat,
        )  # fmt: skip
        return Option(candidate, (), number)

    def _account(self, site: str) -> tuple[Ledger, list[Tensor]]:
        """Where layers before a map are scored, and which columns are theirs: at its input for a convolution."""
        if site in self.beside.layers:
            return self.beside.layers[site]
        return self.ledgers[site], self.columns[site].layers

    def _repeat(self, block: str) -> Option:
        """A silent copy of a residual block after it."""
        copy = self.draw.repeats[block].copy
        parameters = sum(p.numel() for p in copy.parameters())
        candidate = Candidate(
            "insert", block, "a copy after it", 1, 1, parameters, *self.beside.worth(block, copy),
            self.eta, self.limit, self.samples, self.nat,
        )  # fmt: skip
        return Option(candidate, ())

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
        candidate = Candidate(
            "prune", space.name, "units " + ", ".join(map(str, units)), len(units), width,
            -len(units) * self.per_unit[space.name], -cost, -cost, -cost, 0.0, self.eta, self.limit, self.samples,
            self.nat, -agreed,
        )  # fmt: skip
        return Option(candidate, units)

    def _removal(self, space: Space, units: Sequence[int]) -> Prune:
        coefficients = {}
        for slot in space.of("consumer"):
            if slot.map in self.pruning:
                taken = self.pruning[slot.map].coefficients(self._owned(slot)[list(units)].flatten())
                biased = self.maps[slot.map].bias is not None
                coefficients[slot.map] = taken if biased else torch.cat([taken, taken.new_zeros(len(taken), 1)], 1)
        return Prune(space.name, tuple(units), coefficients)


Group = tuple[Ledger, Tensor, Tensor | None]


def _best(groups: list[Group], units: int, accepted: Sequence[int]) -> list[Choice]:
    """Greedy choices of `units` more units: once by held-out gain less its standard error, once by the bound."""
    found: list[Choice] = []
    left = torch.tensor([unit for unit in range(len(groups[0][1])) if unit not in accepted])
    if len(left) < units:
        return found
    first = _figures(groups, left)
    for key in (_sure, _bound):
        rest, figures, chosen, totals, agreed = left, first, [], torch.zeros(4, dtype=torch.float64), 0.0
        trial = [(ledger.clone(), columns, onto) for ledger, columns, onto in groups] if units > 1 else []
        while True:
            best = int(key(figures).argmax())
            totals = totals + figures[:, best]
            chosen.append(int(rest[best]))
            for ledger, columns, onto in trial or groups:
                agreed += float(ledger.agreed(columns[chosen[-1:]], onto))
            if len(chosen) == units:
                break
            for ledger, columns, onto in trial:
                ledger.accept(columns[chosen[-1]], onto)
            rest = torch.cat([rest[:best], rest[best + 1 :]])
            figures = _figures(trial, rest)
        if not found or found[0][0] != tuple(chosen):
            gain, bound, heldout, error = totals.tolist()
            found.append((tuple(chosen), gain, bound, heldout, error, agreed))
    return found


Choice = tuple[tuple[int, ...], float, float, float, float, float]
"""Units, and their gain, bound, held-out gain and its standard error, and agreed gain."""


SHORTLIST = 32
"""Units of the largest gain whose held-out gain, which needs rows, is computed."""


def _figures(groups: list[Group], units: Tensor) -> Tensor:
    """Gain, bound, held-out gain and its standard error of each unit, (4, units), summed over the maps that read it.

    Held-out gains of units that are not on the shortlist are minus infinity.
    """
    total = torch.zeros(4, len(units), dtype=torch.float64)
    for ledger, columns, onto in groups:
        total[:2] += torch.stack([ledger.gain(columns[units], onto), ledger.bound(columns[units], onto)])
    short = total[0].topk(min(SHORTLIST, len(units))).indices
    short = torch.cat([short, total[1].argmax()[None]])
    heldout = torch.zeros(2, len(short), dtype=torch.float64)
    for ledger, columns, onto in groups:
        heldout += torch.stack(ledger.heldout(columns[units[short]], onto))
    total[2] = -torch.inf
    total[2:, short] = heldout
    return total


def _sure(figures: Tensor) -> Tensor:
    return figures[2] - figures[3]


def _bound(figures: Tensor) -> Tensor:
    return figures[1]


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
