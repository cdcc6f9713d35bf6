"""Folds of all ranks added up, each on the rank that keeps the account of its map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from senn.kfac.folds import Fold
from senn.scoring.batch_statistics import FoldStatistics
from senn.scoring.owners import Owners

ACTION = "sum the moments"


def join_folds(
    owners: Owners,
    statistics: Sequence[FoldStatistics],
    reduce_dtype: torch.dtype | None = None,
) -> list[FoldStatistics]:
    """Add the folds of all ranks: sums of their factors, and all samples that they keep, in order.

    Args:
        owners: the processes, and which of them gets what.
        statistics: this rank's, with the same keys on all ranks.
        reduce_dtype: floating-point type in which gradients are sent; None for their own.

    Returns:
        The joint statistics of what this rank owns.
    """
    communicator = owners.communicator
    if communicator.is_single:
        return list(statistics)
    folds, destinations = list[Fold](), list[int]()
    for table in statistics:
        folds += [*table.maps.values(), *table.streams.values()]
        destinations += [owners.maps[name] for name in table.maps]
        destinations += [owners.of_stream(key) for key in table.streams]
    own = [(one.factors.rows, one.factors.samples, one.factors.n_rows_read) for one in folds]
    by_rank = communicator.all_gather_object(ACTION, own)
    numbers = [
        [sum(column) for column in zip(*of, strict=True)] for of in zip(*by_rank, strict=True)
    ]
    # Sums of outer products add; means are taken from the total.
    covariances = [
        x
        for one in folds
        for x in (_triangle(one.factors.input_cov), _triangle(one.factors.grad_cov))
    ]
    gradients = [one.factors.cross_cov for one in folds]
    twice = [rank for rank in destinations for _ in range(2)]
    if reduce_dtype is None:
        sums = communicator.reduce(ACTION, [*covariances, *gradients], [*twice, *destinations])
    else:
        # Covariances are inverted: rounded to bfloat16 they aren't positive definite any more.
        sums = communicator.reduce(ACTION, covariances, twice)
        sums += communicator.reduce(ACTION, gradients, destinations, dtype=reduce_dtype)
    # Exact curvatures need single samples, which are few: they are sent as they are.
    samples = communicator.gather(
        "gather the kept samples",
        [(_positions(one), one.samples.tensors) for one in folds],
        destinations,
    )
    joined: list[Fold | None] = []
    for i, (one, kept, of) in enumerate(zip(folds, samples, numbers, strict=True)):
        own_sums = (*sums[2 * i : 2 * i + 2], sums[len(covariances) + i])
        joined.append(None if kept is None else _joined(one, own_sums, kept, of))
    found, rest = list[FoldStatistics](), iter(joined)
    for table in statistics:
        maps = {name: total for name in table.maps if (total := next(rest)) is not None}
        streams = {key: total for key in table.streams if (total := next(rest)) is not None}
        found.append(FoldStatistics(maps=maps, streams=streams))
    return found


def _joined(
    one: Fold, sums: Sequence[Tensor | None], kept: Sequence[Tensor], numbers: Sequence[float]
) -> Fold:
    """The joint fold, from sums as they were sent."""
    input_cov, grad_cov, cross_cov = sums
    assert input_cov is not None
    assert cross_cov is not None
    assert grad_cov is not None
    rows, samples, n_rows_read = numbers
    factors = replace(
        one.factors,
        rows=rows,
        samples=samples,
        n_rows_read=n_rows_read,
        input_cov=_whole(input_cov, one.factors.input_cov),
        cross_cov=cross_cov,
        grad_cov=_whole(grad_cov, one.factors.grad_cov),
    )
    return Fold(factors=factors, samples=one.samples.of(kept), locations=one.locations)


def _positions(fold: Fold) -> Tensor:
    assert fold.positions is not None
    return fold.positions


def _is_symmetric(x: Tensor) -> bool:
    """True for covariances; those without the columns that are known, and diagonals, aren't square."""
    return x.ndim == 2 and x.shape[0] == x.shape[1]


def _triangle(x: Tensor) -> Tensor:
    """Numbers of the lower triangle of a covariance (n, n), (n (n + 1) / 2,); anything else as it is.

    Both triangular blocks on the diagonal fit into one rectangle, as in LAPACK's rectangular full packed format: no
    index of all entries is needed.
    """
    if not _is_symmetric(x):
        return x
    half = len(x) // 2
    first = len(x) - half
    corners = x.new_zeros(first, half + 1)
    corners[:, :first] = x[:first, :first].tril()
    corners[:half, 1:] += x[first:, first:].triu()
    return torch.cat([corners.flatten(), x[first:, :first].flatten()])


def _whole(packed: Tensor, like: Tensor) -> Tensor:
    """The covariance (n, n) whose triangle `_triangle` has cut out."""
    if not _is_symmetric(like):
        return packed
    half = len(like) // 2
    first = len(like) - half
    corners = packed[: first * (half + 1)].view(first, half + 1)
    below = packed[corners.numel() :].view(half, first)
    found = packed.new_empty(like.shape)
    lower, upper = corners[:, :first].tril(), corners[:half, 1:].triu()
    found[:first, :first] = lower + lower.tril(-1).mT
    found[first:, first:] = upper + upper.triu(1).mT
    found[first:, :first], found[:first, first:] = below, below.mT
    return found
