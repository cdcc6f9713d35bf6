"""Which columns of numbers get bins, and how fine: those whose bins tell about the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from senn.data.tabular.cells import Floats
from senn.data.tabular.feature_columns import encode_columns
from senn.data.tabular.number_scale import (
    FEWEST_BINS,
    MOST_INPUTS,
    ROWS_A_BIN,
    most_bins,
    most_inputs,
)
from senn.data.tabular.table_columns import Column, NumberColumn
from senn.data.tabular.target import Task

FINER = 4
"""How many times as many bins a column gets: on the rows of `benchmarks/tables.py --tuning`, 16 times is no better."""

CLEAR = 1.5
"""Standard errors by which squared errors must fall. A column whose finer bins tell nothing lies at -4, since they fit
noise; of those between 0 and 1.5, in tables of 550 and 3,200 rows, most ended worse."""

ROWS_TO_DROP: Mapping[Task, int] = {"classification": 2000, "regression": 1000}
"""Fewest rows with which bins that tell nothing are dropped. With 600 rows of letters networks end worse without, with
1,200 rows of two tables they are level; numbers to predict gain at 600 rows of two tables, by .05 and .2 of the loss,
and lose on a third of 550."""

FOLDS = 5

MOST_ROWS = 5000
"""Rows that are looked at, drawn at random: with more, the choice would hardly change."""

RIDGE = 1.0
"""Penalty in units of a row: the bins of a column are nearly collinear."""


def with_useful_bins(
    columns: Sequence[Column],
    frame: pd.DataFrame,
    encode_target: Callable[[NDArray[np.intp]], NDArray[Any]],
    *,
    task: Task,
    max_inputs: int | None = None,
    weight: Floats | None = None,
) -> tuple[Column, ...]:
    """Take bins from columns of numbers where they tell nothing about the target, and give more where these tell more.

    Ridge regression on the encoding of all columns leaves residuals, and ridge regression of the residuals on one
    column's bins may leave smaller ones. Both are fitted to four fifths of the rows and judged on the others. So places
    (longitude) and hours get bins that a price or a count has no use for: a test of single columns, to which bins that
    matter only together with another column are invisible.

    Args:
        columns: fitted to the training rows, with bins.
        frame: the training rows.
        encode_target: returns the targets of some rows, given by position: classes (n,), or standardized numbers
            (n, k).
        task: `classification` or `regression`.
        max_inputs: most features that numbers and their bins make, as of `most_bins`.
        weight: (rows,) positive weights; None for equal ones.

    Returns:
        The columns with the bins chosen; those that gain most come first where there is no room for all.
    """
    numbers = [one for one in columns if isinstance(one, NumberColumn)]
    # those asked for, not those there are: a value that many rows share leaves fewer
    bins = most_bins(len(frame), len(numbers), task, max_inputs)
    # Residuals on more features than this would take longer than training.
    if bins < FEWEST_BINS or sum(len(column.features()) for column in columns) > MOST_INPUTS:
        return tuple(columns)
    sample = np.random.default_rng(0).permutation(len(frame))[:MOST_ROWS]
    test = _Test(
        frame.iloc[sample],
        _numbers_of(encode_target(sample), task),
        None if weight is None else weight[sample],
    )
    found: dict[str, NumberColumn] = {}
    if len(frame) >= ROWS_TO_DROP[task]:
        plain = [
            replace(one, edges=()) if isinstance(one, NumberColumn) else one for one in columns
        ]
        coarse = [one for one in numbers if one.edges]
        falls = test.falls(plain, coarse)
        found = {one.name: replace(one, edges=()) for one in coarse if falls[one.name] < 0}
    kept = [one for one in numbers if one.name not in found]
    falls = test.falls(columns, [test.finer(one, FINER * bins) for one in kept])
    left = most_inputs(len(frame), task, max_inputs)
    inputs = [found.get(one.name, one) for one in columns if isinstance(one, NumberColumn)]
    left -= sum(len(one.features()) for one in inputs)
    for column in sorted(kept, key=lambda one: -falls[one.name]):
        if falls[column.name] > CLEAR:
            finer = _with_bins(column, frame, FINER * bins, weight)
            if (added := len(finer.edges) - len(column.edges)) <= left:
                found[column.name], left = finer, left - added
    return tuple(found.get(column.name, column) for column in columns)


class _Test:
    """Rows on which encodings are judged by what they say about a target.

    Args:
        rows: in random order.
        target: (rows, k), of mean 0.
        weight: (rows,) positive; None for equal ones.
    """

    def __init__(self, rows: pd.DataFrame, target: Floats, weight: Floats | None) -> None:
        self.rows, self._target, self._weight = rows, target, weight
        self._root = np.ones(len(rows)) if weight is None else np.sqrt(weight / weight.mean())

    def falls(self, columns: Sequence[Column], others: Sequence[NumberColumn]) -> dict[str, float]:
        """Compute how far the squared residuals fall with another encoding of a column, in standard errors.

        Args:
            columns: encodings whose residuals the others are fitted to.
            others: other encodings of single columns.

        Returns:
            The fall by the name of the column; below 0 where it fits noise.
        """
        before = self._residuals(encode_columns(columns, self.rows), self._target)
        falls = {}
        for column in others:
            after = self._residuals(column.encode(self.rows[column.name]), before)
            fall = ((before**2 - after**2) * self._root[:, None] ** 2).sum(1)
            error = float(fall.std() / np.sqrt(len(fall)))
            falls[column.name] = float(fall.mean()) / error if error > 0 else 0.0
        return falls

    def finer(self, column: NumberColumn, bins: int) -> NumberColumn:
        """Return a column with finer bins between the quantiles of these rows."""
        return _with_bins(column, self.rows, bins, self._weight)

    def _residuals(self, features: Floats, target: Floats) -> Floats:
        """Compute what ridge regression on the other folds leaves of each row's target.

        Args:
            features: (rows, p).
            target: (rows, k).

        Returns:
            (rows, k).
        """
        x = np.column_stack([np.ones(len(features)), features])
        weighted, truth = x * self._root[:, None], target * self._root[:, None]
        # The rows are in random order, so every fifth one is a random fold.
        folds = [slice(fold, None, FOLDS) for fold in range(FOLDS)]
        grams = [weighted[fold].T @ weighted[fold] for fold in folds]
        moments = [weighted[fold].T @ truth[fold] for fold in folds]
        gram, moment = sum(grams) + RIDGE * np.eye(x.shape[1]), sum(moments)
        left = np.empty_like(target)
        for fold, own_gram, own_moment in zip(folds, grams, moments, strict=True):
            slopes = np.linalg.solve(gram - own_gram, moment - own_moment)
            left[fold] = target[fold] - x[fold] @ slopes
        return left


def _with_bins(
    column: NumberColumn, rows: pd.DataFrame, bins: int, weight: Floats | None
) -> NumberColumn:
    return column.with_bins(rows[column.name], min(bins, len(rows) // ROWS_A_BIN), weight)


def _numbers_of(target: NDArray[Any], task: Task) -> Floats:
    """Return targets as numbers of mean 0, (n, k): for classes, whether a row is of each."""
    if task == "classification":
        codes = np.unique(target, return_inverse=True)[1]
        target = np.zeros((len(codes), int(codes.max()) + 1))
        target[np.arange(len(codes)), codes] = 1.0
    numbers: Floats = target.reshape(len(target), -1).astype(np.float64)
    numbers -= numbers.mean(0)
    return numbers
