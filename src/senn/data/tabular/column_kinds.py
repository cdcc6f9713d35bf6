"""All kinds of columns: one is chosen and fitted, and kept as a record."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pandas as pd

from senn._records import from_dict
from senn.data.tabular.category_column import CategoryColumn
from senn.data.tabular.cells import is_missing, kind_of
from senn.data.tabular.date_column import DateColumn
from senn.data.tabular.number_style import PLAIN, Mark
from senn.data.tabular.table_columns import BooleanColumn, Column, Dropped, NumberColumn
from senn.errors import SennError

KINDS: dict[str, Any] = {
    cls.kind: cls for cls in (Dropped, NumberColumn, BooleanColumn, CategoryColumn, DateColumn)
}

ADDED: dict[str, dict[str, Any]] = {
    "number": {"style": asdict(PLAIN), "edges": []},
    "category": {"rare": []},
    "date": {"calendar": True},
}
"""Fields that records of version 0.1 lack, by kind, as they were then."""


def fit_column(
    name: str, cells: pd.Series[Any], kind: str | None = None, decimal: Mark | None = None
) -> Column:
    """Choose the kind of a column and fit its encoding.

    Args:
        name: of the column.
        cells: its training cells.
        kind: a key of `KINDS`; None to infer it.
        decimal: decimal mark of the table's numbers, where that is known.

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
    if kind is not None:
        named: Column = KINDS[kind].fit(name, cells, decimal)
        return named
    found = kind_of(name, cells, decimal)
    if found.note.endswith("leading zeros"):
        return _with_leading_zeros(name, cells)
    column: Column = KINDS[found.kind].fit(name, cells, decimal, found)
    if found.kind == "category" and found.note:
        # why texts that look like numbers aren't read as such says more than that they all differ
        return replace(column, note=found.note)  # type: ignore[type-var]
    return column


def _with_leading_zeros(name: str, cells: pd.Series[Any]) -> Column:
    """Fit categories if there are few codes, else numbers, with a note either way."""
    codes = CategoryColumn.fit(name, cells)
    if isinstance(codes, CategoryColumn) and not codes.other:
        other = f"'--column {name}=number' reads numbers"
        return replace(codes, note=f"has leading zeros, so it is read as categories; {other}")
    column = NumberColumn.fit(name, cells)
    if isinstance(column, NumberColumn):
        other = f"'--column {name}=category' reads categories"
        return replace(column, note=f"is read as numbers without their leading zeros; {other}")
    return column


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
    values = {**ADDED.get(cls.kind, {}), **record}
    del values["kind"]
    column: Column = from_dict(
        cls, values, f"the stored encoding of column {record.get('name')!r}", complete=True
    )
    return column
