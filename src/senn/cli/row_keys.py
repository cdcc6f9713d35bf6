"""What says which rows of a table belong together, and which are later: the columns of `--group` and `--time`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from senn.data import split_groups, split_last
from senn.data.tabular.cells import is_missing, kind_of, numbers, style_of, texts
from senn.data.tabular.date_column import date_form, dates
from senn.data.tabular.feature_columns import has_columns
from senn.errors import SennError
from senn.runs import FitOptions

RowNumbers = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True, eq=False)
class RowKeys:
    """What says which rows of a table belong together, and which are later.

    Attributes:
        groups: (rows,) group of each row; None without `--group`.
        times: (rows,) time of each row; None without `--time`.
        notes: remarks, one sentence each.
    """

    groups: NDArray[Any] | None = None
    times: NDArray[Any] | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: FitOptions, frame: pd.DataFrame, target: str) -> RowKeys:
        """Read the columns of `--group` and `--time`.

        Args:
            options: of the run.
            frame: the table.
            target: column to predict.

        Raises:
            SennError: a column isn't there or can't be used.
        """
        groups = times = None
        notes: list[str] = []
        for option, column in (("--group", options.group), ("--time", options.time)):
            if column is not None and column not in frame.columns:
                raise SennError(
                    f"there is no column {column!r} for {option}; {has_columns(column, frame.columns)}"
                )
            if column == target:
                raise SennError(f"{column!r} is the target, which {option} can't hold rows out by")
        if options.group is not None:
            groups, notes = row_groups(options.group, frame)
        if options.time is not None:
            kind = dict(options.column).get(options.time)
            times = row_times(options.time, frame[options.time], kind)
        return cls(groups=groups, times=times, notes=tuple(notes))

    @property
    def is_given(self) -> bool:
        """True if rows aren't held out one by one."""
        return self.groups is not None or self.times is not None

    @property
    def is_divisible(self) -> bool:
        """True if there are several groups, or several times."""
        keys = self.groups if self.times is None else self.times
        return keys is None or len(np.unique(keys)) > 1

    @property
    def latest(self) -> RowNumbers | None:
        """Numbers of the rows of the latest time; None without times."""
        return None if self.times is None else np.flatnonzero(self.times == self.times.max())

    def take(self, rows: RowNumbers) -> RowKeys:
        """Return the keys of some rows."""
        groups, times = (None if keys is None else keys[rows] for keys in (self.groups, self.times))
        return RowKeys(groups=groups, times=times)

    def hold_out(
        self, fraction: float, seed: int, classes: NDArray[Any] | None
    ) -> tuple[RowNumbers, RowNumbers]:
        """Hold out the latest rows, or whole groups.

        Args:
            fraction: share of the rows to hold out.
            seed: of the draws.
            classes: (rows,) classes to hold out in proportion; None for none.

        Returns:
            Row numbers to keep, and those that are held out.
        """
        if self.times is not None:
            return split_last(self.times, fraction)
        assert self.groups is not None
        return split_groups(self.groups, fraction, seed, classes)

    def parted(self, train: RowNumbers, held_out: RowNumbers) -> RowNumbers:
        """Leave out earlier rows of the groups that have later ones, so that no group is on both sides.

        Args:
            train: numbers of the earlier rows.
            held_out: numbers of the later ones.

        Returns:
            The earlier rows that stay.
        """
        if self.times is None or self.groups is None:
            return train
        return train[~np.isin(self.groups[train], self.groups[held_out])]

    def clusters(self, held_out: RowNumbers) -> NDArray[Any] | None:
        """Number the held-out rows that belong together; None where each stands for itself.

        Args:
            held_out: their numbers.
        """
        if self.groups is not None:
            return np.unique(self.groups[held_out], return_inverse=True)[1]
        return None if self.times is None else blocks(self.times[held_out])


def row_groups(name: str, frame: pd.DataFrame) -> tuple[NDArray[Any], list[str]]:
    """Read the group of each row.

    Args:
        name: of the column.
        frame: the table.

    Returns:
        (rows,) texts, and what there is to say about them, one sentence each.
    """
    cells = frame[name]
    missing = is_missing(cells)
    # Rows without a value may be of one and the same group, so they are kept together.
    groups = np.asarray(
        [
            "" if gone or cell is None else f"={cell.strip()}"
            for cell, gone in zip(texts(cells), missing, strict=True)
        ]
    )
    count = int((groups == "").sum())
    which = "1 row" if count == 1 else f"{count:,} rows"
    are = "is" if count == 1 else "are"
    notes = [f"{which} without a {name!r} {are} kept together as one group"] if count else []
    return groups, notes


def blocks(times: NDArray[Any]) -> RowNumbers:
    """Number blocks of neighboring times, the root of the rows in each: neighbors are no independent draws.

    Args:
        times: (rows,) numbers or time stamps.

    Returns:
        (rows,) numbers of the blocks, from 0.
    """
    rank = np.empty(len(times), dtype=np.intp)
    rank[np.argsort(times, kind="stable")] = np.arange(len(times))
    found: RowNumbers = rank // max(1, round(len(times) ** 0.5))
    return found


def row_times(name: str, cells: pd.Series[Any], kind: str | None = None) -> NDArray[Any]:
    """Read a column of dates or numbers as times that can be compared.

    Args:
        name: of the column.
        cells: its cells.
        kind: kind of the column if the user has set it; None to infer it.

    Returns:
        (rows,) numbers or time stamps.

    Raises:
        SennError: it holds anything else, or a cell is empty.
    """
    missing = is_missing(cells)
    if missing.any():
        row = cells.index[int(np.flatnonzero(missing)[0])]
        raise SennError(
            f"column {name!r} of --time is empty in {int(missing.sum()):,} of {len(cells):,} rows, the first being row "
            f"{row}; every row needs its time"
        )
    kind = kind if kind in ("number", "date") else kind_of(name, cells).kind
    if kind == "number":
        return numbers(name, cells, style_of(name, cells, None)[0])
    if kind != "date":
        raise SennError(
            f"column {name!r} of --time holds neither dates nor numbers (row {cells.index[0]}: {cells.iloc[0]!r})"
        )
    form, _ = date_form(name, cells)
    times: NDArray[Any] = dates(name, cells, form).dt.tz_localize(None).to_numpy()
    return times
