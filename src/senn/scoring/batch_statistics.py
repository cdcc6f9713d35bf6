"""Statistics of one part of a batch, how a batch is divided into parts and folds, and a session's state of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from senn.collectives import Communicator
from senn.graph import LinearMap, get_tensor
from senn.kfac.batch_layout import BatchLayout
from senn.kfac.folds import Fold
from senn.scoring.column_layout import ColumnLayout
from senn.scoring.data_covariance import CovarianceSnapshot
from senn.scoring.stream import StreamKey

MOST_ROWS = 1 << 16
"""Rows of one map that pass through the model at once: scoring a batch of images needs less memory than training on it.

Twice as many rows need twice the memory; half as many run slower, since each part runs the model and the dormant copy.
"""


MOST_NUMBERS = 1 << 25
"""Numbers recorded of all maps together at once, of what they read and twice of what they return: 128 MiB in float32.

Half as many need less memory at once, and a tenth more time for a language model of a million parameters.
"""


@dataclass(eq=False, kw_only=True)
class FoldStatistics:
    """Statistics of the samples of one fold.

    Attributes:
        maps: by linear map, or by group of a grouped one.
        streams: by candidate for a residual stream.
    """

    maps: dict[str, Fold] = field(default_factory=dict)
    streams: dict[StreamKey, Fold] = field(default_factory=dict)

    def add(self, other: FoldStatistics) -> None:
        """Take over the statistics of further samples; the other ones are empty then, so that nothing is held twice."""
        for name in [*other.maps]:
            fold = other.maps.pop(name)
            self.maps[name] = self.maps[name] + fold if name in self.maps else fold
        for key in [*other.streams]:
            fold = other.streams.pop(key)
            self.streams[key] = self.streams[key] + fold if key in self.streams else fold

    def copy(self) -> FoldStatistics:
        """A copy to which more can be added without changing these."""
        return FoldStatistics(maps=dict(self.maps), streams=dict(self.streams))


@dataclass(frozen=True, eq=False, kw_only=True)
class BatchStatistics:
    """Statistics of one part of a batch.

    Attributes:
        samples: how many of its samples are this rank's.
        loss: their mean loss; 0 for none.
        score_limit: their lambda; 0 for none.
        gradient_square: mean square of their gradients at the outputs; 0 for none.
        curvature_trace: and of their pseudo-gradients there.
        output: the model's outputs, (samples, ...).
        used: samples that can change the loss, (samples,) Boolean; None for all of them.
        fit: statistics of the samples on which steps are fitted.
        held_out: and of those on which they are valued.
        stream_columns: by candidate for a residual stream, the layout of its columns.
    """

    samples: int
    loss: float
    score_limit: float
    gradient_square: float
    curvature_trace: float
    output: Tensor
    used: Tensor | None = None
    fit: FoldStatistics = field(default_factory=FoldStatistics)
    held_out: FoldStatistics = field(default_factory=FoldStatistics)
    stream_columns: dict[StreamKey, ColumnLayout] = field(default_factory=dict)


def joint_sums(
    communicator: Communicator, parts: Sequence[BatchStatistics], labels: float
) -> list[float]:
    """Sum figures over the samples of all ranks; ranks and parts may have different numbers of them.

    Args:
        communicator: the processes.
        parts: the parts of this rank's batch.
        labels: number of its labels.

    Returns:
        Loss, lambda, labels, square of the gradient, trace of the curvature.
    """
    sums = [
        sum(getattr(part, name) * part.samples for part in parts)
        for name in ("loss", "score_limit", "gradient_square", "curvature_trace")
    ]
    own = [*sums[:2], labels, *sums[2:]]
    by_rank = communicator.all_gather_object("observe a batch", own)
    return [sum(column) for column in zip(*by_rank, strict=True)]


@dataclass(frozen=True, kw_only=True)
class BatchPart:
    """Samples of a batch that pass through the model at once.

    Attributes:
        samples: their positions in the batch.
        fit: those of them that are in the fold on which steps are fitted, counted from the first.
        held_out: and those in the other fold.
        is_first: True for the first part of a fold.
    """

    samples: slice
    fit: slice | None = None
    held_out: slice | None = None
    is_first: bool = True


def most_samples(
    model: nn.Module, maps: Mapping[str, LinearMap], layouts: Mapping[str, BatchLayout]
) -> float:
    """Return how many samples may pass through a model at once, by `MOST_ROWS` and `MOST_NUMBERS`.

    Args:
        model: the model.
        maps: the linear maps that are read, by name.
        layouts: by map, how its rows belong to samples; further ones count by their rows.
    """
    numbers = 0
    for name, one in maps.items():
        shape = get_tensor(model, one.weight).shape
        width = shape[one.in_dim] * one.groups + 2 * shape[one.out_dim]
        numbers += layouts[name].locations * width
    locations = max(layout.locations for layout in layouts.values())
    return min(MOST_ROWS / locations, MOST_NUMBERS / numbers)


def batch_parts(count: int, most: float) -> list[BatchPart]:
    """Split a batch into parts of few samples; steps are fitted on its first half.

    Args:
        count: number of samples.
        most: samples of one part, at most; one at least, whatever its size.

    Returns:
        one part that holds both folds if it is small enough, else several that each lie within one fold.
    """
    # The joint order is random, so halves are.
    half = count // 2
    if count <= most:
        return [BatchPart(samples=slice(0, count), fit=slice(0, half), held_out=slice(half, count))]
    size = max(int(most), 1)
    parts = []
    for start in range(0, half, size):
        samples = slice(start, min(start + size, half))
        parts.append(
            BatchPart(samples=samples, fit=slice(0, samples.stop - start), is_first=start == 0)
        )
    for start in range(half, count, size):
        samples = slice(start, min(start + size, count))
        parts.append(
            BatchPart(
                samples=samples, held_out=slice(0, samples.stop - start), is_first=start == half
            )
        )
    return parts


def whole_batch(count: int, *, held_out: bool) -> BatchPart:
    """Take a whole batch as one part of one fold, for a loss that couples its samples.

    Args:
        count: number of samples.
        held_out: True for the fold on which steps are valued, False for that on which they are fitted.
    """
    samples = slice(0, count)
    return BatchPart(
        samples=samples,
        fit=None if held_out else samples,
        held_out=samples if held_out else None,
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class SessionSnapshot:
    """State of a session to go back to, see `ScoringSession.snapshot`."""

    attributes: dict[str, Any]
    fit: FoldStatistics
    held_out: FoldStatistics
    covariances: CovarianceSnapshot
    generator: Tensor


def with_own_tables(attributes: dict[str, Any]) -> dict[str, Any]:
    """Copy the tables among an object's attributes; everything else stays the same object."""
    return {
        name: value.copy() if isinstance(value, dict) else value
        for name, value in attributes.items()
    }
