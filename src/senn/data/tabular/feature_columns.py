"""The columns of a table that become inputs of a network: fitted to training rows, and encoded together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from senn._text import did_you_mean
from senn.data.mapped_arrays import empty_array
from senn.data.tabular.category_column import CategoryColumn, most_categories
from senn.data.tabular.cells import Floats
from senn.data.tabular.column_kinds import KINDS, fit_column
from senn.data.tabular.number_scale import most_bins
from senn.data.tabular.number_style import Mark
from senn.data.tabular.table_columns import Column, Dropped, NumberColumn
from senn.data.tabular.target import Task
from senn.errors import SennError


def check_kinds(frame: pd.DataFrame, kinds: Mapping[str, str]) -> None:
    """Check that kinds are given for columns that are there, and that there are such kinds.

    Args:
        frame: the table.
        kinds: kind by column.

    Raises:
        SennError: a column or a kind isn't known.
    """
    for name, kind in kinds.items():
        if name not in frame.columns:
            raise SennError(f"there is no column {name!r}; {has_columns(name, frame.columns)}")
        if kind not in KINDS:
            raise SennError(
                f"column {name!r} can't be of kind {kind!r}; the kinds are {', '.join(sorted(KINDS))}"
            )


def fit_columns(
    frame: pd.DataFrame,
    *,
    task: Task,
    kinds: Mapping[str, str] | None = None,
    left_out: Mapping[str, str] | None = None,
    decimal: Mark | None = None,
    max_inputs: int | None = None,
    weight: Floats | None = None,
) -> tuple[Column, ...]:
    """Fit the encoding of each column to training rows.

    Args:
        frame: the training rows, without the target.
        task: what is to be predicted.
        kinds: kinds of columns that aren't to be inferred.
        left_out: columns that are no features, with the reason as the end of a sentence on the column.
        decimal: decimal mark of the table's numbers, where that is known.
        max_inputs: most features that numbers and their bins make, as of `most_bins`, in a network of limited size;
            None for any size.
        weight: (rows,) positive weights, by which medians, spreads and bins of numbers go; None for equal ones.

    Returns:
        A record for each column, in the order of the table.

    Raises:
        SennError: a column isn't understood; it is named, with the row where there is one.
    """
    kinds, reasons = kinds or {}, left_out or {}
    columns = tuple(
        Dropped(name=name, note=reasons[name])
        if name in reasons
        else fit_column(str(name), frame[name], kinds.get(name), decimal)
        for name in frame.columns
    )
    number_columns = [one for one in columns if isinstance(one, NumberColumn)]
    bins = most_bins(len(frame), len(number_columns), task, max_inputs)
    category_columns = [one for one in columns if isinstance(one, CategoryColumn)]
    most = most_categories(len(frame), len(category_columns), max_inputs)

    def sized(one: Column) -> Column:
        if isinstance(one, NumberColumn):
            return one.with_bins(frame[one.name], bins, weight)
        return one.with_most(most) if isinstance(one, CategoryColumn) else one

    return tuple(map(sized, columns))


def check_any_feature(columns: Sequence[Column], what: str) -> None:
    """Refuse columns of which none tells rows apart: a network needs one input at least.

    Args:
        columns: fitted to training rows.
        what: is to be predicted from them.

    Raises:
        SennError: no column makes a feature; it says why for the first few.
    """
    if any(column.features() for column in columns):
        return
    reasons = "; ".join(
        f"{column.name!r} {column.note}" for column in columns[:3] if isinstance(column, Dropped)
    )
    raise SennError(
        f"no column is left to predict {what} from" + (f" ({reasons})" if reasons else "")
    )


def used_cells(
    columns: Sequence[Column], frame: pd.DataFrame
) -> list[tuple[Column, pd.Series[Any]]]:
    """Find the cells of each column that makes features; dropped ones may be missing.

    Args:
        columns: fitted to training rows.
        frame: rows; columns may come in any order, further ones are ignored.

    Raises:
        SennError: a column is missing.
    """
    # an encoder of version 0.1 may have kept blanks around a name, which files are read without now
    names = {str(name).strip(): name for name in frame.columns}
    names |= {str(name): name for name in frame.columns}
    used = [column for column in columns if column.features()]
    found = [names.get(column.name, names.get(column.name.strip())) for column in used]
    absent = [column.name for column, name in zip(used, found, strict=True) if name is None]
    if absent:
        raise SennError(f"the table lacks the column{'s' * (len(absent) > 1)} {listed(absent)}")
    return [(column, frame[name]) for column, name in zip(used, found, strict=True)]


def encode_columns(
    columns: Sequence[Column], frame: pd.DataFrame, dtype: type[np.floating[Any]] = np.float64
) -> NDArray[Any]:
    """Encode rows, (n, features).

    Args:
        columns: fitted to training rows.
        frame: rows; columns may come in any order, further ones are ignored.
        dtype: precision that the encoding, computed in float64, is rounded to.

    Raises:
        SennError: a column is missing, or a cell can't be read.
    """
    used = used_cells(columns, frame)
    ends = np.cumsum([0, *(len(column.features()) for column, _ in used)])
    # Column by column into one array: in float64 beside it, a million rows would need gigabytes more.
    encoded = empty_array((len(frame), int(ends[-1])), dtype)
    for (column, cells), start, end in zip(used, ends[:-1], ends[1:], strict=True):
        encoded[:, start:end] = column.encode(cells)
    return encoded


def column_surprises(columns: Sequence[Column], frame: pd.DataFrame) -> list[str]:
    """Say what of some rows training never saw: categories, empty cells, other ways of writing numbers.

    Args:
        columns: fitted to training rows.
        frame: the rows, as for `encode_columns`.

    Returns:
        A sentence for each finding, with the number of cells and the first of them.

    Raises:
        SennError: a column is missing, or a cell can't be read.
    """
    return [
        f"column {column.name!r}: {sentence}"
        for column, cells in used_cells(columns, frame)
        for sentence in column.surprises(cells)
    ]


def has_columns(name: str, columns: Any) -> str:
    """Say which columns a table has instead of one that was named.

    Args:
        name: what was named.
        columns: names of the columns.
    """
    return f"the table has {listed(columns)}{did_you_mean(name, columns)}"


def listed(names: Any, most: int = 8) -> str:
    """List names in quotes for a message.

    Args:
        names: to list.
        most: how many are written out.
    """
    quoted = [repr(str(name)) for name in names]
    return ", ".join(quoted[:most]) + (
        f" and {len(quoted) - most:,} more" if len(quoted) > most else ""
    )
