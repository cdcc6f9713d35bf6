"""One window of looking: candidates drawn once, moments summed over all batches seen until a decision is taken."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from senn import batch
from senn.ascent import Hill, ascend
from senn.batch import Inputs, Output
from senn.curvature.capture import Rows, capture, evaluating, forward, reading
from senn.curvature.factors import moments
from senn.curvature.output import OutputMetric
from senn.curvature.patches import rows_in, rows_out
from senn.errors import DivergenceError, SennError, UnsupportedError
from senn.ledger import Fold, Ledger
from senn.menu import Columns, Menu
from senn.nn import Residual
from senn.policy import Budget
from senn.proposals import Draw, Layer, Proposals, draw_identity, draw_residual, draw_units
from senn.pruning import PruningLedger
from senn.structure import LinearMap, Site, Space, Structure, matrix, tensor_of
from senn.structure.spaces import Role
from senn.surgery import carry_out
from senn.surgery.layout import LayoutDraft
from senn.surgery.verify import fingerprint

LOOK = 128
"""Samples that the draw looks at, for the scale of the candidates."""

LOOKED_AT = 4096
"""Rows of each map that it takes from them."""


@dataclass(frozen=True, eq=False)
class KnownMoment:
    """Input moment of a linear map that reads the data itself, kept from one window for the next ones.

    Attributes:
        factor: lower Cholesky factor of the damped moment, (c, c).
        rows: that it is a mean over.
        outgrown: a later window held at least twice as many rows; the next one of that size takes its place.
    """

    factor: Tensor
    rows: float
    outgrown: bool = False


class Survey:
    """Candidates of one consideration and the moments gathered about them.

    Args:
        model: the model, read only.
        structure: what in it can change.
        metric: the loss.
        proposals: how candidates are drawn.
        moves: which of `width`, `depth`, `prune` are wanted.
        affordable: whether so many parameters could pay at all, given the loss in nats.
        generator: source of randomness.
        known: by linear map that reads the data itself, its input moment, which training doesn't change: filled in by
            the first window that has more rows than columns, made anew by one with twice the rows, kept by the caller.
        output: finds the outputs in what the model returns.

    Attributes:
        samples: looked at so far.
        loss: mean loss over them.
        probe_inputs: the last batch's inputs, for verification.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        metric: OutputMetric,
        proposals: Proposals,
        moves: Sequence[str],
        affordable: Callable[[int, float], bool],
        generator: torch.Generator,
        known: dict[str, KnownMoment],
        output: Output | None = None,
    ) -> None:
        self.output = output
        self.known = known
        self._shared: dict[str, Tensor] = {}
        self.model, self.structure, self.metric = model, structure, metric
        self.proposals, self.moves, self.affordable = proposals, tuple(moves), affordable
        self.generator = generator
        self.samples = 0
        self._loss_sum = self._limit_sum = 0.0
        self._draw: Draw | None = None
        self._copy: tuple[list[int], nn.Module] | None = None
        self._order: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}
        self._data: set[str] = set()
        self._columns: dict[str, Columns] = {}
        self._existing: dict[str, int] = {}
        self._fit: dict[str, Fold] = {}
        self._held: dict[str, Fold] = {}
        self.probe_inputs: Inputs = torch.empty(0)
        self._probe: tuple[Tensor, Tensor | None] = (torch.empty(0), None)
        self.probe_loss_before = float("nan")
        self._output = torch.empty(0)

    @property
    def loss(self) -> float:
        """Mean loss over the samples seen."""
        return self._loss_sum / max(self.samples, 1)

    def add(self, inputs: Inputs, targets: Tensor, weights: Tensor | None = None) -> float:
        """Look at one batch; returns its loss. The model is left as it was."""
        count = _samples(inputs, targets, weights)
        order = torch.randperm(count, generator=self.generator).to(targets.device)
        inputs = batch.take(inputs, order, count)
        targets = targets[order]
        if weights is not None:
            weights = weights[order] / weights.mean()
        draw = self._draw
        if draw is None:
            draw = self._propose(inputs, targets)
            self._lay_out(draw)
            if self.proposals.ascent and any(self.structure.map(name).taps > 1 for name in self.structure.linears):
                raise UnsupportedError("the ascent of proposals isn't understood for convolutions: use ascent=0")
            if self.proposals.ascent and draw.widen:
                draw = self._ascended(draw, inputs, targets, weights)
        trial = self._trial(draw, inputs)
        seen = capture(
            trial, self.structure.linears, inputs, targets, self.metric, generator=self.generator, weights=weights,
            find=self.output,
        )  # fmt: skip
        self._draw = draw  # only now: a batch that was refused leaves nothing behind
        for name, rows in seen.rows.items():
            self._gather(name, rows, weights, count)
        self.samples += count
        self._loss_sum += seen.loss * count
        self._limit_sum += seen.bound * count
        self.probe_inputs, self._probe, self.probe_loss_before = inputs, (targets, weights), seen.loss
        self._output = seen.output
        return seen.loss

    def probe_loss(self) -> float:
        """Loss of the model, as it is now, on the last batch."""
        with torch.no_grad(), evaluating(self.model):
            return float(self.metric.loss(forward(self.model, self.probe_inputs, self.output), *self._probe))

    def menu(self, samples: int, budget: Budget, *, whole_eta: bool = False) -> Menu:
        """The scored candidates; with `whole_eta` the network's own expansion score, see `_whole_eta`."""
        assert self._draw is not None
        ledgers, pruning = {}, {}
        prunable = {slot.module for space in self.structure.spaces for slot in space.of("consumer")}
        for name in self._columns:
            fit, held, existing = self._fit[name], self._held[name], self._existing[name]
            ledgers[name] = ledger = Ledger(fit, held, existing, self._shared.get(name))
            if name in self._data:
                self._remember(name, ledger.factor, fit.moments.rows + held.moments.rows)
            if "prune" in self.moves and name in prunable:
                pruning[name] = PruningLedger(
                    ledger.factor, ledger.after(_weight(self.model, self.structure.map(name))), ledger.locations
                )
        return Menu(
            self.model, self.structure, self._draw, ledgers, pruning, self._columns,
            limit=self._limit_sum / self.samples, samples=samples, nat=self.metric.nat(self.loss, self._output),
            budget=budget, eta=self._whole_eta(ledgers) if whole_eta else None,
        )  # fmt: skip

    def _whole_eta(self, ledgers: Mapping[str, Ledger]) -> float:
        """A lower bound of the network's eta that takes its maps together, and so stays below lambda.

        The sum over the maps counts a decrease that several of them could bring several times, and may come out above
        lambda. Along the K-FAC step d of all maps, with the exact curvature d^T F d = E[(sum_l s_l^T d_l a_l)^2],
        (g^T d)^2 / d^T F d <= g^T F^-1 g (Cauchy-Schwarz).
        """
        total = sum(ledger.eta for ledger in ledgers.values())
        square = weight = 0.0
        for fold in (self._fit, self._held):
            parts = [self._along(name, ledger, fold[name]) for name, ledger in ledgers.items()]
            kept = min(map(len, parts))
            square += float(torch.stack([part[:kept] for part in parts]).sum(0).square().sum())
            name, ledger = next(iter(ledgers.items()))
            weight += float(fold[name].weights[: kept * ledger.locations : ledger.locations].sum())
        exact = square / max(weight, 1e-300)
        limit = self._limit_sum / self.samples
        return min(total**2 / max(exact, 1e-300), limit) if total > 0 else 0.0

    def _remember(self, name: str, factor: Tensor, rows: float) -> None:
        """Keep a data moment for later windows if there is none of as many rows; or note that it is outgrown."""
        old = self.known.get(name)
        if name in self._shared and old is not None:
            self.known[name] = replace(old, outgrown=old.outgrown or rows >= 2 * old.rows)
        elif (old is None and rows > self._existing[name]) or (old is not None and rows >= 2 * old.rows):
            self.known[name] = KnownMoment(factor, rows)

    def _along(self, name: str, ledger: Ledger, fold: Fold) -> Tensor:
        """s^T d a of each kept sample, summed over locations, (samples,)."""
        rows = ((fold.s.double() @ ledger.step) * fold.a[:, : self._existing[name]].double()).sum(1)
        return rows.view(-1, ledger.locations).sum(1)

    # -- inside

    def _propose(self, inputs: Inputs, targets: Tensor) -> Draw:
        """Draw candidates at the scale of what passes through the model on a few samples."""
        few = batch.take(inputs, slice(0, LOOK), len(targets))
        names = self.structure.linears
        with torch.no_grad(), evaluating(self.model), reading(self.model, names, outputs=True) as seen:
            output = forward(self.model, few, self.output)
        if not torch.isfinite(output).all():
            raise DivergenceError(
                "the outputs on this batch are not finite: the network has diverged or the batch holds bad values"
            )
        loss = float(self.metric.loss(output, targets[:LOOK]))
        loss /= self.metric.nat(loss, output)
        maps = {name: self.model.get_submodule(name) for name in names}
        x = {name: _some(rows_in(maps[name], one.x)) for name, one in seen.items()}
        z = {name: _some(rows_out(maps[name], one.z)) for name, one in seen.items() if one.z is not None}
        widen, layers = {}, {}
        if "width" in self.moves:
            for space in filter(self._is_scored, self.structure.spaces):
                widen[space.name] = draw_units(self.model, space, x, z, self.proposals, self.generator)
        if "depth" in self.moves:
            for found in _open_sites(self.model, self.structure):
                site = replace(found, activation=self.proposals.activation or found.activation)
                offered: list[Layer] = []
                if self.proposals.residual and self.affordable(2 * site.features + 1, loss):
                    offered.append(draw_residual(site, x[site.module], self.proposals, self.generator))
                if self.affordable(site.features * (site.features + 1), loss):
                    biased = self.model.get_submodule(site.module).bias is not None
                    for _ in range(self.proposals.identity):
                        offered.append(draw_identity(site, x[site.module], biased, self.generator))
                if offered:
                    layers[site.module] = tuple(offered)
        return Draw(widen, layers)

    def _is_scored(self, space: Space) -> bool:
        """Whether a map that can be read reads its units; units that are quiet at first bring nothing then."""
        return not space.norms and any(slot.map in self.structure.linears for slot in space.of("consumer"))

    def _lay_out(self, draw: Draw) -> None:
        """Number each map's columns: existing ones, the constant, candidate units by space, layers' features."""
        for name in self.structure.linears:
            one = self.structure.map(name)
            taps = torch.arange(one.taps)
            rows, size = (tensor_of(self.model, one.weight).shape[dim] for dim in (one.out_dim, one.in_dim))
            self._outputs[name], _ = self._places(draw, name, "producer", rows)
            place, taken = self._places(draw, name, "consumer", size)
            wide = 0
            place = place[:, None] * one.taps + taps  # columns of each input, (inputs, taps)
            order, columns = [place[:size].flatten()], Columns()
            for space_name, units, offset, positions in taken:
                order.append(place[offset : offset + positions].flatten())
                own = torch.arange(wide, wide + positions * one.taps).view(units, -1)
                known = columns.spaces.get(space_name)  # a space may lie in one map twice
                columns.spaces[space_name] = own if known is None else torch.cat([known, own], 1)
                wide += positions * one.taps
            for layer in draw.layers.get(name, ()):
                columns.layers.append(torch.arange(wide, wide + layer.columns).view(-1, layer.columns_per_unit))
                wide += layer.columns
            self._order[name], self._columns[name] = torch.cat(order), columns
            self._existing[name] = size * one.taps + (one.bias is not None)

    def _ascended(self, draw: Draw, inputs: Inputs, targets: Tensor, weights: Tensor | None) -> Draw:
        """The candidates after their ascent, on the fold on which steps are fitted: the other one stays unseen."""
        half = len(targets) // 2
        part = batch.take(inputs, slice(0, half), len(targets))
        if weights is not None:
            weights = weights[:half] / weights[:half].mean()
        hill = Hill(self.model, self.structure, draw, part, targets[:half], self.metric, self.generator, weights)
        return ascend(hill, draw, self.proposals)

    def _places(self, draw: Draw, name: str, role: Role, size: int) -> tuple[Tensor, list[tuple[str, int, int, int]]]:
        """Where a map's old and new rows or columns stand in the trial, and whose the new ones are."""
        draft, taken = LayoutDraft(size), []
        for space in self.structure.spaces:
            for slot in space.of(role):
                if slot.module == name and slot.tensor == "weight" and space.name in draw.widen:
                    units = draw.widen[space.name].units
                    taken.append((space.name, units, *draft.add(slot, units)))
        place = torch.empty(size + draft.added, dtype=torch.long)
        place[draft.layout().order] = torch.arange(size + draft.added)
        return (place[:size] if role == "producer" else place), taken

    def _trial(self, draw: Draw, inputs: Inputs) -> nn.Module:
        """A copy of the model in which all candidate units are dormant: it computes the same function.

        Made anew when the model has changed since the last batch, as it does where batches are seen while training.
        """
        if not draw.widen:
            return self.model
        state = fingerprint([*self.model.parameters(), *self.model.buffers()])
        if self._copy is None or state != self._copy[0]:
            trial = copy.deepcopy(self.model)
            carry_out(trial, list(draw.widen.values()), self.structure, probe=inputs)
            self._copy = state, trial
        return self._copy[1]

    def _gather(self, name: str, rows: Rows, weights: Tensor | None, count: int) -> None:
        """Add one batch's rows to the two folds' moments."""
        assert self._draw is not None
        x, size, order = rows.x, self._old_columns(name), self._order[name]
        if not torch.equal(order, torch.arange(len(order))):
            x = x[:, order]
        old, new = x[:, :size], x[:, size:]
        with torch.no_grad():
            layers = [layer.features(old) for layer in self._draw.layers.get(name, ())]
        constant = [x.new_ones(len(x), 1)] if rows.bias else []
        a = torch.cat([old, *constant, new, *layers], 1)
        dz, s = (_take(values, self._outputs[name]) for values in (rows.dz, rows.s))
        half = (count if rows.chosen is None else len(rows.chosen)) // 2 * rows.locations
        if weights is not None and rows.chosen is not None:
            weights = weights[rows.chosen.to(weights.device)]
        row_weights = None if weights is None else weights.repeat_interleave(rows.locations).to(a)
        if rows.data:
            self._data.add(name)
        past = self.known.get(name)
        # one decision for the whole window, whose moments are summed
        if past is not None and name not in self._fit and not past.outgrown and len(x) < 2 * past.rows:
            self._shared[name] = past.factor
        known = self._existing[name] if name in self._shared else 0
        for fold, part in ((self._fit, slice(0, half)), (self._held, slice(half, None))):
            weight = None if row_weights is None else row_weights[part]
            found = moments(a[part], dz[part], s[part], locations=rows.locations, weights=weight, known=known)
            seen = Fold.of(found, a[part], s[part], dz[part], weight)
            fold[name] = fold[name] + seen if name in fold else seen

    def _old_columns(self, name: str) -> int:
        """Number of inputs of a map in the model as it is."""
        return matrix(self.model, self.structure.map(name)).shape[1]


