"""Which rows of a table a network is trained on, validated on and tested on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from senn.cli.prepared_data import refuse_fraction
from senn.data import Table, Target, read_table, split, split_groups, split_last
from senn.data.tabular.cells import is_missing, kind_of, numbers, style_of, texts
from senn.data.tabular.date_column import date_form, dates
from senn.data.tabular.number_style import Mark
from senn.data.tabular.table_encoder import check_names, has_columns, listed
from senn.data.tabular.target import labeled
from senn.errors import SennError
from senn.runs import FitOptions

RowNumbers = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True, eq=False)
class TableParts:
    """Rows of a table, by what they are for.

    Attributes:
        train: rows to train on, those for validation included.
        test: rows to test on.
        validation: positions in `train` of the rows for validation; None where training draws them.
        left_out: columns that are no features, with the reason as the end of a sentence on the column.
        clusters: (test rows,) numbers of the rows that belong together; None where each stands for itself.
        notes: remarks, one sentence each.
    """

    train: pd.DataFrame
    test: pd.DataFrame
    validation: RowNumbers | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    clusters: NDArray[Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_random(self) -> bool:
        """True if rows were drawn one by one."""
        return self.validation is None


def read_test_table(
    options: FitOptions, name: str, text: list[str], decimal: Mark | None
) -> pd.DataFrame | None:
    """Read the table of `--test`, if there is one.

    Args:
        options: of the run.
        name: column to predict.
        text: columns that are read as text.
        decimal: decimal mark of the training table.

    Raises:
        SennError: it can't be read, or lacks the target.
    """
    if options.test is None:
        return None
    refuse_fraction(options)
    mark = options.decimal or decimal
    frame = read_table(options.test, text=text, encoding=options.encoding, decimal=mark).frame
    if name not in frame.columns:
        raise SennError(
            f"{options.test!r} has no column {name!r}, which is to be predicted, so nothing can be scored on it; "
            f"it has {listed(frame.columns)}"
        )
    check_names(frame, name)
    return labeled(frame, name, mark)[0]


def divide(
    options: FitOptions,
    table: Table,
    target: Target,
    test: pd.DataFrame | None,
    validation_fraction: float,
) -> TableParts:
    """Divide a table into rows to train on, to validate on and to test on.

    Args:
        options: of the run.
        table: the table as read.
        target: column to predict.
        test: table to test on; None to hold out rows.
        validation_fraction: share of the training rows that are held out for validation by groups or by time.

    Raises:
        SennError: a column of `--group` or `--time` isn't there or can't be used, or a part would have no rows.
    """
    frame, column = table.frame, options.group or options.time
    if options.group and options.time:
        raise SennError("--group and --time can't be combined: each says how rows are held out")
    if column is not None:
        option = "--group" if options.group else "--time"
        if column not in frame.columns:
            raise SennError(
                f"there is no column {column!r} for {option}; {has_columns(column, frame.columns)}"
            )
        if column == target.name:
            raise SennError(f"{column!r} is the target, which {option} can't hold rows out by")
    if options.group:
        return _by_group(options, frame, target, test, validation_fraction)
    if options.time:
        return _by_time(options, frame, test, validation_fraction)
    if test is not None:
        return TableParts(train=frame, test=test)
    # Classes are held out in proportion, so that a rare one is in both parts.
    train, held_out = split(
        len(frame), options.test_fraction, options.seed, _classes(target, frame)
    )
    return TableParts(train=frame.iloc[train], test=frame.iloc[held_out])


def _classes(target: Target, frame: pd.DataFrame) -> NDArray[Any] | None:
    return target.encode(frame[target.name]) if target.task == "classification" else None


def _by_group(
    options: FitOptions,
    frame: pd.DataFrame,
    target: Target,
    test: pd.DataFrame | None,
    validation_fraction: float,
) -> TableParts:
    name = str(options.group)
    groups, notes = _groups(name, frame)
    train = np.arange(len(frame), dtype=np.intp)
    if test is None:
        if len(np.unique(groups)) < 2:
            raise SennError(
                f"column {name!r} of --group has a single value, so no group can be held out"
            )
        train, held_out = split_groups(
            groups, options.test_fraction, options.seed, _classes(target, frame)
        )
        test = frame.iloc[held_out]
    elif name in test.columns:
        shared = np.isin(_groups(name, test)[0], groups).mean()
        if shared:
            notes.append(
                f"{shared:.0%} of the test rows have a {name!r} that is also among the training rows"
            )
    validation = np.empty(0, dtype=np.intp)
    inside = groups[train]
    kept = frame.iloc[train]
    if len(np.unique(inside)) > 1 and validation_fraction:
        _, validation = split_groups(
            inside, validation_fraction, options.seed, _classes(target, kept)
        )
    clusters = None
    if name in test.columns:
        clusters = np.unique(_groups(name, test)[0], return_inverse=True)[1]
    return TableParts(
        train=kept,
        test=test,
        validation=validation,
        left_out={name: "keeps its rows together (--group) and is no feature"},
        clusters=clusters,
        notes=tuple(notes),
    )


def _groups(name: str, frame: pd.DataFrame) -> tuple[NDArray[Any], list[str]]:
    """Read the group of each row, and what there is to say about them."""
    cells = frame[name]
    missing = is_missing(cells)
    # Rows without a value may be of one and the same group, so they are kept together.
    groups = np.asarray(
        [
            "" if gone else f"={cell.strip()}"
            for cell, gone in zip(texts(cells), missing, strict=True)
        ]
    )
    count = int(missing.sum())
    notes = [f"{count:,} rows without a {name!r} are kept together as one group"] if count else []
    return groups, notes


def _by_time(
    options: FitOptions, frame: pd.DataFrame, test: pd.DataFrame | None, validation_fraction: float
) -> TableParts:
    name = str(options.time)
    times = row_times(name, frame[name], dict(options.column).get(name))
    train = np.arange(len(frame), dtype=np.intp)
    clusters = None
    if test is None:
        if len(np.unique(times)) < 2:
            raise SennError(
                f"column {name!r} of --time has a single value, so no rows are the latest"
            )
        train, held_out = split_last(times, options.test_fraction)
        test, clusters = frame.iloc[held_out], blocks(times[held_out])
    validation = np.empty(0, dtype=np.intp)
    if len(np.unique(times[train])) > 1 and validation_fraction:
        _, validation = split_last(times[train], validation_fraction)
    return TableParts(train=frame.iloc[train], test=test, validation=validation, clusters=clusters)


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
