"""Rows held out for a test or for validation: drawn by seed, every class in proportion."""

from __future__ import annotations

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


def _rows_by_class(classes: NDArray[Any]) -> list[RowNumbers]:
    _, codes = np.unique(classes, return_inverse=True)
    # One sort, not a mask per class: masks take time in proportion to rows times classes.
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