def _weight(model: nn.Module, one: LinearMap) -> Tensor:
    """[W | b] of a linear map, detached, (m, c)."""
    weight = matrix(model, one)
    return weight if one.bias is None else torch.cat([weight, tensor_of(model, one.bias).detach()[:, None]], 1)


def _open_sites(model: nn.Module, structure: Structure) -> list[Site]:
    """Sites outside residual branches: no layer within a layer is offered, since width of the branch does as much."""
    branches = [f"{name}." for name, module in model.named_modules() if isinstance(module, Residual)]
    sites = [site for site in structure.sites if site.module in structure.linears and not site.spatial]
    return [site for site in sites if not any(site.module.startswith(branch) for branch in branches)]


def _take(values: Tensor, columns: Tensor) -> Tensor:
    """Those columns; without a copy where they are the first ones."""
    count = len(columns)
    return values[:, :count] if int(columns[-1]) == count - 1 else values[:, columns]


def _samples(inputs: Inputs, targets: Tensor, weights: Tensor | None) -> int:
    """Number of samples of a batch that can be looked at."""
    count = len(targets)
    if batch.count(inputs) != count:
        raise SennError(f"the batch has inputs for {batch.count(inputs)} samples and targets for {count}")
    if count < 2:
        raise SennError("a batch of one sample cannot be split into a half to fit on and a half to value on")
    if weights is not None and not weights.sum() > 0:
        raise SennError("the sample weights of the batch do not sum to more than zero")
    return count


def _some(rows: Tensor) -> Tensor:
    """About `LOOKED_AT` of the rows, evenly spread."""
    return rows[:: max(len(rows) // LOOKED_AT, 1)]
