"""Statistics of one fold of samples at one linear map, and one rank's share in them.

Samples are split in two folds: steps are fitted on one and valued on the other. A fold is a sum, so that batches and
ranks can be added up one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from senn.kfac.accumulate import accumulate, accumulate_empty
from senn.kfac.factors import DENSE_OUTPUTS, KroneckerFactors, gram
from senn.kfac.layer_statistics import LocationCount, RowChunk
from senn.kfac.per_sample import PerSampleFactors, Samples, joined

ROWS = 1024
"""Rows of each fold that are kept for exact curvatures along a step.

Their mean square has a relative standard error of about sqrt(2 / rows), 4 %: 6 % at half, 3 % at double. Memory, and
the time to update candidates' columns after each acceptance, grow in proportion.
"""

NUMBERS = 1 << 25
"""Output gradients of each fold that are kept of a map with more outputs than `DENSE_OUTPUTS`, whole samples of it.

That is 128 MiB in float32, as many again of pseudo-gradients, and at a vocabulary of 50,257 some 650 tokens.
"""

SAMPLES = 64
"""Samples of each fold that are kept, however many locations each has: rows of a sample aren't independent."""

KEPT_NUMBERS = 1 << 24
"""Output gradients of each fold that are kept for that, of wide maps with very many locations, 32 MiB in bfloat16."""

