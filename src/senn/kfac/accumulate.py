"""Accumulation of one linear map's statistics: Kronecker factors over all samples, and some samples one by one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from senn.kfac.factors import (
    DENSE_OUTPUTS,
    SMALL,
    KroneckerFactors,
    gradient_covariance,
    gram,
    input_covariance,
)
from senn.kfac.layer_inputs import DenseInput
from senn.kfac.layer_statistics import LocationCount, RowChunk
from senn.kfac.per_sample import MANY_NUMBERS, PerSampleFactors, PerSampleGrads, Samples

ROWS_READ = 2048
"""Least number of rows that make the input covariance of a map with many locations."""

ROWS_PER_COLUMN = 8
"""Rows per column of that covariance, where this asks for more of them.

The inverse of a covariance of c columns from n independent rows is too large by n / (n - c - 1): 14 % at 8 rows per
column, 33 % at 4, 7 % at 16. A convolution has thousands of locations per sample, and their patches are what costs.
"""


def accumulate(
    parts: Sequence[RowChunk],
    places: Sequence[Tensor | None],
    *,
    keep: int,
    weights: Tensor | None = None,
    known: int = 0,
    inputs: bool = True,
    locations: int | None = None,
) -> tuple[KroneckerFactors, Samples]:
    """Sum up one linear map's rows on a batch.

    Args:
        parts: the map's calls, all on the same samples.
        places: for each call, the locations (k,) whose rows enter the input covariance, counted among each sample's
            live ones; None for all.
        keep: number of first samples to keep one by one.
        weights: (samples,) sample weights, which dz and s carry already; None for ones.
        known: number of first columns whose covariance is known from elsewhere.
        inputs: False to leave the input covariance out, since the rows themselves are kept.
        locations: the most live locations that a sample has, on any rank; None for those of `parts`.

    Returns:
        The factors over all samples, and the first `keep` samples.
    """
    samples = len(parts[0].output_grad)
    # a batch may be smaller than the number that a fold keeps
    keep = min(keep, samples)
    total = float(samples) if weights is None else float(weights.sum())
    if locations is None:
        locations = sum(one.most for one in count_locations(parts))
    kept = _first_samples(parts, keep, weights, locations)
    signs = sum((_gram_of(part.pseudo_grad) for part in parts[1:]), _gram_of(parts[0].pseudo_grad))
    cross = _cross(parts, kept, keep)
    moment, n_rows_read = cross.new_empty(0), 0.0
    for part, chosen in zip(parts, places if inputs else (), strict=inputs):
        a, by_row, count = _read_rows(part, chosen, weights, total)
        own = input_covariance(a, by_row, known)
        moment = own if not moment.numel() else moment + own
        n_rows_read += count
    factors = KroneckerFactors(
        rows=sum(_weighted_rows(part, weights, total) for part in parts),
        samples=total,
        input_cov=moment,
        cross_cov=cross,
        grad_cov=signs,
        n_rows_read=n_rows_read,
    )
    return factors, kept


def _weighted_rows(part: RowChunk, weights: Tensor | None, total: float) -> float:
    """Number of live rows of a call, each weighted by its sample's weight."""
    if part.live is None:
        return part.layer_input.locations * total
    counts = part.by_sample
    return float(counts.sum() if weights is None else (counts * weights).sum())


def _read_rows(
    part: RowChunk, chosen: Tensor | None, weights: Tensor | None, total: float
) -> tuple[Tensor, Tensor | None, float]:
    """Form the live rows of a call at the chosen locations.

    Returns:
        The rows (rows, c), their weights (rows,), None for ones, and the sum of these.
    """
    if part.live is None:
        a = part.layer_input.rows(chosen)
        count = len(a) // len(part.output_grad)
        # rows are sample-major, so a sample's weight repeats over its locations
        by_row = None if weights is None else weights.repeat_interleave(count).to(a)
        return a, by_row, count * total
    samples, places = chosen_rows(part.live, chosen)
    a = part.layer_input.rows_at(samples, places)
    by_row = None if weights is None else weights[samples].to(a)
    return a, by_row, float(len(a)) if by_row is None else float(by_row.sum())


