"""One window of looking: candidates drawn once, moments summed over all batches seen until a decision is taken."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from senn import batch
from senn.ascent import Hill, ascend
from senn.batch import Inputs, Output
from senn.beside import Beside, Label, look_beside
from senn.columns import Columns, lay_out
from senn.curvature.capture import Part, capture, labels, layout_of, reads_of
from senn.curvature.factors import Inverse
from senn.curvature.gather import gather, places_of
from senn.curvature.output import OutputMetric
from senn.curvature.patches import Read
from senn.curvature.reading import Layout, Reading, evaluating, forward, legible, reading
from senn.drawing import propose
from senn.errors import SennError, UnsupportedError
from senn.ledger import Fold, Ledger
from senn.menu import Menu
from senn.policy import Budget
from senn.proposals import Draw, Proposals
from senn.pruning import PruningLedger
from senn.structure import LinearMap, Structure, matrix, tensor_of
from senn.surgery import carry_out
from senn.surgery.verify import fingerprint

MOST_ROWS = 1 << 16
"""Rows of one map that pass through the model at once: a large batch of images is looked at in parts."""


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
        readings: by linear map, how it can be read, or why not: filled in by the first window, kept by the caller.

    Attributes:
        maps: the linear maps that are read, by name.
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
        readings: dict[str, Reading | str] | None = None,
    ) -> None:
        self.output = output
        self.readings = {} if readings is None else readings
        self.maps: dict[str, LinearMap] = {}
        self.known = known
        self._shared: dict[str, Tensor] = {}
        self.model, self.structure, self.metric = model, structure, metric
        self.proposals, self.moves, self.affordable = proposals, tuple(moves), affordable
        self.generator = generator
        self.samples = 0
        self._loss_sum = self._limit_sum = 0.0
        self._draw: Draw | None = None
        self._copy: tuple[list[int], nn.Module] | None = None
        self._data: set[str] = set()
        self._beside: dict[Label, Columns] = {}
        self._columns: dict[str, Columns] = {}
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
            self._find_maps(inputs)
            draw = propose(
                self.model, self.structure, self.maps, inputs, targets, self.metric, self.proposals, self.moves,
                self.affordable, self.generator, self.output, self._readings,
            )  # fmt: skip
            self._columns = lay_out(self.model, self.structure, self.maps, draw)
            if self.proposals.ascent and draw.widen:
                draw = self._ascended(draw, inputs, targets, weights)
        looks = [self._look(draw, part, inputs, targets, weights) for part in self._parts(count)]
        self._draw = draw  # only now: a batch that was refused leaves nothing behind
        for look in looks:
            for folds, found in ((self._fit, look.folds["fit"]), (self._held, look.folds["held"])):
                for name, fold in found.items():
                    folds[name] = folds[name] + fold if name in folds else fold
        loss = sum(look.loss * look.samples for look in looks) / count
        self.samples += count
        self._loss_sum += loss * count
        self._limit_sum += sum(look.bound * look.samples for look in looks)
        self.probe_inputs, self._probe, self.probe_loss_before = inputs, (targets, weights), loss
        self._output = torch.cat([look.output for look in looks])
        return loss

    def probe_loss(self) -> float:
        """Loss of the model, as it is now, on the last batch."""
        with torch.no_grad(), evaluating(self.model):
            return float(self.metric.loss(forward(self.model, self.probe_inputs, self.output), *self._probe))

    def menu(self, samples: int, budget: Budget, *, whole_eta: bool = False) -> Menu:
        """The scored candidates; with `whole_eta` the network's own expansion score, see `_whole_eta`."""
        assert self._draw is not None
        ledgers, pruning = {}, {}
        prunable = {slot.map for space in self.structure.spaces for slot in space.of("consumer")}
        for name, label in self._labels():
            columns, fit, held = self._columns[name], self._fit[label], self._held[label]
            ledgers[label] = ledger = Ledger(fit, held, columns.existing, self._shared.get(name))
            if name in self._data and type(ledger.inverse) is Inverse:
                self._remember(name, ledger.inverse.factor, fit.moments.rows + held.moments.rows)
            one = self.maps[name]
            if "prune" in self.moves and name in prunable and one.groups == 1 and not one.transposed:
                after = ledger.after(_weight(self.model, one))
                pruning[name] = PruningLedger(ledger.inverse, after, ledger.locations)
        beside = Beside.of(self._beside, self._fit, self._held)
        return Menu(
            self.model, self.structure, self.maps, self._draw, ledgers, pruning,
            {label: self._columns[name] for name, label in self._labels()}, beside,
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
            parts = [fold[name].samples.of_existing(ledger.step) for name, ledger in ledgers.items()]
            kept = min(map(len, parts))
            square += float(torch.stack([part[:kept] for part in parts]).sum(0).square().sum())
            name, ledger = next(iter(ledgers.items()))
            weight += fold[name].samples.first(kept).total / ledger.locations
        exact = square / max(weight, 1e-300)
        limit = self._limit_sum / self.samples
        return min(total**2 / max(exact, 1e-300), limit) if total > 0 else 0.0

    def _remember(self, name: str, factor: Tensor, rows: float) -> None:
        """Keep a data moment for later windows if there is none of as many rows; or note that it is outgrown."""
        old = self.known.get(name)
        if name in self._shared and old is not None:
            self.known[name] = replace(old, outgrown=old.outgrown or rows >= 2 * old.rows)
        elif (old is None and rows > self._columns[name].existing) or (old is not None and rows >= 2 * old.rows):
            self.known[name] = KnownMoment(factor, rows)

    # -- inside

    @property
    def _readings(self) -> dict[str, Reading]:
        return {name: found for name, found in self.readings.items() if isinstance(found, Reading)}

    def _labels(self) -> list[tuple[str, str]]:
        """Names of the maps with those of their groups, each of which has an account of its own."""
        return [(name, label) for name in self.maps for label in labels(name, self._readings[name].groups)]

    def _find_maps(self, inputs: Inputs) -> None:
        """Which linear maps can be read on such inputs, and how."""
        names = self.structure.linears
        if any(name not in self.readings for name in names):
            uses = {name: self.structure.map(name).uses for name in names}
            found = legible(self.model, uses, inputs, self.output)
            self.readings.clear()
            self.readings.update(found)
        readings = self._readings
        self.maps = {name: self.structure.map(name) for name in names if name in readings}
        if not self.maps:
            reasons = [found for found in self.readings.values() if isinstance(found, str)]
            raise UnsupportedError("; ".join(reasons[:3]) or "the model has no linear map whose inputs could be read")
        for name, one in self.maps.items():
            if not readings[name].biased:
                self.maps[name] = replace(one, bias=None)

    def _parts(self, count: int) -> list[tuple[slice, list[tuple[str, slice]], bool]]:
        """What of a batch is looked at at once, which samples of that are in which fold, whether they are its first."""
        half, most = count // 2, max(reading.locations for reading in self._readings.values())
        if count * most <= MOST_ROWS:
            return [(slice(0, count), [("fit", slice(0, half)), ("held", slice(half, count))], True)]
        size = max(MOST_ROWS // most, 1)
        return [
            (slice(start, min(start + size, last)), [(fold, slice(0, min(size, last - start)))], start == first)
            for fold, first, last in (("fit", 0, half), ("held", half, count))
            for start in range(first, last, size)
        ]

    def _look(
        self,
        draw: Draw,
        part: tuple[slice, list[tuple[str, slice]], bool],
        inputs: Inputs,
        targets: Tensor,
        weights: Tensor | None,
    ) -> Look:
        """Look at one part of a batch: the model forwards and backwards, the trial forwards only."""
        which, folds, first = part
        count = len(targets)
        inputs, targets = batch.take(inputs, which, count), targets[which]
        weights = None if weights is None else weights[which]
        seen = capture(
            self.model, [*self.maps], inputs, targets, self.metric, generator=self.generator, weights=weights,
            find=self.output, layouts=self._readings, blocks=[*draw.repeats] if first else (),
        )  # fmt: skip
        reads = self._reads_of_trial(draw, inputs, len(targets))
        look = Look(len(targets), seen.loss, seen.bound, seen.output)
        for name, label in self._labels():
            columns, layers, rows = self._columns[name], draw.layers.get(name, ()), seen.rows[label]
            parts = [
                Part(columns.arranged(read, layers), one.dz, one.s)
                for read, one in zip(reads.get(label, [one.read for one in rows.parts]), rows.parts, strict=True)
            ]
            if rows.data:
                self._data.add(name)
            for fold, samples in folds:
                own = [one.some(samples) for one in parts]
                of = None if weights is None else weights[samples]
                look.folds[fold][label] = self._fold(name, label, own, of, count)
        if first:
            for fold, samples in folds:
                of = None if weights is None else weights[samples]
                for place, (columns, found) in look_beside(
                    self.model, self.structure, self.maps, draw, seen, samples, of, self._readings, self.generator
                ).items():
                    self._beside[place] = columns
                    look.folds[fold][str(place)] = found
        return look

    def _reads_of_trial(self, draw: Draw, inputs: Inputs, count: int) -> dict[str, list[Read]]:
        """What each map reads once all candidate units are there; nothing if there are none."""
        if not draw.widen:
            return {}
        trial, readings = self._trial(draw, inputs), self._readings
        with torch.no_grad(), evaluating(trial), reading(trial, [*self.maps]) as seen:
            forward(trial, inputs, self.output)
        found: dict[str, list[Read]] = {}
        for name, several in seen.items():
            for number, one in enumerate(several):
                reads = reads_of(name, one, layout_of(readings, name, number), count)
                for label, read in zip(labels(name, len(reads)), reads, strict=True):
                    found.setdefault(label, []).append(read)
        return found

    def _fold(self, name: str, label: str, parts: list[Part], weights: Tensor | None, count: int) -> Fold:
        """What some samples of one fold say about one map."""
        columns = self._columns[name]
        locations = sum(part.read.locations for part in parts)
        last = self._fit.get(label)
        if last is not None and last.moments.locations != locations:
            raise UnsupportedError(
                f"{name} reads {locations} rows a sample in one batch and {last.moments.locations} in another: "
                f"pad all samples to one size"
            )
        rows = len(parts[0].dz)
        past = self.known.get(name)
        # one decision for the whole window, whose moments are summed
        single = locations == 1 and name in self._data
        if single and past is not None and last is None and not past.outgrown and count < 2 * past.rows:
            self._shared[name] = past.factor
        shared = name in self._shared
        few = locations == 1 and weights is None and not shared and Fold.few(rows, columns.existing)
        every = columns.existing + sum(own.numel() for own in (*columns.spaces.values(), *columns.layers))
        places = places_of(parts, every, max(count // 2, 1), self.generator)
        return Fold.of(
            *gather(
                parts, places, keep=Fold.most(locations), weights=weights,
                known=columns.existing if shared else 0, inputs=not few,
            )
        )  # fmt: skip

    def _ascended(self, draw: Draw, inputs: Inputs, targets: Tensor, weights: Tensor | None) -> Draw:
        """The candidates after their ascent, on the fold on which steps are fitted: the other one stays unseen."""
        strange = [name for name in self.maps if not self._is_plain(name)]
        if strange:
            raise UnsupportedError(
                f"the ascent of proposals isn't understood for {strange[0]}, which is no linear layer: use ascent=0"
            )
        half = len(targets) // 2
        part = batch.take(inputs, slice(0, half), len(targets))
        if weights is not None:
            weights = weights[:half] / weights[:half].mean()
        hill = Hill(self.model, self.structure, draw, part, targets[:half], self.metric, self.generator, weights)
        return ascend(hill, draw, self.proposals)

    def _is_plain(self, name: str) -> bool:
        """Whether a map is an ordinary linear layer that reads the batch once."""
        layer = self.maps[name].weight.rpartition(".")[0]
        return isinstance(self.model.get_submodule(layer), nn.Linear) and self._readings[name].layouts == (Layout(),)

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


@dataclass(frozen=True, eq=False)
class Look:
    """What one part of a batch showed.

    Attributes:
        samples: how many there were.
        loss: their mean loss.
        bound: their lambda.
        output: the model's outputs.
        folds: what was gathered, by map, of the samples on which steps are fitted (`fit`) and valued (`held`).
    """

    samples: int
    loss: float
    bound: float
    output: Tensor
    folds: dict[str, dict[str, Fold]] = field(default_factory=lambda: {"fit": {}, "held": {}})


def _weight(model: nn.Module, one: LinearMap) -> Tensor:
    """[W | b] of a linear map, detached, (m, c)."""
    weight = matrix(model, one)
    return weight if one.bias is None else torch.cat([weight, tensor_of(model, one.bias).detach()[:, None]], 1)


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
