"""Rows held out for the test."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from senn.errors import SennError

Rows = NDArray[np.intp]


def split(rows: int, fraction: float = 0.2, seed: int = 0, classes: NDArray[Any] | None = None) -> tuple[Rows, Rows]:
    """Training and test rows, drawn by seed.

    Args:
        rows: how many there are.
        fraction: share of the test rows, between 0 and 1.
        seed: decides which.
        classes: (rows,) labels to hold out in proportion; a class of one row stays in training.

    Returns:
        Row numbers for training and for the test, each in ascending order.

    Raises:
        SennError: if the fraction leaves either side without rows.
    """
    if not 0 < fraction < 1:
        raise SennError(f"the test fraction must be between 0 and 1, and is {fraction:g}")
    generator = np.random.default_rng(seed)
    groups = [np.arange(rows)] if classes is None else _groups(classes)
    shares = np.asarray([min(len(group) * fraction, len(group) - 1) for group in groups])
    counts = np.floor(shares).astype(int)
    # The remainders go to the groups that rounding down has hurt most, so that the whole share is right.
    short = round(float(shares.sum())) - int(counts.sum())
    for group in np.argsort(counts - shares, kind="stable")[:short]:
        counts[group] += 1
    test = [generator.permutation(group)[:count] for group, count in zip(groups, counts, strict=True)]
    held_out = np.sort(np.concatenate(test)).astype(np.intp)
    if not 0 < len(held_out) < rows:
        raise SennError(
            f"{rows:,} rows can't be split into training and test rows with a test fraction of {fraction:g}"
        )
    return np.setdiff1d(np.arange(rows), held_out), held_out


def _groups(classes: NDArray[Any]) -> list[Rows]:
    """Rows of each class."""
    _, codes = np.unique(classes, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