def chosen_rows(live: Tensor, chosen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Find the live rows at some locations, which are counted among each sample's live ones.

    Counted like this, a location is the same one whatever padding stands before it or between.

    Args:
        live: (samples, locations) Boolean.
        chosen: (k,) numbers of locations; None for all.

    Returns:
        Sample and location of each row, sample-major, (rows,) each.
    """
    if chosen is not None:
        number = live.cumsum(1) - 1
        wanted = torch.zeros(live.shape[1], dtype=torch.bool, device=live.device)
        wanted[chosen] = True
        live = live & wanted[number.clamp_min(0)]
    samples, places = live.nonzero(as_tuple=True)
    return samples, places


def accumulate_empty(
    parts: Sequence[RowChunk],
    places: Sequence[Tensor | None],
    *,
    weights: Tensor | None = None,
    known: int = 0,
    inputs: bool = True,
    locations: int | None = None,
) -> tuple[KroneckerFactors, Samples]:
    """Make statistics of no samples, in the shapes that `accumulate` would give: what a rank without samples adds.

    Args:
        parts: the map's calls on one sample at least, from which shapes are read.
        places: as in `accumulate`.
        weights: as in `accumulate`.
        known: as in `accumulate`.
        inputs: as in `accumulate`.
        locations: as in `accumulate`.

    Returns:
        Factors of zeros, and no samples.
    """
    one = slice(0, 1)
    weights = None if weights is None else weights[one]
    first = [part.select(one) for part in parts]
    found, kept = accumulate(
        first,
        places,
        keep=1,
        weights=weights,
        known=known,
        inputs=inputs,
        locations=locations,
    )
    factors = KroneckerFactors(
        rows=0.0,
        samples=0.0,
        input_cov=torch.zeros_like(found.input_cov),
        cross_cov=torch.zeros_like(found.cross_cov),
        grad_cov=torch.zeros_like(found.grad_cov),
        n_rows_read=0.0,
    )
    return factors, kept.first(0)


def _gram_of(s: Tensor) -> Tensor:
    """Sum s s^T over samples and locations, (m, m), for s (samples, locations, m) of any strides; see `grad_cov`."""
    if s.shape[2] > DENSE_OUTPUTS:
        return gradient_covariance(s.flatten(0, 1))
    # one product over all rows, of which only half is computed, where outputs are many and rows lie side by side
    if s.shape[2] > SMALL and s.stride(2) == 1:
        return gram(s.flatten(0, 1))
    return gram(s[:, 0]) if s.shape[1] == 1 else (s.mT @ s).sum(0)


def _cross(parts: Sequence[RowChunk], kept: Samples, keep: int) -> Tensor:
    """Sum dz a^T over all rows, (m, c); the kept samples' sums aren't computed twice."""
    if not isinstance(kept, PerSampleGrads):
        crosses = [
            part.layer_input.cross(part.output_grad) for part in parts if len(part.output_grad)
        ]
        return sum(crosses[1:], crosses[0])
    # dz a^T of the kept samples is at hand as their own gradients: only the rest is computed
    rest = [part.select(slice(keep, None)) for part in parts]
    crosses = [part.layer_input.cross(part.output_grad) for part in rest if len(part.output_grad)]
    crosses.append(kept.output_grad.sum(0))
    return sum(crosses[1:], crosses[0])


def _first_samples(
    parts: Sequence[RowChunk], keep: int, weights: Tensor | None, locations: int
) -> Samples:
    """Keep the first samples one by one, in the form that has fewer numbers."""
    first = slice(
        0, max(keep, 1)
    )  # a convolution of no samples can't be formed, so one is made and dropped
    some = None if weights is None else weights[first]
    kept = _one_by_one([part.select(first) for part in parts], some, locations)
    return kept if keep else kept.first(0)


def _are_smaller_summed(part: RowChunk, live: int) -> bool:
    """True if samples with so many live locations are kept as sums, which are fewer numbers than their rows."""
    outputs, columns = part.output_grad.shape[2], part.layer_input.columns
    if live == 1:
        return False
    # rows hold locations * (2 m + c) numbers a sample, sums 2 m c
    if isinstance(part.layer_input, DenseInput):
        # The rows are there already, and a sum costs two products as large as a backward pass's: worth it where it
        # saves half of the memory.
        return live * (2 * outputs + columns) > 4 * outputs * columns
    # patches aren't: for the choice one m stands for both
    return live * (outputs + columns) > outputs * columns


def _one_by_one(parts: Sequence[RowChunk], weights: Tensor | None, live: int) -> Samples:
    outputs = parts[0].output_grad.shape[2]
    if _are_smaller_summed(parts[0], live):
        # locations last, as convolutions have them: nothing is copied twice
        both = [
            part.layer_input.by_sample(torch.cat([part.pseudo_grad.mT, part.output_grad.mT], 1).mT)
            for part in parts
        ]
        s, dz = torch.split(sum(both[1:], both[0]), outputs, 1)
        return PerSampleGrads(pseudo_grad=s, output_grad=dz, weight=weights)
    locations = sum(part.layer_input.locations for part in parts)
    a = torch.cat([_filled_rows(part) for part in parts], 1).flatten(0, 1)
    gradients = (
        torch.cat([getattr(part, kind) for part in parts], 1).flatten(0, 1)
        for kind in ("pseudo_grad", "output_grad")
    )
    # by sizes that are the same for all parts and ranks
    is_many = live > 1 and live * outputs >= MANY_NUMBERS
    s, dz = (rows.bfloat16() if is_many else rows for rows in gradients)
    return PerSampleFactors(
        a=a,
        pseudo_grad=s,
        output_grad=dz,
        locations=locations,
        weight=None if weights is None else weights.repeat_interleave(locations).to(a),
    )


def _filled_rows(part: RowChunk) -> Tensor:
    """Inputs by sample and location, (samples, locations, c), zeros where a location is dead."""
    a = part.layer_input.rows().view(*part.output_grad.shape[:2], -1)
    return a if part.live is None else a.masked_fill(~part.live[..., None], 0.0)


def count_locations(parts: Sequence[RowChunk]) -> list[LocationCount]:
    """Count the live locations of each call of a map, over all of its samples."""
    found = []
    for part in parts:
        if part.live is None or not len(part.live):
            every = part.layer_input.locations
            found.append(LocationCount(most=every, mean=float(every)))
        else:
            counts = part.by_sample
            found.append(LocationCount(most=int(counts.max()), mean=float(counts.double().mean())))
    return found


def sampled_locations(
    parts: Sequence[RowChunk],
    columns: int,
    samples: int,
    generator: torch.Generator,
    counts: Sequence[LocationCount] | None = None,
) -> list[Tensor | None]:
    """Draw the locations whose rows make a map's input covariance, the same ones for all samples.

    Args:
        parts: the map's calls.
        columns: number of columns of the covariance.
        samples: number of samples that the rows come from.
        generator: source of the draw.
        counts: number of live locations of each call; None for those of `parts`. Padding changes none of these
            numbers, so the same is drawn with it and without.

    Returns:
        For each call, ascending locations (k,) on its device, counted among each sample's live ones, or None for all.
    """
    counts = count_locations(parts) if counts is None else counts
    locations = max(sum(one.mean for one in counts), 1e-30)
    # enough rows of all samples together, as a share of the locations: samples aren't thinned out, since rows of
    # different samples are the independent ones
    share = max(ROWS_READ, ROWS_PER_COLUMN * columns) / (samples * locations)
    found: list[Tensor | None] = []
    for part, count in zip(parts, counts, strict=True):
        own = count.most
        # rounded up, so that every call keeps a location
        wanted = -int(-own * share // 1)
        # sorted, so that rows are read in the order of memory
        some = (
            torch.randperm(own, generator=generator)[:wanted].sort().values
            if wanted < own
            else None
        )
        found.append(None if some is None else some.to(part.output_grad.device))
    return found
