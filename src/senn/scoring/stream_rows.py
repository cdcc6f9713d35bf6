"""Statistics of the rows that would write candidate units of a residual stream, behind norms.

Norms are RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467) and LayerNorm (Ba, Kiros & Hinton 2016, arXiv 1607.06450),
wherever they stand before what reads the stream, as in GPT-2 and Llama.

A new unit enters its norms as zeros, or, where they take off the mean, as the mean of the C units x that there are. It
leaves them as zeros, whatever the columns u are that read it. So these may be random, and the rows that write the unit
have a gradient although they are silent. With k new units and v_i the columns of unit i, weights w and the root mean
square sigma of the norm as it is now, weights and eps being adapted as surgery does (`senn.surgery.plan`),

    RMSNorm     g_new = w u^T dz / sigma                     a row moves sigma at second order only
    LayerNorm   g_j   = [w u^T dz - (sum_i w_i v_i^T dz + sum_new w u^T dz) / (C + k)] / sigma
                a row moves the mean of the C + k units at first order, and with it all of them; sigma at second order

summed over the readers and the norms that come after what writes it. LayerNorm sees nothing of what all units share, so
rows are counted from the mean of the existing units: where a row of a new unit moves by d, those of the existing ones
move by -d / C, the mean stays, and the gradient

    h_j = g_j - mean of g_i over the existing units

doesn't depend on k, nor on which other units are new. So a copy of the model that is wider by all candidates gives, by
one pass forwards and two backwards, the rows dz and s of all of them at the outputs of all that writes the stream.
Where eps stands in the code, surgery multiplies what is written by sqrt((C + k) / C); gradients are those of before.

A row w of a map with inputs a has the gradient G = E[h a^T], and under K-FAC, with what the existing rows explain of it
taken off (h_r = h - S_no S_oo^-1 h_o) and n locations, the gain

    D = n G_r A^-1 G_r^T / E[s_r^2] >= D' = n G_r A^-1 G_r^T / E[s_new^2]

(`senn.kfac.transposed`). What writes the stream is counted together (`senn.scoring.joint_gains`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from senn.candidates.stream_units import StreamUnits, Writer
from senn.graph import DependencyGraph, get_tensor
from senn.graph.model_copy import copy_model
from senn.kfac.accumulate import count_locations
from senn.kfac.batch_layout import BatchLayout, RowLayout
from senn.kfac.capture import capture
from senn.kfac.folds import Fold, LocalSlice
from senn.kfac.layer_statistics import RowChunk
from senn.kfac.loss_metric import LossMetric
from senn.kfac.pseudo_grad import Among
from senn.kfac.recorder import Tables
from senn.kfac.transposed import transposed_fold
from senn.pytree import Inputs, Output, Targets
from senn.scoring.column_layout import ColumnLayout
from senn.scoring.dormant_copy import digest
from senn.scoring.stream import JointCounts, StreamKey
from senn.surgery import apply_moves
from senn.surgery.plan import plan
from senn.surgery.reindex import NewPositions, new_positions


def norm_fraction(graph: DependencyGraph, stream: str, units: int) -> float:
    """Return by what surgery multiplies what writes a stream that gets units; 1 but for an eps in the code."""
    group = graph.group(stream)
    fixed = [norm for norm in group.norms if norm.fixed_eps]
    return fixed[0].fraction(group.width, units) ** -0.5 if fixed else 1.0


@dataclass(frozen=True, eq=False)
class StreamCopy:
    """A copy of a model whose streams are wider by all candidate units: it computes the same function.

    Attributes:
        model: the copy.
        positions: by stream and writer, the positions of its existing units, then of the new ones, in what it writes.
        digest: digest of the numbers of the model that it was copied from.
    """

    model: nn.Module
    positions: Mapping[tuple[str, str], Tensor]
    digest: list[int]

    @classmethod
    def of(
        cls, model: nn.Module, graph: DependencyGraph, streams: Mapping[str, StreamUnits]
    ) -> StreamCopy:
        """Copy a model and widen its streams.

        Args:
            model: the model, which stays as it is.
            graph: what in it can change.
            streams: the candidate units.
        """
        copied, moves = copy_model(model), [one.move for one in streams.values()]
        todo = plan(model, moves, graph)
        tensors = {name: get_tensor(model, name) for name in todo.shapes}
        new = new_positions(graph, todo, tensors)
        apply_moves(copied, moves, graph)
        positions = {
            (name, writer.name): _positions(writer, new[name])
            for name, units in streams.items()
            for writer in units.writers
        }
        return cls(copied, positions, digest(model))


def _positions(writer: Writer, new: Sequence[NewPositions]) -> Tensor:
    """Where units of a stream stand in what is written: existing ones, then new ones."""
    (one,) = (one for one in new if one.coupled is writer.coupled)
    return torch.cat([unit_places(one), one.index.flatten()])


def unit_places(one: NewPositions) -> Tensor:
    """Where the existing units of a group stand along a dimension now, each with a single position there."""
    former, now = one.kept(one.coupled.dim)
    places = torch.empty(one.former_size(one.coupled.dim), dtype=torch.long)
    places[former] = now
    return places[one.coupled.index.flatten()]


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamRecorder:
    """Records the rows that would write candidate units.

    Attributes:
        graph: what in the model can change.
        streams: the candidate units.
        layouts: by linear map, how its rows belong to samples.
        metric: the loss.
        output: finds the outputs in what the model returns.
    """

    graph: DependencyGraph
    streams: Mapping[str, StreamUnits]
    layouts: Mapping[str, BatchLayout]
    metric: LossMetric
    output: Output | None

    def chunks(
        self,
        copied: StreamCopy,
        inputs: Inputs,
        targets: Targets,
        weights: Tensor | None,
        *,
        count: int,
        among: Among | None,
        generator: torch.Generator,
    ) -> dict[StreamKey, list[RowChunk]]:
        """Run the copy forwards and backwards.

        Args:
            copied: the copy.
            inputs: inputs of some samples.
            targets: their targets.
            weights: their weights, or None for ones.
            count: how many they are.
            among: which samples of a larger batch these are.
            generator: source of the signs of the curvature.

        Returns:
            by stream and what writes it, its calls, with gradients at the existing units and at the new ones.
        """
        writers = {one.name: one for units in self.streams.values() for one in units.writers}
        shared = {name: one.shared for name, one in writers.items() if one.map is None}
        a_row = BatchLayout(layouts=(RowLayout(),), locations=1, biased=False)
        rows = capture(
            copied.model,
            [*writers],
            inputs,
            targets,
            self.metric,
            generator=generator,
            weights=weights,
            find=self.output,
            layouts={name: a_row if name in shared else self.layouts[name] for name in writers},
            among=among,
            tables=Tables(shared=shared, samples=count),
        ).rows
        return {
            StreamKey(name, writer.name, is_units=True): [
                self._of_units(name, units, copied.positions[name, writer.name], chunk)
                for chunk in rows[writer.name].chunks
            ]
            for name, units in self.streams.items()
            for writer in units.writers
        }

    def _of_units(
        self, name: str, units: StreamUnits, positions: Tensor, chunk: RowChunk
    ) -> RowChunk:
        """Take the gradients at the units of a stream, as they would be before it is widened."""
        factor = norm_fraction(self.graph, name, units.move.units)
        existing = len(positions) - units.move.units

        def taken(rows: Tensor) -> Tensor:
            rows = rows[..., positions.to(rows.device)] * factor
            if units.centered:
                rows = rows - rows[..., :existing].mean(-1, keepdim=True)
            return rows

        return replace(
            chunk,
            output_grad=taken(chunk.output_grad),
            pseudo_grad=taken(chunk.pseudo_grad),
        )

    def folds(
        self,
        chunks: Mapping[StreamKey, Sequence[RowChunk]],
        slices: Sequence[LocalSlice],
        weights: Tensor | None,
        joint_counts: JointCounts,
    ) -> list[dict[StreamKey, Fold]]:
        """Sum up the statistics of the samples of each fold.

        Args:
            chunks: what `chunks` has found.
            slices: this rank's samples of each fold.
            weights: weights of all samples of this rank, or None for ones.
            joint_counts: makes numbers of live locations over all ranks of those over so many samples of this one.
        """
        samples = sum(own.samples.stop - own.samples.start for own in slices)
        counts = joint_counts({key: count_locations(of) for key, of in chunks.items()}, samples)
        found: list[dict[StreamKey, Fold]] = [{} for _ in slices]
        for key, several in chunks.items():
            compact = [
                chunk.compact(count.most) for chunk, count in zip(several, counts[key], strict=True)
            ]
            (table,) = (
                writer.rows
                for writer in self.streams[key.place].writers
                if writer.name == key.output
            )
            for folds, own in zip(found, slices, strict=True):
                parts = [chunk.select(own.readable) for chunk in compact]
                folds[key] = transposed_fold(parts, own, weights, counts=counts[key], table=table)
        return found

    def columns(self, key: StreamKey) -> ColumnLayout:
        """Layout of the transposed map's columns: existing units, then new ones."""
        return ColumnLayout(
            existing=self.graph.group(key.place).width, permutation=torch.arange(1), inputs=1
        )
