"""All kinds of columns: one is chosen and fitted, and kept as a record."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pandas as pd

from senn._records import from_dict
from senn.data.tabular.cells import is_missing, kind_of
from senn.data.tabular.date_column import DateColumn
from senn.data.tabular.table_columns import (
    BooleanColumn,
    CategoryColumn,
    Column,
    Dropped,
    NumberColumn,
)
from senn.errors import SennError

KINDS: dict[str, Any] = {
    cls.kind: cls for cls in (Dropped, NumberColumn, BooleanColumn, CategoryColumn, DateColumn)
}


def fit_column(name: str, cells: pd.Series[Any], kind: str | None = None) -> Column:
    """Choose the kind of a column and fit its encoding.

    Args:
        name: of the column.
        cells: its training cells.
        kind: a key of `KINDS`; None to infer it.

    Returns:
        The fitted column.

    Raises:
        SennError: a cell isn't of that kind, or no kind can be inferred.
    """
    if kind == "dropped":
        return Dropped(name=name, note="was left out on request")
    # before the kind is inferred: nothing can be inferred from no cells
    if is_missing(cells).all():
        return Dropped(name=name, note="is empty")
    found: Column = KINDS[kind or kind_of(name, cells)].fit(name, cells)
    return found


def column_to_dict(column: Column) -> dict[str, Any]:
    """Convert a fitted column to a JSON record."""
    return {"kind": column.kind, **asdict(column)}  # type: ignore[call-overload]


def column_from_dict(record: Any) -> Column:
    """Restore a column from a record of `column_to_dict`.

    Raises:
        SennError: the record is damaged.
    """
    cls = KINDS.get(str(record.get("kind"))) if isinstance(record, dict) else None
    if cls is None:
        raise SennError(f"the stored encoding has a column of unknown kind: {str(record)[:60]!r}")
    values = {key: value for key, value in record.items() if key != "kind"}
    column: Column = from_dict(
        cls, values, f"the stored encoding of column {record.get('name')!r}", complete=True
    )
    return column
