"""One window of looking: candidates drawn once, moments summed over all batches seen until a decision is taken."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from senn import batch
from senn.ascent import Hill, ascend
from senn.batch import Inputs, Output
from senn.curvature.capture import Part, capture, labels, layout_of, reads_of
from senn.curvature.factors import Inverse
from senn.curvature.folds import Fold, Own
from senn.curvature.gather import places_of
from senn.curvature.output import OutputMetric
from senn.curvature.patches import Read
from senn.curvature.reading import Layout, Reading, forward, legible, reading
from senn.drawing import LOOK, propose
from senn.errors import UnsupportedError
from senn.policy import Budget
from senn.preserve import preserve_model_state
from senn.proposals import Draw, Proposals
from senn.ranks import Ranks, Share
from senn.scoring.batch_statistics import KnownMoment, Look, weight_of, whole_eta_of
from senn.scoring.column_layout import Columns, lay_out
from senn.scoring.gains import Ledger, Prices
from senn.scoring.global_batch import Joint, Some, joined
from senn.scoring.pool import Menu
from senn.scoring.pruning_costs import PruningLedger
from senn.scoring.rank_checks import agree_on_weights
from senn.scoring.stream import Beside, Label, look_beside
from senn.structure import LinearMap, Structure
from senn.surgery import carry_out
from senn.surgery.verify import fingerprint

MOST_ROWS = 1 << 16
"""Rows of one map that pass through the model at once: a large batch of images is looked at in parts."""

PROBE = 1024
"""Samples on which a change is verified, and from which new BatchNorm channels take their statistics."""


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
        ranks: the processes that look together; by default this one alone.

    Attributes:
        maps: the linear maps that are read, by name.
        samples: looked at so far, by all ranks.
        loss: mean loss over them.
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
        ranks: Ranks | None = None,
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
        self.ranks = ranks if ranks is not None else Ranks()
        self._last: Joint | None = None
        self._sample: Some = (torch.empty(0), torch.empty(0), None)
        self.probe_loss_before = float("nan")
        self._output = torch.empty(0)

    @property
    def loss(self) -> float:
        """Mean loss over the samples seen."""
        return self._loss_sum / max(self.samples, 1)

    def add(self, inputs: Inputs, targets: Tensor, weights: Tensor | None = None) -> float:
        """Look at one batch; returns its loss. The model is left as it was."""
        state = self.generator.get_state()
        try:
            self._check_alike()
            joint = Joint.of(self.ranks, inputs, targets, weights, self.generator)
            with self.ranks.together("look at a batch"):
                draw = self._first_draw(joint) if self._draw is None else self._draw
                looks = [self._look(draw, part, joint) for part in self._parts(joint.share)]
        except BaseException:
            if not self.ranks.alone:  # one rank may have drawn more than another
                self.generator.set_state(state)
            raise
        self._draw = draw  # only now: a batch that was refused leaves nothing behind
        for look in looks:
            for folds, found in ((self._fit, look.folds["fit"]), (self._held, look.folds["held"])):
                for name, fold in found.items():
                    folds[name] = folds[name] + fold if name in folds else fold
        count = joint.share.total
        own = [sum(look.loss * look.samples for look in looks), sum(look.bound * look.samples for look in looks)]
        total, limit = (sum(column) for column in zip(*self.ranks.exchange("look at a batch", own), strict=True))
        loss = float(total / count)
        self.samples += count
        self._loss_sum += loss * count
        self._limit_sum += limit
        self._last, self.probe_loss_before = joint, loss
        self._output = torch.cat([look.output for look in looks])
        return loss

    def _check_alike(self) -> None:
        """Check that all ranks look at one model; buffers are the first rank's, as in DistributedDataParallel."""
        if self.ranks.alone:
            return
        buffers = [*self.model.buffers()]
        marks = self.ranks.exchange("look at a batch", fingerprint(buffers))
        if any(mark != marks[0] for mark in marks):
            self.ranks.copied("copy buffers", buffers)
        agree_on_weights(self.ranks, "look at a batch", self.model)

    def _first_draw(self, joint: Joint) -> Draw:
        """Find what can be read and draw the candidates, from the first samples."""
        inputs, targets, weights = joint.first(LOOK)
        self._sample = (
            batch.take(inputs, slice(0, 1), len(targets)),
            targets[:1],
            weights[:1] if weights is not None else None,
        )
        self._find_maps(inputs)
        draw = propose(
            self.model, self.structure, self.maps, inputs, targets, self.metric, self.proposals, self.moves,
            self.affordable, self.generator, self.output, self._readings,
        )  # fmt: skip
        self._columns = lay_out(self.model, self.structure, self.maps, draw)
        return self._ascended(draw, joint) if self.proposals.ascent and draw.widen else draw

    @property
    def probe_inputs(self) -> Inputs:
        """The first inputs of the last batch, of all ranks, for verification; each call gathers them anew."""
        assert self._last is not None
        return self._last.first(PROBE)[0]

    def probe_loss(self) -> float:
        """Loss of the model, as it is now, on the last batch of all ranks."""
        assert self._last is not None
        last, count = self._last, len(self._last.targets)
        loss = 0.0
        if count:
            with torch.no_grad(), preserve_model_state(self.model):
                output = forward(self.model, last.inputs, self.output)
                loss = float(self.metric.loss(output, last.targets, last.weights))
        if self.ranks.alone:
            return loss
        return float(sum(self.ranks.exchange("compare losses", loss * count)) / last.share.total)

    def menu(self, samples: int, budget: Budget, *, whole_eta: bool = False) -> Menu:
        """The scored candidates; with `whole_eta` the network's own expansion score, see `whole_eta_of`."""
        assert self._draw is not None
        ledgers, pruning, limit = {}, {}, self._limit_sum / self.samples
        fits, helds = joined(self.ranks, self._fit), joined(self.ranks, self._held)
        prunable = {slot.map for space in self.structure.spaces for slot in space.of("consumer")}
        for name, label in self._labels():
            columns, fit, held = self._columns[name], fits[label], helds[label]
            ledgers[label] = ledger = Ledger(fit, held, columns.existing, self._shared.get(name))
            if name in self._data and type(ledger.inverse) is Inverse:
                self._remember(name, ledger.inverse.factor, fit.moments.rows + held.moments.rows)
            one = self.maps[name]
            if "prune" in self.moves and name in prunable and one.groups == 1 and not one.transposed:
                after = ledger.after(weight_of(self.model, one))
                pruning[name] = PruningLedger(ledger.inverse, after, ledger.locations)
        beside = Beside.of(self._beside, fits, helds)
        eta = sum(ledger.eta for ledger in ledgers.values())
        prices = Prices(
            samples=samples,
            loss_per_nat=self.metric.nat(self.loss, self._output),
            eta=whole_eta_of(ledgers, (fits, helds), limit) if whole_eta else eta,
            score_limit=limit,
        )
        return Menu(
            self.model, self.structure, self.maps, self._draw, ledgers, pruning,
            {label: self._columns[name] for name, label in self._labels()}, beside,
            prices=prices, budget=budget,
        )  # fmt: skip

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

    def _parts(self, share: Share) -> list[tuple[slice, list[tuple[str, slice]], bool]]:
        """What of a batch is looked at at once, which samples of that are in which fold, whether they are its first."""
        count = share.total
        half, most = count // 2, max(reading.locations for reading in self._readings.values())
        most_rows = MOST_ROWS / share.largest  # of all ranks
        if count * most <= most_rows:
            return [(slice(0, count), [("fit", slice(0, half)), ("held", slice(half, count))], True)]
        size = max(int(most_rows // most), 1)
        return [
            (slice(start, min(start + size, last)), [(fold, slice(0, min(size, last - start)))], start == first)
            for fold, first, last in (("fit", 0, half), ("held", half, count))
            for start in range(first, last, size)
        ]

    def _look(self, draw: Draw, part: tuple[slice, list[tuple[str, slice]], bool], joint: Joint) -> Look:
        """Look at one part of a batch: the model forwards and backwards, the trial forwards only."""
        which, folds, first = part
        (inputs, targets, weights), among = joint.few(which, self._sample)
        seen = capture(
            self.model, [*self.maps], inputs, targets, self.metric, generator=self.generator, weights=weights,
            find=self.output, layouts=self._readings, blocks=[*draw.repeats] if first else (), among=among,
        )  # fmt: skip
        self._dormant(draw, joint, which)
        reads = self._reads_of_trial(draw, inputs, len(targets))
        owns = {fold: joint.own(which, samples) for fold, samples in folds}
        samples = sum(own.samples.stop - own.samples.start for own in owns.values())
        look = Look(samples, seen.loss, seen.bound, seen.output) if samples else Look(0, 0.0, 0.0, seen.output)
        for name, label in self._labels():
            columns, layers, rows = self._columns[name], draw.layers.get(name, ()), seen.rows[label]
            parts = [
                Part(columns.arranged(read, layers), one.dz, one.s)
                for read, one in zip(reads.get(label, [one.read for one in rows.parts]), rows.parts, strict=True)
            ]
            if rows.data:
                self._data.add(name)
            for fold, own in owns.items():
                look.folds[fold][label] = self._fold(name, label, parts, own, weights, joint.share.total)
        if first:
            for fold, own in owns.items():
                for place, (columns, found) in look_beside(
                    self.model, self.structure, self.maps, draw, seen, own, weights, self._readings, self.generator
                ).items():
                    self._beside[place] = columns
                    look.folds[fold][str(place)] = found
        return look

    def _reads_of_trial(self, draw: Draw, inputs: Inputs, count: int) -> dict[str, list[Read]]:
        """What each map reads once all candidate units are there; nothing if there are none."""
        if not draw.widen:
            return {}
        assert self._copy is not None
        trial, readings = self._copy[1], self._readings
        with torch.no_grad(), preserve_model_state(trial), reading(trial, [*self.maps]) as seen:
            forward(trial, inputs, self.output)
        found: dict[str, list[Read]] = {}
        for name, several in seen.items():
            for number, one in enumerate(several):
                reads = reads_of(name, one, layout_of(readings, name, number), count)
                for label, read in zip(labels(name, len(reads)), reads, strict=True):
                    found.setdefault(label, []).append(read)
        return found

    def _fold(self, name: str, label: str, parts: list[Part], own: Own, weights: Tensor | None, count: int) -> Fold:
        """What some samples of one fold say about one map."""
        columns = self._columns[name]
        locations = sum(part.read.locations for part in parts)
        last = self._fit.get(label)
        if last is not None and last.moments.locations != locations:
            raise UnsupportedError(
                f"{name} reads {locations} rows a sample in one batch and {last.moments.locations} in another: "
                f"pad all samples to one size"
            )
        past = self.known.get(name)
        # one decision for the whole window, whose moments are summed
        single = locations == 1 and name in self._data
        if single and past is not None and last is None and not past.outgrown and count < 2 * past.rows:
            self._shared[name] = past.factor
        shared = name in self._shared
        few = locations == 1 and weights is None and not shared and Fold.few(own.count, columns.existing)
        every = columns.existing + sum(own.numel() for own in (*columns.spaces.values(), *columns.layers))
        places = places_of(parts, every, max(count // 2, 1), self.generator)
        some = [one.some(own.readable) for one in parts]
        return own.fold(some, places, weights, known=columns.existing if shared else 0, inputs=not few)

    def _ascended(self, draw: Draw, joint: Joint) -> Draw:
        """The candidates after their ascent, on the fold on which steps are fitted: the other one stays unseen."""
        strange = [name for name in self.maps if not self._is_plain(name)]
        if strange:
            raise UnsupportedError(
                f"the ascent of proposals isn't understood for {strange[0]}, which is no linear layer: use ascent=0"
            )
        inputs, targets, weights = joint.first(joint.share.total // 2)
        if weights is not None:
            weights = weights / weights.mean()
        hill = Hill(self.model, self.structure, draw, inputs, targets, self.metric, self.generator, weights)
        return ascend(hill, draw, self.proposals)

    def _is_plain(self, name: str) -> bool:
        """Whether a map is an ordinary linear layer that reads the batch once."""
        layer = self.maps[name].weight.rpartition(".")[0]
        return isinstance(self.model.get_submodule(layer), nn.Linear) and self._readings[name].layouts == (Layout(),)

    def _dormant(self, draw: Draw, joint: Joint, which: slice) -> None:
        """Make a copy of the model in which all candidate units are dormant: it computes the same function.

        Made anew when the model has changed since the last batch, as it does where batches are seen while training.
        """
        if not draw.widen:
            return
        state = fingerprint([*self.model.parameters(), *self.model.buffers()])
        if self._copy is None or state != self._copy[0]:
            trial = copy.deepcopy(self.model)
            normed = any(getattr(module, "running_mean", None) is not None for module in trial.modules())
            probe = joint.first(min(PROBE, which.stop - which.start), which.start)[0] if normed else None
            carry_out(trial, list(draw.widen.values()), self.structure, probe=probe)
            self._copy = state, trial
