"""What is known about one fold of samples at one linear map: sums over all of them, and some of them one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from senn.kfac.accumulate import accumulate, accumulate_empty
from senn.kfac.capture import RowChunk
from senn.kfac.factors import KroneckerFactors, gram
from senn.kfac.per_sample import PerSampleFactors, Samples

ROWS = 1024
"""Rows of each fold that are kept for exact curvatures along a step."""

SAMPLES = 64
"""Samples of each fold that are kept at least, however many locations each has."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Fold:
    """What is known about one fold of samples.

    Attributes:
        moments: over [a_c | a_p]; of the inputs it has `read` none while all rows are kept and are few (see `few`).
        samples: some of them, one by one, over the same columns.
        positions: of several ranks, where the samples stand among those that all ranks keep; None for a rank alone.
        kept: number of samples that all ranks keep; None for a rank alone.
    """

    factors: KroneckerFactors
    samples: Samples
    positions: Tensor | None = None
    kept: int | None = None

    @classmethod
    def of(cls, found: KroneckerFactors, samples: Samples) -> Fold:
        """The moments of some samples with the first of them: whole samples, `ROWS` rows or `SAMPLES`."""
        return cls(factors=found, samples=samples.first(Fold.max_kept(found.locations)))

    @staticmethod
    def max_kept(locations: int) -> int:
        """Number of samples that are kept one by one."""
        return max(ROWS // locations, SAMPLES)

    @staticmethod
    def stands_alone(rows: int, existing: int) -> bool:
        """Whether so many rows stand for themselves: a moment of more columns than rows says the same at more cost."""
        return rows <= ROWS and 2 * rows <= existing

    def __add__(self, other: Fold) -> Fold:
        """Both sets of samples, with the first ones one by one."""
        ours, theirs = self.factors, other.factors
        if self.rows is not None and other.rows is not None:
            existing = self.rows.shape[1]
            if not Fold.stands_alone(self.n_kept + other.n_kept, existing):
                ours, theirs = self.complete, other.complete
        elif self.rows is not None or other.rows is not None:
            ours, theirs = self.complete, other.complete
        total = ours + theirs
        if self.n_kept >= Fold.max_kept(total.locations):
            return replace(self, factors=total)
        both: Samples = self.samples + other.samples  # type: ignore[operator]
        if self.positions is None or other.positions is None:
            return Fold.of(total, both)
        most = Fold.max_kept(total.locations)
        positions = torch.cat([self.positions, other.positions + self.n_kept])
        positions = positions[positions < most]
        return Fold(
            factors=total,
            samples=both.first(len(positions)),
            positions=positions,
            kept=min(self.n_kept + other.n_kept, most),
        )

    @property
    def n_kept(self) -> int:
        """Number of samples that are kept one by one, by all ranks."""
        return len(self.samples) if self.kept is None else self.kept

    @property
    def rows(self) -> Tensor | None:
        """All rows [a_c | a_p], where these stand for the moment of inputs."""
        if self.factors.n_rows_read or (
            self.kept is not None and self.factors.input_cov.dim() > 1
        ):  # this rank may have none
            return None
        assert isinstance(self.samples, PerSampleFactors)
        return self.samples.a

    @property
    def complete(self) -> KroneckerFactors:
        """The moments with those of the inputs."""
        if self.rows is None:
            return self.factors
        return replace(self.factors, input_cov=gram(self.rows), n_rows_read=float(len(self.rows)))


@dataclass(frozen=True, eq=False, kw_only=True)
class LocalSlice:
    """One rank's samples of a fold of some samples.

    Attributes:
        samples: which of the rank's samples they are.
        count: number of samples that all ranks have in it.
        positions: (own,) where they stand among these, ascending; None for a rank alone.
    """

    samples: slice
    count: int
    positions: Tensor | None = None

    def first(self, number: int) -> LocalSlice:
        """Those among the first samples of all ranks."""
        start, stop = self.samples.start, self.samples.stop
        if self.positions is None:
            stop = min(start + number, stop)
            return LocalSlice(samples=slice(start, stop), count=stop - start)
        kept = self.positions[self.positions < number]
        return LocalSlice(samples=slice(start, start + len(kept)), count=min(number, self.count), positions=kept)

    @property
    def readable(self) -> slice:
        """The samples; where there are none, the first of the others, from which shapes can be read."""
        return self.samples if self.samples.stop > self.samples.start else slice(0, 1)

    def accumulate(
        self,
        parts: Sequence[RowChunk],
        places: Sequence[Tensor | None],
        weights: Tensor | None = None,
        *,
        known: int = 0,
        inputs: bool = True,
    ) -> Fold:
        """What these samples say about one linear map.

        Args:
            parts: the map's applications to the `readable` samples.
            places: as of `accumulate`.
            weights: of the rank's samples, or None.
            known: as of `accumulate`.
            inputs: as of `accumulate`.
        """
        of = None if weights is None else weights[self.samples]
        keep = Fold.max_kept(sum(part.layer_input.locations for part in parts))
        if self.positions is None:
            return Fold.of(*accumulate(parts, places, keep=keep, weights=of, known=known, inputs=inputs))
        own = self.first(keep)
        assert own.positions is not None
        if not len(self.positions):
            found, samples = accumulate_empty(parts, places, weights=weights, known=known, inputs=inputs)
        else:
            kept = len(own.positions)
            found, samples = accumulate(parts, places, keep=kept, weights=of, known=known, inputs=inputs)
        return Fold(factors=found, samples=samples, positions=own.positions, kept=own.count)
