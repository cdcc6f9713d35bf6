"""Statistics by which new *rows* of a map are scored: those of its columns, with inputs and gradients exchanged.

New columns read further inputs a_p of a map, and their gradient is E[dz a_p^T]. New rows make further outputs, at which
there is a gradient too, and theirs is E[dz_p a^T]: the same with a and dz exchanged, and with them the two factors of
K-FAC, which is symmetric in them (`senn.scoring.formulas`). So the fold of a transposed map is one whose columns are
outputs, existing ones first, and all that is computed of columns holds for rows:

    columns    A = E[a a^T]  S = E[s s^T]  G = E[dz a^T]       rows    A' = E[s s^T]  S' = E[a a^T]  G' = E[a dz^T]
    d_r = dz - G A^-1 a: what no step of the existing columns explains        of existing rows, of dz_p

One thing isn't symmetric: a linear map has one input, but two rows at its outputs, dz of the loss and s of the
curvature, so of a sample that is kept both are. A table (an embedding) is the map of a one-hot input: S' is diagonal,
the frequencies of its rows, and of a sample the numbers of the rows are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from senn.kfac.factors import DENSE_OUTPUTS, KroneckerFactors, gram
from senn.kfac.folds import Fold, LocalSlice
from senn.kfac.layer_statistics import LocationCount, RowChunk
from senn.kfac.transposed_samples import TransposedSamples


def transposed_fold(
    parts: Sequence[RowChunk],
    own: LocalSlice,
    weights: Tensor | None,
    *,
    counts: Sequence[LocationCount],
    table: int | None = None,
) -> Fold:
    """Sum up the transposed statistics of a map over some samples of one fold.

    Args:
        parts: the map's calls on the rank's `readable` samples, compacted; gradients over existing and new outputs.
        own: which samples these are.
        weights: (samples,) weights of all of the rank's samples, which gradients carry already; None for ones.
        counts: for each call, the number of its live locations, on all ranks.
        table: number of rows of a table; None for a linear map.
    """
    locations = max(sum(one.most for one in counts), 1)
    is_empty = not own.samples.stop > own.samples.start
    own_weights = None if weights is None else weights[own.readable]
    factors, samples = _accumulated(parts, own_weights, locations, table)
    keep = own.first(Fold.max_kept(locations, samples.width))
    if is_empty:  # shapes alone: a stand-in was run
        zeros = {
            name: torch.zeros_like(getattr(factors, name))
            for name in ("input_cov", "cross_cov", "grad_cov")
        }
        factors = KroneckerFactors(rows=0.0, samples=0.0, n_rows_read=0.0, **zeros)
    return Fold(
        factors=factors,
        samples=samples.first(keep.samples.stop - keep.samples.start),
        locations=locations,
        positions=keep.positions,
        kept=None if keep.positions is None else keep.count,
    )


def _accumulated(
    parts: Sequence[RowChunk], weights: Tensor | None, locations: int, table: int | None
) -> tuple[KroneckerFactors, TransposedSamples]:
    """Sum up all samples, and keep each of them."""
    each = sum(part.output_grad.shape[1] for part in parts)
    samples = TransposedSamples(
        a=_joined([_inputs(part, table) for part in parts]),
        pseudo_grad=_joined([part.pseudo_grad for part in parts]),
        output_grad=_joined([part.output_grad for part in parts]),
        locations=each,
        weight=None if weights is None else weights.repeat_interleave(each),
    )
    by_row = _joined([_weights(part, weights) for part in parts])
    rows = float(by_row.sum())
    cross_cov, grad_cov = _moments(samples, by_row, table)
    factors = KroneckerFactors(
        rows=rows,
        samples=float(len(samples)) if weights is None else float(weights.sum()),
        input_cov=gram(samples.pseudo_grad),
        cross_cov=cross_cov,
        grad_cov=grad_cov,
        n_rows_read=rows,
    )
    return factors, samples.filled(locations)


def _moments(
    samples: TransposedSamples, by_row: Tensor, table: int | None
) -> tuple[Tensor, Tensor]:
    """Sums of a dz^T, (c, outputs), and of a a^T, (c, c) or its diagonal (c,)."""
    a, dz = samples.a, samples.output_grad
    if table is not None:
        number = a[:, 0]
        cross = dz.new_zeros(table, dz.shape[1]).index_add_(0, number, dz)
        return cross, by_row.new_zeros(table).index_add_(0, number, by_row[:, 0])
    if a.shape[1] > DENSE_OUTPUTS:
        return a.mT @ dz, (a.square() * by_row).sum(0)
    return a.mT @ dz, (a * by_row).mT @ a


def _joined(by_location: Sequence[Tensor]) -> Tensor:
    """Rows of all calls, a sample's side by side, (samples * locations, ...)."""
    return torch.cat([*by_location], 1).flatten(0, 1)


def _inputs(part: RowChunk, table: int | None) -> Tensor:
    """Inputs by sample and location, (samples, locations, c), zeros where a location is dead."""
    if table is not None:
        x: Tensor = part.layer_input.x
        return x
    a = part.layer_input.rows().view(*part.output_grad.shape[:2], -1)
    return a if part.live is None else a.masked_fill(~part.live[..., None], 0.0)


def _weights(part: RowChunk, weights: Tensor | None) -> Tensor:
    """Weight of each location's sample, zero where it is dead, (samples, locations, 1)."""
    like = part.output_grad[..., :1]
    alive = torch.ones_like(like) if part.live is None else part.live[..., None].to(like)
    return alive if weights is None else alive * weights[:, None, None].to(like)
