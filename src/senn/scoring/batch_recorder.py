"""Recording one part of a batch: rows of every linear map, with the columns of all candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from senn import pytree
from senn.candidates.candidate_set import CandidateSet
from senn.graph import DependencyGraph, LinearMap
from senn.kfac.accumulate import count_locations, sampled_locations
from senn.kfac.batch_layout import BatchLayout
from senn.kfac.capture import capture
from senn.kfac.folds import Fold, LocalSlice
from senn.kfac.layer_inputs import LayerInput
from senn.kfac.layer_statistics import LayerStatistics, LocationCount, RowChunk
from senn.kfac.loss_metric import LossMetric
from senn.kfac.pseudo_grad import Among
from senn.pytree import Inputs, Output
from senn.scoring.batch_statistics import BatchPart, BatchStatistics, FoldStatistics
from senn.scoring.column_layout import ColumnLayout
from senn.scoring.data_covariance import DataCovariances
from senn.scoring.dormant_copy import DormantCopy
from senn.scoring.global_batch import GlobalBatch, Samples
from senn.scoring.stream import StreamKey, score_stream
from senn.scoring.stream_rows import StreamCopy, StreamRecorder


@dataclass(frozen=True, eq=False, kw_only=True)
class BatchRecorder:
    """Records the parts of one batch.

    Attributes:
        model: the model, read only.
        graph: what in it can change.
        maps: the linear maps that are read, by name.
        layouts: how the rows of each map belong to samples.
        all_layouts: the same for maps that aren't read as well: a block's copy runs them.
        labels: name of each map with the label of each of its groups.
        columns: layout of the columns, by label.
        candidate_set: the candidates.
        metric: the loss.
        covariances: covariances of the data; maps that read the data are noted there.
        generator: source of randomness.
        output: finds the outputs in what the model returns.
        stand_in: one sample to run the model on where this rank has none.
        dormant_copy: gives the copy in which all candidate units are dormant, calibrated on those
            samples if it has to be made.
        stream_copy: gives the copy whose streams are wider by all candidate units.
    """

    model: nn.Module
    graph: DependencyGraph
    maps: Mapping[str, LinearMap]
    layouts: Mapping[str, BatchLayout]
    all_layouts: Mapping[str, BatchLayout]
    labels: Sequence[tuple[str, str]]
    columns: Mapping[str, ColumnLayout]
    candidate_set: CandidateSet
    metric: LossMetric
    covariances: DataCovariances
    generator: torch.Generator
    output: Output | None
    stand_in: Samples
    dormant_copy: Callable[[slice], DormantCopy]
    stream_copy: Callable[[], StreamCopy]

    def record(
        self, part: BatchPart, batch: GlobalBatch, *, past: FoldStatistics
    ) -> BatchStatistics:
        """Run the model forwards and backwards, and the dormant copy forwards only.

        Args:
            part: the part.
            batch: the batch.
            past: statistics of the batches before, in the fold that steps are fitted on.
        """
        (inputs, targets, weights), among = batch.local(part.samples, self.stand_in)
        before = self.generator.get_state()
        found = capture(
            self.model,
            [*self.maps],
            inputs,
            targets,
            self.metric,
            generator=self.generator,
            weights=weights,
            find=self.output,
            layouts=self.layouts,
            # A block is run once more for its copy, so only few samples are.
            blocks=[*self.candidate_set.repeats] if part.is_first else (),
            among=among,
        )
        reads = self._reads(found, inputs, part, count=pytree.count(targets))
        fit, held_out = FoldStatistics(), FoldStatistics()
        # Folds are slices of the joint order, so a rank may have no sample of one.
        slices = [
            (statistics, batch.local_slice(part.samples, fold))
            for statistics, fold in ((fit, part.fit), (held_out, part.held_out))
            if fold is not None
        ]
        # a rank that has no samples here ran the stand-in, whose figures don't count
        samples = sum(own.samples.stop - own.samples.start for _, own in slices)
        counts = batch.joint_counts(
            {label: count_locations(found.rows[label].chunks) for _, label in self.labels}, samples
        )
        total = batch.share.total
        for name, label in self.labels:
            # one map after the other: columns of all candidates at all maps would be several times the activations
            several = self._chunks(name, label, found, reads.pop(label, None))
            # padding goes before anything is summed, sampled or kept
            compact = [
                chunk.compact(count.most)
                for chunk, count in zip(several, counts[label], strict=True)
            ]
            for statistics, own in slices:
                statistics.maps[label] = self._fold(
                    label,
                    compact,
                    own,
                    weights,
                    counts=counts[label],
                    total=total,
                    past=past.maps.get(label),
                )
        stream_columns: dict[StreamKey, ColumnLayout] = {}
        if self.candidate_set.streams:
            local = (inputs, targets, weights)
            stream_columns |= self._record_units(slices, local, among, before, batch)
        if part.is_first:  # a few samples of each fold are enough there
            locations = max(sum(call.most for call in calls) for calls in counts.values())
            for statistics, own in slices:
                stream_columns |= self._record_stream(
                    statistics, found, own, weights, batch, locations=max(locations, 1)
                )
        return BatchStatistics(
            samples=samples,
            loss=found.loss if samples else 0.0,
            score_limit=found.score_limit if samples else 0.0,
            gradient_square=found.gradient_square if samples else 0.0,
            curvature_trace=found.curvature_trace if samples else 0.0,
            output=found.output,
            used=found.used if samples else None,
            fit=fit,
            held_out=held_out,
            stream_columns=stream_columns,
        )

    def _reads(
        self, found: LayerStatistics, inputs: Inputs, part: BatchPart, *, count: int
    ) -> dict[str, list[LayerInput]]:
        """What the maps of the dormant copy read; empty if no unit is a candidate."""
        for _, label in self.labels:
            # The covariance of the data doesn't change in training: it is kept.
            if found.rows[label].reads_inputs:
                self.covariances.note(label)
        if not self.candidate_set.widen:
            return {}
        copied = self.dormant_copy(part.samples)
        return copied.layer_inputs(self.layouts, inputs, self.output, count)

    def _chunks(
        self, name: str, label: str, found: LayerStatistics, reads: list[LayerInput] | None
    ) -> list[RowChunk]:
        """Rows of one map with the columns of all candidates.

        Gradients are the model's, inputs those of the dormant copy: it computes the same function.
        """
        layers = self.candidate_set.layers.get(name, ())
        chunks = found.rows[label].chunks
        if reads is None:
            reads = [chunk.layer_input for chunk in chunks]
        return [
            replace(chunk, layer_input=self.columns[label].permuted(read, layers))
            for read, chunk in zip(reads, chunks, strict=True)
        ]

    def _fold(
        self,
        label: str,
        chunks: list[RowChunk],
        own: LocalSlice,
        weights: Tensor | None,
        *,
        counts: Sequence[LocationCount],
        total: int,
        past: Fold | None,
    ) -> Fold:
        """Statistics of one map over this rank's samples of a fold, of a batch of `total` samples."""
        columns = self.columns[label]
        # one row of each sample, exactly
        is_single = sum(one.most for one in counts) == 1 == sum(one.mean for one in counts)
        # Decided on the first batch: sums of one session must have the same columns.
        if is_single and past is None:
            self.covariances.use(label, total)
        is_known = self.covariances.factor(label) is not None
        # a covariance of fewer rows than columns says no more than the rows, at more cost
        is_plain = is_single and weights is None and not is_known
        keeps_rows = is_plain and Fold.stands_alone(own.count, columns.existing)
        size = columns.existing
        size += sum(one.numel() for one in (*columns.groups.values(), *columns.layers))
        # As many locations as a covariance of all columns needs, over half a batch.
        places = sampled_locations(chunks, size, max(total // 2, 1), self.generator, counts)
        return own.accumulate(
            [chunk.select(own.readable) for chunk in chunks],
            places,
            weights,
            counts=counts,
            known=columns.existing if is_known else 0,
            inputs=not keeps_rows,
        )

    def _record_units(
        self,
        slices: Sequence[tuple[FoldStatistics, LocalSlice]],
        samples: Samples,
        among: Among | None,
        generator_state: Tensor,
        batch: GlobalBatch,
    ) -> dict[StreamKey, ColumnLayout]:
        """Add the statistics of candidate units of streams; returns the layout of the transposed maps' columns."""
        inputs, targets, weights = samples
        recorder = StreamRecorder(
            graph=self.graph,
            streams=self.candidate_set.streams,
            layouts=self.all_layouts,
            metric=self.metric,
            output=self.output,
        )
        # The copy computes what the model does: with the same signs, its curvature is the same sample of it.
        generator = torch.Generator(self.generator.device)
        generator.set_state(generator_state)
        chunks = recorder.chunks(
            self.stream_copy(),
            inputs,
            targets,
            weights,
            count=pytree.count(targets),
            among=among,
            generator=generator,
        )
        folds = recorder.folds(chunks, [own for _, own in slices], weights, batch.joint_counts)
        for (statistics, _), found in zip(slices, folds, strict=True):
            statistics.streams.update(found)
        return {key: recorder.columns(key) for key in chunks}

    def _record_stream(
        self,
        statistics: FoldStatistics,
        found: LayerStatistics,
        own: LocalSlice,
        weights: Tensor | None,
        batch: GlobalBatch,
        *,
        locations: int,
    ) -> dict[StreamKey, ColumnLayout]:
        """Add the statistics of candidates for streams; returns the layout of their columns."""
        scored = score_stream(
            model=self.model,
            graph=self.graph,
            maps=self.maps,
            candidate_set=self.candidate_set,
            found=found,
            own=own,
            weights=weights,
            layouts=self.all_layouts,
            locations=locations,
            joint_counts=batch.joint_counts,
            generator=self.generator,
        )
        statistics.streams.update({key: fold for key, (_, fold) in scored.items()})
        return {key: columns for key, (columns, _) in scored.items()}
