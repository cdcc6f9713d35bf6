"""Statistics of one part of a batch, how a batch is divided into parts and folds, and a session's state of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from senn.kfac.folds import Fold
from senn.scoring.column_layout import ColumnLayout
from senn.scoring.data_covariance import CovarianceSnapshot
from senn.scoring.stream import StreamKey

MOST_ROWS = 1 << 16
"""Rows of one map that pass through the model at once: scoring a batch of images needs less memory than training on it.

Twice as many rows need twice the memory; half as many run slower, since each part runs the model and the dormant copy.
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
        """Add the statistics of further samples."""
        for name, fold in other.maps.items():
            self.maps[name] = self.maps[name] + fold if name in self.maps else fold
        for key, fold in other.streams.items():
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


def weighted_sums(parts: Sequence[BatchStatistics], labels: float) -> list[float]:
    """Sum figures of parts, weighted by samples, since ranks and parts may have different numbers of them.

    Args:
        parts: the parts of a batch.
        labels: number of labels of the batch, in the middle of the result.

    Returns:
        Loss, lambda, labels, square of the gradient, trace of the curvature.
    """
    sums = [
        sum(getattr(part, name) * part.samples for part in parts)
        for name in ("loss", "score_limit", "gradient_square", "curvature_trace")
    ]
    return [*sums[:2], labels, *sums[2:]]


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


def batch_parts(count: int, locations: int, most_rows: float) -> list[BatchPart]:
    """Split a batch into parts, each with few rows of every map; steps are fitted on its first half.

    Args:
        count: number of samples.
        locations: rows per sample of the map that reads most.
        most_rows: rows of one map in one part, at most.

    Returns:
        one part that holds both folds if it is small enough, else several that each lie within one fold.
    """
    # The joint order is random, so halves are.
    half = count // 2
    if count * locations <= most_rows:
        return [BatchPart(samples=slice(0, count), fit=slice(0, half), held_out=slice(half, count))]
    # At least one sample, however many rows it has.
    size = max(int(most_rows // locations), 1)
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
