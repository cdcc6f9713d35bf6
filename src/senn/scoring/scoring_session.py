"""One scoring session: candidates drawn once, statistics summed over all batches seen until a decision is taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from senn import pytree
from senn.candidates.candidate_config import CandidateConfig
from senn.candidates.candidate_set import CandidateSet
from senn.candidates.gain_ascent import GainObjective, optimize_candidates
from senn.candidates.sampling import SCALE_SAMPLES, sample_candidates
from senn.collectives import Communicator
from senn.errors import UnsupportedError
from senn.graph import DependencyGraph, LinearMap
from senn.kfac.accumulate import sampled_locations
from senn.kfac.batch_layout import BatchLayout, RowLayout, infer_batch_layouts
from senn.kfac.capture import RowChunk, capture, labels
from senn.kfac.factors import FactorInverse
from senn.kfac.folds import Fold, LocalSlice
from senn.kfac.loss_metric import LossMetric
from senn.kfac.recorder import forward
from senn.policies import Budget
from senn.preserve import preserve_model_state
from senn.pytree import Inputs, Output
from senn.scoring.batch_statistics import MOST_ROWS, BatchPart, BatchStatistics, FoldStatistics, batch_parts
from senn.scoring.column_layout import ColumnLayout, build_column_layout
from senn.scoring.data_covariance import DataCovariance, DataCovariances
from senn.scoring.dormant_copy import DormantCopy, digest
from senn.scoring.gains import LayerGains, Prices
from senn.scoring.global_batch import Joint, Some, joined
from senn.scoring.network_score import whole_eta_of
from senn.scoring.pool import CandidatePool
from senn.scoring.pruning_costs import PruningCosts, weight_of
from senn.scoring.rank_checks import agree_on_weights
from senn.scoring.stream import StreamCandidates, StreamKey, score_stream
from senn.surgery.outputs import model_digest

PROBE = 1024
"""Samples on which a change is verified, and from which new BatchNorm channels take their statistics."""


@dataclass(frozen=True, eq=False)
class SessionSnapshot:
    """State of a session, to go back to."""

    attributes: dict[str, Any]
    fit: FoldStatistics
    held_out: FoldStatistics
    covariances: Any
    generator: Tensor


class ScoringSession:
    """Candidates of one round and the statistics gathered about them.

    Args:
        model: the model, read only.
        graph: what in it can change.
        metric: the loss.
        candidate_config: how candidates are drawn.
        moves: which of `width`, `depth`, `prune` are wanted.
        generator: source of randomness.
        known: as of `DataCovariances`.
        min_gain: least promise, in nats per sample, with which so many parameters of a new layer could be accepted;
            by default everything is scored.
        output: finds the outputs in what the model returns.
        readings: by linear map, how it can be read, or why not: filled in by the first window, kept by the caller.
        communicator: the processes that look together; by default this one alone.

    Attributes:
        maps: the linear maps that are read, by name.
        samples: looked at so far, by all ranks.
        loss: mean loss over them.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: DependencyGraph,
        *,
        metric: LossMetric,
        candidate_config: CandidateConfig,
        moves: Sequence[str],
        generator: torch.Generator,
        known: dict[str, DataCovariance],
        min_gain: Callable[[int], float] | None = None,
        output: Output | None = None,
        readings: dict[str, BatchLayout | str] | None = None,
        communicator: Communicator | None = None,
    ) -> None:
        self.output = output
        self.readings = {} if readings is None else readings
        self.maps: dict[str, LinearMap] = {}
        self._covariances = DataCovariances(known)
        self.model, self.graph, self.metric = model, graph, metric
        self.candidate_config, self.moves, self.min_gain = candidate_config, tuple(moves), min_gain
        self.generator = generator
        self.samples = 0
        self._loss_sum = self._score_limit_sum = 0.0
        self._draw: CandidateSet | None = None
        self._copy: DormantCopy | None = None
        self._beside: dict[StreamKey, ColumnLayout] = {}
        self._columns: dict[str, ColumnLayout] = {}
        self._fit, self._held = FoldStatistics(), FoldStatistics()
        self.communicator = communicator if communicator is not None else Communicator()
        self._last: Joint | None = None
        self._sample: Some = (torch.empty(0), torch.empty(0), None)
        self.probe_loss_before = float("nan")
        self._output = torch.empty(0)

    @property
    def loss(self) -> float:
        """Mean loss over the samples seen."""
        return self._loss_sum / max(self.samples, 1)

    def add_batch(self, inputs: Inputs, targets: Tensor, weights: Tensor | None = None) -> float:
        """Look at one batch; returns its loss. The model is left as it was."""
        state = self.generator.get_state()
        try:
            self._check_alike()
            joint = Joint.of(self.communicator, inputs, targets, weights, self.generator)
            with self.communicator.fail_together("look at a batch"):
                draw = self._first_draw(joint) if self._draw is None else self._draw
                looks = [self._look(draw, part, joint) for part in self._parts(joint)]
        except BaseException:
            if not self.communicator.is_single:  # one rank may have drawn more than another
                self.generator.set_state(state)
            raise
        self._draw = draw  # only now: a batch that was refused leaves nothing behind
        for look in looks:
            self._fit.add(look.fit)
            self._held.add(look.held_out)
        count = joint.share.total
        own = [sum(one.loss * one.samples for one in looks), sum(one.score_limit * one.samples for one in looks)]
        total, limit = (
            sum(column) for column in zip(*self.communicator.all_gather_object("look at a batch", own), strict=True)
        )
        loss = float(total / count)
        self.samples += count
        self._loss_sum += loss * count
        self._score_limit_sum += limit
        self._last, self.probe_loss_before = joint, loss
        self._output = torch.cat([look.output for look in looks])
        return loss

    def _check_alike(self) -> None:
        """Check that all ranks look at one model; buffers are the first rank's, as in DistributedDataParallel."""
        if self.communicator.is_single:
            return
        buffers = [*self.model.buffers()]
        marks = self.communicator.all_gather_object("look at a batch", model_digest(buffers))
        if any(mark != marks[0] for mark in marks):
            self.communicator.broadcast("copy buffers", buffers)
        agree_on_weights(self.communicator, "look at a batch", self.model)

    def _first_draw(self, joint: Joint) -> CandidateSet:
        """Find what can be read and draw the candidates, from the first samples."""
        inputs, targets, weights = joint.first(SCALE_SAMPLES)
        self._sample = (
            pytree.index_batch(inputs, slice(0, 1), len(targets)),
            targets[:1],
            weights[:1] if weights is not None else None,
        )
        self._find_maps(inputs)
        draw = sample_candidates(
            model=self.model,
            graph=self.graph,
            maps=self.maps,
            inputs=inputs,
            targets=targets,
            metric=self.metric,
            config=self.candidate_config,
            moves=self.moves,
            min_gain=self.min_gain,
            generator=self.generator,
            output=self.output,
            readings=self._readings,
        )
        columns = build_column_layout(self.model, self.graph, self.maps, draw)
        self._columns = {label: columns[name] for name, label in self._labels()}
        return self._ascended(draw, joint) if self.candidate_config.ascent_steps and draw.widen else draw

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
        if self.communicator.is_single:
            return loss
        return float(sum(self.communicator.all_gather_object("compare losses", loss * count)) / last.share.total)

    def pool(self, samples: int, budget: Budget, *, whole_eta: bool = False) -> CandidatePool:
        """The scored candidates; with `uses_joint_score` the network's own expansion score, see `whole_eta_of`."""
        assert self._draw is not None
        layer_gains_by_map, pruning, limit = {}, {}, self._score_limit_sum / self.samples
        fits, helds = joined(self.communicator, self._fit.maps), joined(self.communicator, self._held.maps)
        streams = [joined(self.communicator, folds.streams) for folds in (self._fit, self._held)]
        prunable = {coupled.map for group in self.graph.groups for coupled in group.dims_of("consumer")}
        for name, label in self._labels():
            columns, fit, held = self._columns[label], fits[label], helds[label]
            layer_gains_by_map[label] = layer_gains = LayerGains(
                fit, held, columns.existing, self._covariances.factor(label)
            )
            if type(layer_gains.inverse) is FactorInverse:
                rows = fit.factors.rows + held.factors.rows
                self._covariances.remember(label, layer_gains.inverse.factor, rows, columns.existing)
            one = self.maps[name]
            if "prune" in self.moves and name in prunable and one.groups == 1 and not one.transposed:
                after = layer_gains.next_weights(weight_of(self.model, one))
                pruning[name] = PruningCosts(layer_gains.inverse, after, layer_gains.locations)
        beside = StreamCandidates.from_folds(self._beside, *streams)
        eta = sum(layer_gains.eta for layer_gains in layer_gains_by_map.values())
        prices = Prices(
            samples=samples,
            loss_per_nat=self.metric.loss_per_nat(self.loss, self._output),
            eta=whole_eta_of(layer_gains_by_map, (fits, helds), limit) if whole_eta else eta,
            score_limit=limit,
        )
        return CandidatePool(
            self.model, self.graph, self.maps, self._draw, layer_gains_by_map, pruning, self._columns, beside,
            prices=prices, budget=budget,
        )  # fmt: skip

    def snapshot(self) -> SessionSnapshot:
        """State of the session, for `restore`.

        It holds the session's attributes themselves, since folds, layouts and copies are only ever replaced, never
        written to; what is written to, sums of folds, tables and the generator, it copies.
        """
        written = {"_fit", "_held", "_covariances", "readings"}
        held = {name: value for name, value in vars(self).items() if name not in written}
        return SessionSnapshot(
            attributes={name: value.copy() if isinstance(value, dict) else value for name, value in held.items()},
            fit=self._fit.copy(),
            held_out=self._held.copy(),
            covariances=self._covariances.snapshot(),
            generator=self.generator.get_state(),
        )

    def restore(self, snapshot: SessionSnapshot) -> None:
        """Bring back the state of `snapshot`, known covariances and the generator with it."""
        for name, value in snapshot.attributes.items():
            setattr(self, name, value.copy() if isinstance(value, dict) else value)
        self._fit, self._held = snapshot.fit.copy(), snapshot.held_out.copy()
        self._covariances.restore(snapshot.covariances)
        self.generator.set_state(snapshot.generator)

    # -- inside

    @property
    def _readings(self) -> dict[str, BatchLayout]:
        return {name: found for name, found in self.readings.items() if isinstance(found, BatchLayout)}

    def _labels(self) -> list[tuple[str, str]]:
        """Names of the maps with those of their groups, each of which has an account of its own."""
        return [(name, label) for name in self.maps for label in labels(name, self._readings[name].groups)]

    def _find_maps(self, inputs: Inputs) -> None:
        """Which linear maps can be read on such inputs, and how."""
        names = self.graph.scored_maps
        if any(name not in self.readings for name in names):
            uses = {name: self.graph.map(name).n_uses for name in names}
            found = infer_batch_layouts(self.model, uses, inputs, self.output)
            self.readings.clear()
            self.readings.update(found)
        readings = self._readings
        self.maps = {name: self.graph.map(name) for name in names if name in readings}
        if not self.maps:
            reasons = [found for found in self.readings.values() if isinstance(found, str)]
            raise UnsupportedError("; ".join(reasons[:3]) or "the model has no linear map whose inputs could be read")
        for name, one in self.maps.items():
            if not readings[name].biased:
                self.maps[name] = replace(one, bias=None)

    def _parts(self, joint: Joint) -> list[BatchPart]:
        """The parts of a batch that are looked at one after the other, by all ranks alike."""
        locations = max(reading.locations for reading in self._readings.values())
        return batch_parts(joint.share.total, locations, MOST_ROWS / joint.share.largest)

    def _look(self, draw: CandidateSet, part: BatchPart, joint: Joint) -> BatchStatistics:
        """Look at one part of a batch: the model forwards and backwards, the dormant copy forwards only."""
        (inputs, targets, weights), among = joint.head(part.samples, self._sample)
        seen = capture(
            self.model, [*self.maps], inputs, targets, self.metric, generator=self.generator, weights=weights,
            find=self.output, layouts=self._readings, blocks=[*draw.repeats] if part.is_first else (), among=among,
        )  # fmt: skip
        reads = {}
        if draw.widen:
            readings = {name: self._readings[name] for name in self.maps}
            reads = self._dormant_copy(draw, joint, part.samples).reads(readings, inputs, self.output, len(targets))
        found = FoldStatistics(), FoldStatistics()
        owns = [
            (folds, joint.own(part.samples, samples))
            for folds, samples in zip(found, (part.fit, part.held_out), strict=True)
            if samples is not None
        ]
        for name, label in self._labels():
            columns, layers, rows = self._columns[label], draw.layers.get(name, ()), seen.rows[label]
            parts = [
                RowChunk(
                    layer_input=columns.permuted(read, layers), output_grad=one.output_grad, pseudo_grad=one.pseudo_grad
                )
                for read, one in zip(
                    reads.get(label, [one.layer_input for one in rows.chunks]), rows.chunks, strict=True
                )
            ]
            if rows.reads_inputs:
                self._covariances.note(label)
            for folds, own in owns:
                folds.maps[label] = self._fold(label, parts, own, weights, joint.share.total)
        for folds, own in owns if part.is_first else ():
            beside = score_stream(
                self.model, self.graph, self.maps, draw, seen, own, weights, self._readings, self.generator
            )
            for key, (columns, fold) in beside.items():
                self._beside[key] = columns
                folds.streams[key] = fold
        samples = sum(own.samples.stop - own.samples.start for _, own in owns)
        loss, limit = (seen.loss, seen.score_limit) if samples else (0.0, 0.0)
        return BatchStatistics(
            samples=samples, loss=loss, score_limit=limit, output=seen.output, fit=found[0], held_out=found[1]
        )

    def _fold(self, label: str, parts: list[RowChunk], own: LocalSlice, weights: Tensor | None, count: int) -> Fold:
        """What some samples of one fold say about one map."""
        columns = self._columns[label]
        locations = sum(part.layer_input.locations for part in parts)
        last = self._fit.maps.get(label)
        if last is not None and last.factors.locations != locations:
            raise UnsupportedError(
                f"{label} reads {locations} rows a sample in one batch and {last.factors.locations} in another: "
                f"pad all samples to one size"
            )
        if locations == 1 and last is None:
            self._covariances.use(label, count)
        shared = self._covariances.factor(label) is not None
        few = locations == 1 and weights is None and not shared and Fold.stands_alone(own.count, columns.existing)
        every = columns.existing + sum(own.numel() for own in (*columns.groups.values(), *columns.layers))
        places = sampled_locations(parts, every, max(count // 2, 1), self.generator)
        some = [one.select(own.readable) for one in parts]
        return own.accumulate(some, places, weights, known=columns.existing if shared else 0, inputs=not few)

    def _ascended(self, draw: CandidateSet, joint: Joint) -> CandidateSet:
        """The candidates after their ascent, on the fold on which steps are fitted: the other one stays unseen."""
        strange = [name for name in self.maps if not self._is_plain(name)]
        if strange:
            raise UnsupportedError(
                f"the ascent of proposals isn't understood for {strange[0]}, which is no linear layer: use ascent=0"
            )
        inputs, targets, weights = joint.first(joint.share.total // 2)
        if weights is not None:
            weights = weights / weights.mean()
        objective = GainObjective(
            model=self.model,
            graph=self.graph,
            candidates=draw,
            inputs=inputs,
            targets=targets,
            metric=self.metric,
            generator=self.generator,
            weights=weights,
        )
        return optimize_candidates(objective, draw, self.candidate_config)

    def _is_plain(self, name: str) -> bool:
        """Whether a map is an ordinary linear layer that reads the batch once."""
        layer = self.maps[name].weight.rpartition(".")[0]
        return isinstance(self.model.get_submodule(layer), nn.Linear) and self._readings[name].layouts == (RowLayout(),)

    def _dormant_copy(self, draw: CandidateSet, joint: Joint, which: slice) -> DormantCopy:
        """The dormant copy, made anew when the model has changed since the last batch, as it does while training."""
        if self._copy is None or self._copy.digest != digest(self.model):

            def probe() -> Inputs:
                return joint.first(min(PROBE, which.stop - which.start), which.start)[0]

            self._copy = DormantCopy.of(self.model, self.graph, draw, probe)
        return self._copy