FEWEST_SAMPLES = 8
"""Samples of each fold that are kept in any case, but of maps with more outputs than `DENSE_OUTPUTS`."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Fold:
    """Statistics of one fold of samples at one linear map; add two of them to merge two sets of samples.

    Attributes:
        factors: Kronecker factors over existing and candidate columns, [a_c | a_p]. Without an input covariance while
            all rows are kept and are few (see `stands_alone`).
        samples: the first samples, one by one, over the same columns.
        locations: the most live locations that a sample has, on any rank.
        positions: with several ranks, where the samples stand among those that all ranks keep; None for a rank alone.
        kept: number of samples that all ranks keep; None for a rank alone.
    """

    factors: KroneckerFactors
    samples: Samples
    locations: int = 1
    positions: Tensor | None = None
    kept: int | None = None

    @classmethod
    def of(cls, found: KroneckerFactors, samples: Samples, locations: int | None = None) -> Fold:
        """Make a fold of some samples of which the first are kept.

        Args:
            found: factors over all of the samples.
            samples: the samples, or at least the first `max_kept` of them.
            locations: the most that a sample has; None where all have as many.
        """
        locations = round(found.locations) if locations is None else locations
        kept = samples.first(Fold.max_kept(locations, samples.width))
        return cls(factors=found, samples=kept, locations=locations)

    @staticmethod
    def max_kept(locations: int, outputs: int) -> int:
        """Number of samples to keep: whole samples, `ROWS` rows or `SAMPLES` samples, of wide maps fewer."""
        affordable = max(KEPT_NUMBERS // (locations * outputs), FEWEST_SAMPLES)
        kept = max(ROWS // locations, min(SAMPLES, affordable))
        if outputs > DENSE_OUTPUTS:
            kept = min(kept, max(NUMBERS // (locations * outputs), 1))
        return kept

    @staticmethod
    def stands_alone(rows: int, existing: int) -> bool:
        """True if rows are so few that they are kept in place of their covariance.

        The inverse of that covariance is then `WoodburyInverse`, and rows say the same at less cost.

        Args:
            rows: number of rows.
            existing: number of existing columns, c.
        """
        return rows <= ROWS and 2 * rows <= existing

    def __add__(self, other: Fold) -> Fold:
        """Merge two sets of samples; those of `self` come first."""
        total = self._summed(other)
        locations = max(self.locations, other.locations)
        # the first samples are kept, not a random choice: one pass over the data, and the same on any number of ranks
        most = Fold.max_kept(locations, self.samples.width)
        if self.n_kept >= most:
            return replace(self, factors=total, locations=locations)
        both = joined(self.samples, other.samples)
        if self.positions is None or other.positions is None:
            return Fold.of(total, both, locations)
        positions = torch.cat([self.positions, other.positions + self.n_kept])
        # a rank drops what lies beyond the joint limit, wherever its own samples stand
        positions = positions[positions < most]
        return Fold(
            factors=total,
            samples=both.first(len(positions)),
            locations=locations,
            positions=positions,
            kept=min(self.n_kept + other.n_kept, most),
        )

    def _summed(self, other: Fold) -> KroneckerFactors:
        """Add the factors, completed by the input covariance unless the rows of both together still stand alone."""
        # rows may be kept on one side only, after a batch of another size
        if self.rows is None and other.rows is None:
            return self.factors + other.factors
        if self.rows is not None and other.rows is not None:
            existing = self.rows.shape[1]
            if Fold.stands_alone(self.n_kept + other.n_kept, existing):
                return self.factors + other.factors
        return self.complete + other.complete

    @property
    def n_kept(self) -> int:
        """Number of samples that all ranks together keep one by one."""
        return len(self.samples) if self.kept is None else self.kept

    @property
    def rows(self) -> Tensor | None:
        """All rows [a_c | a_p], (rows, columns), where they stand for the input covariance; None where it is summed."""
        # a rank without samples has an input covariance of zeros, from no rows
        has_covariance = self.kept is not None and self.factors.input_cov.dim() > 1
        if self.factors.n_rows_read or has_covariance:
            return None
        assert isinstance(self.samples, PerSampleFactors)
        return self.samples.a

    @property
    def complete(self) -> KroneckerFactors:
        """Factors with the input covariance, computed from the rows where these stand for it."""
        if self.rows is None:
            return self.factors
        return replace(self.factors, input_cov=gram(self.rows), n_rows_read=float(len(self.rows)))


@dataclass(frozen=True, eq=False, kw_only=True)
class LocalSlice:
    """One rank's samples of a fold.

    Attributes:
        samples: which of the rank's samples they are.
        count: number of samples that all ranks have in the fold.
        positions: (own,) where the rank's stand among these, ascending; None for a rank alone.
    """

    samples: slice
    count: int
    positions: Tensor | None = None

    def first(self, number: int) -> LocalSlice:
        """Keep this rank's samples among the first `number` of all ranks."""
        start, stop = self.samples.start, self.samples.stop
        if self.positions is None:
            stop = min(start + number, stop)
            return LocalSlice(samples=slice(start, stop), count=stop - start)
        # ascending, so the kept ones are the first of the rank's own
        kept = self.positions[self.positions < number]
        return LocalSlice(
            samples=slice(start, start + len(kept)), count=min(number, self.count), positions=kept
        )

    @property
    def readable(self) -> slice:
        """The samples; for a rank without any, one of the other fold's, from which shapes can be read."""
        return self.samples if self.samples.stop > self.samples.start else slice(0, 1)

    def accumulate(
        self,
        parts: Sequence[RowChunk],
        places: Sequence[Tensor | None],
        weights: Tensor | None = None,
        *,
        counts: Sequence[LocationCount],
        known: int = 0,
        inputs: bool = True,
    ) -> Fold:
        """Accumulate these samples' statistics at one linear map.

        Args:
            parts: the map's calls on the `readable` samples.
            places: for each call, the locations whose rows enter the input covariance; None for all.
            weights: (samples,) weights of all of the rank's samples, or None for ones.
            counts: for each call, the number of its live locations, on all ranks.
            known: number of first columns whose covariance is known from elsewhere.
            inputs: False to keep the rows in place of the input covariance (`Fold.stands_alone`).

        Returns:
            The fold of this rank's samples.
        """
        # weights are those of all of the rank's samples, in both folds
        own_weights = None if weights is None else weights[self.samples]
        locations = max(sum(one.most for one in counts), 1)
        keep = Fold.max_kept(locations, parts[0].output_grad.shape[2])
        if self.positions is None:
            found, samples = accumulate(
                parts,
                places,
                keep=keep,
                weights=own_weights,
                known=known,
                inputs=inputs,
                locations=locations,
            )
            return Fold.of(found, samples, locations)
        own = self.first(keep)
        assert own.positions is not None
        if not len(self.positions):
            found, samples = accumulate_empty(
                parts,
                places,
                weights=weights,
                known=known,
                inputs=inputs,
                locations=locations,
            )
        else:
            found, samples = accumulate(
                parts,
                places,
                keep=len(own.positions),
                weights=own_weights,
                known=known,
                inputs=inputs,
                locations=locations,
            )
        if isinstance(samples, PerSampleFactors):  # one shape on all ranks
            samples = samples.filled(max(locations, samples.locations))
        return Fold(
            factors=found,
            samples=samples,
            locations=locations,
            positions=own.positions,
            kept=own.count,
        )
