"""Rows held out for a test or for validation: drawn with classes in proportion, in groups, the last, in folds."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from senn.errors import SennError

RowNumbers = NDArray[np.intp]


def split(
    rows: int, fraction: float = 0.2, seed: int = 0, classes: NDArray[Any] | None = None
) -> tuple[RowNumbers, RowNumbers]:
    """Draw training and test rows.

    Args:
        rows: how many there are.
        fraction: share of the test rows, between 0 and 1.
        seed: decides which.
        classes: (rows,) labels to hold out in proportion; a class of one row stays in training.

    Returns:
        Row numbers for training and for the test, each in ascending order.

    Raises:
        SennError: the fraction leaves either side without rows.

    >>> train, test = split(8, fraction=0.25, classes=np.array(["a", "b"] * 4))
    >>> len(train), (test % 2).tolist()  # one row of each class
    (6, [0, 1])
    """
    if not 0 < fraction < 1:
        raise SennError(f"the test fraction must be between 0 and 1, and is {fraction:g}")
    # numpy's generator, not torch's: a table is split before torch is needed, and the same on every device
    generator = np.random.default_rng(seed)
    groups = [np.arange(rows)] if classes is None else _rows_by_class(classes)
    order = np.concatenate([generator.permutation(group) for group in groups])
    codes = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    held_out = np.sort(hold_out(order, codes, fraction)).astype(np.intp)
    if not 0 < len(held_out) < rows:
        raise SennError(
            f"{rows:,} rows can't be split into training and test rows with a test fraction of {fraction:g}"
        )
    return np.setdiff1d(np.arange(rows), held_out), held_out


def hold_out(order: NDArray[Any], classes: NDArray[Any], fraction: float) -> NDArray[Any]:
    """Choose a share of each class, rounded down or up: its first rows in an order that was drawn before.

    Which classes round up is decided by the places of their rows (Webster's method): row j of k stands at
    (j + 1/2) / k, and the smallest places win.

    Args:
        order: (n,) row numbers, shuffled.
        classes: (n,) whole numbers, the class of each row in that order; all alike where there are no classes.
        fraction: share to hold out, between 0 and 1; the last row of a class always stays.

    Returns:
        (held_out,) row numbers.
    """
    # stable, so that within a class rows keep the drawn order
    by_class = np.argsort(classes, kind="stable")
    _, sizes = np.unique(classes, return_counts=True)
    # counted in whole numbers: a sum of fractions would round differently with the order of classes
    capped = sizes * fraction > sizes - 1
    # Rounded once, over all classes: class by class, 20 % of each of many pairs would be no row.
    wanted = round(fraction * int(sizes[~capped].sum()) + int((sizes[capped] - 1).sum()))
    size = np.repeat(sizes, sizes)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    share = np.minimum(size * fraction, size - 1)
    # A row within the share rounded down comes first, then one within the share rounded up, then any other.
    tier = (rank >= np.floor(share)).astype(int) + (rank >= np.ceil(share))
    # lexsort takes its last key first: tiers, then places.
    first = np.lexsort(((rank + 0.5) / size, tier))
    # A class whose rows were all held out could never be learned.
    is_last = rank == size - 1
    chosen = first[~is_last[first]][:wanted]
    held_out: NDArray[Any] = order[by_class[chosen]]
    return held_out


DRAWS = 50
"""Orders of the groups that are tried: of so many one holds out about the share that is wanted, classes included."""


def split_groups(
    groups: NDArray[Any], fraction: float = 0.2, seed: int = 0, classes: NDArray[Any] | None = None
) -> tuple[RowNumbers, RowNumbers]:
    """Draw training and test rows so that rows of one group stay together.

    Of several drawn orders of the groups the one is taken whose first groups come nearest to the share, of all rows or
    of each class, and leave every class a row for training.

    Args:
        groups: (rows,) value of each row; equal values are one group.
        fraction: share of the test rows, between 0 and 1.
        seed: decides which.
        classes: (rows,) labels to hold out in about the same proportion; None for none.

    Returns:
        Row numbers for training and for the test, each in ascending order.

    Raises:
        SennError: there is a single group.

    >>> train, test = split_groups(np.array(["ann", "bob", "ann", "cy", "cy", "bob"]), fraction=0.3)
    >>> len(train), len(test)
    (4, 2)
    """
    _, group = np.unique(groups, return_inverse=True)
    count = int(group.max()) + 1
    if count < 2:
        raise SennError("rows of a single group can't be split into training and test rows")
    codes = np.zeros(len(group), np.intp)
    if classes is not None:
        codes = np.unique(classes, return_inverse=True)[1]
    # (groups, classes) rows of each class in each group
    width = int(codes.max()) + 1
    table = np.bincount(group * width + codes, minlength=count * width).reshape(count, width)
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(count) for _ in range(DRAWS)]
    cuts = [_nearest_cut(table[order], fraction) for order in orders]
    best = min(range(DRAWS), key=lambda at: cuts[at][1:])
    chosen = np.isin(group, orders[best][: cuts[best][0]])
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _nearest_cut(table: NDArray[Any], fraction: float) -> tuple[int, int, float]:
    """Find how many of the first groups come nearest to a share of the rows.

    Args:
        table: (groups, classes) rows of each class in each group, in the drawn order.
        fraction: share of the rows to hold out.

    Returns:
        The number of groups, at least 1 and not all; how many classes would have no row left; and by how many rows the
        classes miss their share.
    """
    rows = np.cumsum(table.sum(axis=1))
    number = int(np.abs(rows[:-1] - fraction * rows[-1]).argmin()) + 1
    held_out, whole = table[:number].sum(axis=0), table.sum(axis=0)
    distance = float(np.abs(held_out - fraction * whole).sum())
    return number, int((held_out == whole).sum()), distance


def split_last(times: NDArray[Any], fraction: float = 0.2) -> tuple[RowNumbers, RowNumbers]:
    """Hold out the rows with the latest times; rows of one time stay together.

    Args:
        times: (rows,) numbers or time stamps, none of them missing.
        fraction: share of the test rows, between 0 and 1; where many rows have one time, the nearest that is possible.

    Returns:
        Row numbers for training and for the test, each in ascending order.

    Raises:
        SennError: all rows have the same time.

    >>> train, test = split_last(np.array([2019, 2021, 2020, 2018, 2022]), fraction=0.4)
    >>> train.tolist(), test.tolist()
    ([0, 2, 3], [1, 4])
    """
    values, counts = np.unique(times, return_counts=True)
    if len(values) < 2:
        raise SennError("all rows have the same time, so none of them are the latest")
    # rows from each time on
    later = np.cumsum(counts[::-1])[::-1]
    first = int(np.abs(later[1:] - fraction * len(times)).argmin()) + 1
    is_late = times >= values[first]
    return np.flatnonzero(~is_late), np.flatnonzero(is_late)


def folds(
    rows: int,
    count: int,
    seed: int = 0,
    classes: NDArray[Any] | None = None,
    groups: NDArray[Any] | None = None,
) -> list[RowNumbers]:
    """Divide rows into folds, of which each is the test rows of one training on all others.

    Args:
        rows: how many there are.
        count: number of folds.
        seed: decides which row is in which.
        classes: (rows,) labels that every fold has in about the same proportion; the row of a class that has no other
            is in no fold, since it could never be learned.
        groups: (rows,) value of each row; equal values are in one fold. None where each row stands for itself.

    Returns:
        Row numbers of each fold, in ascending order.

    Raises:
        SennError: there are fewer rows or groups than folds.

    >>> [fold.tolist() for fold in folds(6, 3, classes=np.array(["a", "a", "a", "b", "b", "b"]))]
    [[2, 3], [0, 5], [1, 4]]
    """
    generator = np.random.default_rng(seed)
    codes = np.zeros(rows, np.intp)
    if classes is not None:
        codes = np.unique(classes, return_inverse=True)[1]
    if groups is not None:
        fold = _folds_of_groups(groups, codes, count, generator)
    else:
        if rows < count:
            raise SennError(f"{rows:,} rows can't be divided into {count:,} folds")
        # Dealt like cards, class by class: folds and the shares of classes differ by a row at most.
        order = generator.permutation(rows)
        order = order[np.argsort(codes[order], kind="stable")]
        fold = np.empty(rows, np.intp)
        fold[order] = np.arange(rows) % count
        if classes is not None:
            fold[np.bincount(codes)[codes] == 1] = count
    return [np.flatnonzero(fold == at) for at in range(count)]


def _folds_of_groups(
    groups: NDArray[Any], codes: NDArray[Any], count: int, generator: np.random.Generator
) -> RowNumbers:
    """Return the fold of each row: the largest groups first, each into the fold that has least of its classes."""
    _, group = np.unique(groups, return_inverse=True)
    number, width = int(group.max()) + 1, int(codes.max()) + 1
    if number < count:
        raise SennError(f"{number:,} groups can't be divided into {count:,} folds")
    table = np.bincount(group * width + codes, minlength=number * width).reshape(number, width)
    # In shares of each class, so that a rare one counts as much as a frequent one.
    shares = table / table.sum(axis=0)
    order = generator.permutation(number)
    held, rows, fold = np.zeros((count, width)), np.zeros(count), np.empty(number, np.intp)
    for one in order[np.argsort(-table[order].sum(axis=1), kind="stable")]:
        # By how much the sum of squares over the folds would rise, which is least where all folds are alike; of equals
        # the fold with the fewest rows, so that none stays empty.
        rise = (shares[one] * (2 * held + shares[one])).sum(axis=1)
        at = int(np.lexsort((rows, rise))[0])
        fold[one] = at
        held[at] += shares[one]
        rows[at] += table[one].sum()
    return fold[group]


def folds_in_time(times: NDArray[Any], count: int) -> list[tuple[RowNumbers, RowNumbers]]:
    """Divide rows into folds that each are later than the rows to train on (forward chaining).

    Args:
        times: (rows,) numbers or time stamps, none of them missing.
        count: number of folds.

    Returns:
        For each fold, row numbers for training, which are all earlier ones, and for the test, each in ascending order.

    Raises:
        SennError: there are fewer times than folds and a first part to train on.

    >>> [(train.tolist(), test.tolist()) for train, test in folds_in_time(np.array([30, 10, 20]), 2)]
    [([1], [2]), ([1, 2], [0])]
    """
    values, codes = np.unique(times, return_inverse=True)
    if len(values) <= count:
        raise SennError(
            f"{len(values):,} different times can't be divided into {count:,} folds and a first part to train on"
        )
    earlier = np.cumsum(np.bincount(codes))
    cuts = [0]
    for at in range(1, count + 1):
        # The times whose end lies nearest to this share of the rows, with at least one left for each part to come.
        wanted = at * len(times) / (count + 1)
        least, most = cuts[-1] + 1, len(values) - (count + 1 - at)
        ends = earlier[least - 1 : most]
        cuts.append(least + int(np.abs(ends - wanted).argmin()))
    cuts = [*cuts[1:], len(values)]
    return [
        (np.flatnonzero(codes < first), np.flatnonzero((codes >= first) & (codes < last)))
        for first, last in itertools.pairwise(cuts)
    ]


def _rows_by_class(classes: NDArray[Any]) -> list[RowNumbers]:
    _, codes = np.unique(classes, return_inverse=True)
    # One sort, not a mask per class: masks take time in proportion to rows times classes.
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
