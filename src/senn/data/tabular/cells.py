"""Cells of one column: their kind, and their values as numbers or texts.

Rows are named by the table's own index (`read_table` counts from 1 below the header), so that a message
points at the cell in the file even when it was met in a part of the table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from senn.data.tabular.cell_texts import MISSING_MARKS, NO_VALUE, as_text
from senn.data.tabular.date_cells import date_format, number_dates
from senn.data.tabular.number_style import MOSTLY, PLAIN, Mark, NumberStyle, find_style
from senn.data.tabular.written_numbers import read_number
from senn.errors import SennError

Floats = NDArray[np.float64]

_INFERRED = {
    "string": "text",
    "mixed-integer": "text",
    "mixed": "text",
    "integer": "number",
    "integer-na": "number",
    "floating": "number",
    "mixed-integer-float": "number",
    "decimal": "number",
    "boolean": "boolean",
    "categorical": "category",
    "datetime64": "date",
    "datetime": "date",
    "date": "date",
    "time": "date",
    "empty": "empty",
}
_ZEROS_AHEAD = re.compile(r"[-+]?0[0-9]+")


@dataclass(frozen=True, kw_only=True)
class FoundKind:
    """Kind of a column, as its cells tell.

    Attributes:
        kind: "number", "boolean", "category", "date" or "empty".
        style: how numbers are written.
        form: how dates are written, as `date_format` says it; "" for cells that are dates.
        note: end of a sentence about the column; "" if there is nothing to say.
    """

    kind: str
    style: NumberStyle = PLAIN
    form: str = ""
    note: str = ""


def kind_of(name: str, cells: pd.Series[Any], decimal: Mark | None = None) -> FoundKind:
    """Infer the kind of a column.

    Args:
        name: of the column, for messages.
        cells: its cells.
        decimal: decimal mark of the table's numbers, where that is known.

    Returns:
        The kind, and what else its cells tell.

    Raises:
        SennError: the cells are of a type that isn't understood, or nearly all but not all of them are numbers (or
            dates).
    """
    inferred = pd.api.types.infer_dtype(cells, skipna=True)
    kind = _INFERRED.get(inferred)
    if kind is None:
        raise SennError(
            f"column {name!r} holds cells of type {inferred}, which isn't understood; leave it out: "
            f"--column {name}=dropped"
        )
    # pandas infers numbers and booleans by their Python types; text may still hold anything
    if kind == "text" or inferred == "time":
        return _kind_of_text(name, cells, decimal)
    if cells.isna().all():
        return FoundKind(kind="empty")
    form = number_dates(cells) if kind == "number" else ""
    return FoundKind(kind="date", form=form) if form else FoundKind(kind=kind)


def _kind_of_text(name: str, cells: pd.Series[Any], decimal: Mark | None) -> FoundKind:
    """Tell truth values, numbers and dates written as text from other text."""
    # marks such as "?" say nothing about the kind
    known = cells[~is_missing(cells)]
    for row, cell in known.items():
        if not isinstance(cell, str | int | float | Decimal | np.generic) and not _is_time(cell):
            raise SennError(
                f"column {name!r}, row {row}: a {type(cell).__name__} isn't understood; leave the column out: "
                f"--column {name}=dropped"
            )
    if known.empty:
        return FoundKind(kind="empty")
    if {str(cell).strip().lower() for cell in known.iloc[:50]} <= {"true", "false"} and set(
        known.astype("str").str.strip().str.lower()
    ) <= {"true", "false"}:
        return FoundKind(kind="boolean")
    number = _kind_of_numbers(name, known, decimal)
    if number is not None and number.kind != "category":
        return number
    form = date_format(name, known)
    if form is not None:
        return FoundKind(kind="date", form=form)
    return number or FoundKind(kind="category")


def _is_time(cell: Any) -> bool:
    return type(cell).__name__ == "time" and type(cell).__module__ == "datetime"


def _kind_of_numbers(name: str, known: pd.Series[Any], decimal: Mark | None) -> FoundKind | None:
    """Find numbers among texts; None for none, a category with a note for those that can't be compared."""
    parsed = np.asarray([_parse_number(cell, PLAIN) for cell in known])
    is_plain = not np.isnan(parsed).any()
    # with a decimal comma, "1.234" may be a thousand and more
    if is_plain and not (decimal == "," and any("." in str(cell) for cell in known)):
        form = number_dates(pd.Series(parsed))
        if form:
            return FoundKind(kind="date", form=form)
        zeros = any(_ZEROS_AHEAD.fullmatch(str(cell).strip()) for cell in known)
        return FoundKind(kind="number", note="has numbers with leading zeros" if zeros else "")
    found = find_style(name, known, decimal)
    if found is None:
        share = 1 - np.isnan(parsed).mean()
        return None if share < MOSTLY else _plain_but_for_some(name, known, np.isnan(parsed))
    if found.style is None:
        return FoundKind(kind="category", note=found.note)
    return FoundKind(kind="number", style=found.style, note=found.note)


def style_of(name: str, cells: pd.Series[Any], decimal: Mark | None) -> tuple[NumberStyle, str]:
    """Find how the numbers of a column are written, which are said to be numbers.

    Args:
        name: of the column, for messages.
        cells: its cells.
        decimal: decimal mark of the table's numbers, where that is known.

    Returns:
        The style, and the end of a sentence about it, "" if there is nothing to say.

    Raises:
        SennError: they are in several units, or a few of them aren't numbers.
    """
    if pd.api.types.is_numeric_dtype(cells.dtype):
        return PLAIN, ""
    known = cells[~is_missing(cells)]
    written = known[[isinstance(cell, str) for cell in known]]
    found = None if written.empty else _kind_of_numbers(name, written, decimal)
    if found is None or found.kind == "date" or found.note.endswith("leading zeros"):
        return PLAIN, ""
    if found.kind == "category":
        raise SennError(f"column {name!r} {found.note}")
    return found.style, found.note


def _plain_but_for_some(name: str, known: pd.Series[Any], bad: NDArray[np.bool_]) -> FoundKind:
    row, cell = known.index[bad][0], known[bad].iloc[0]
    raise SennError(
        f"column {name!r} holds numbers except in {int(bad.sum())} of {len(known)} rows, "
        f"the first being row {row}: {cell!r}; correct it, leave it empty, or declare the column a category"
    )


def is_missing(cells: pd.Series[Any]) -> NDArray[np.bool_]:
    """Find missing cells, (n,) bool; `MISSING_MARKS` count as missing."""
    missing = cells.isna().to_numpy(dtype=bool)
    if cells.dtype == object or isinstance(cells.dtype, pd.StringDtype):
        marked = [isinstance(cell, str) and cell.strip().lower() in MISSING_MARKS for cell in cells]
        missing = missing | np.asarray(marked, dtype=bool)
    return missing


def _parse_number(cell: Any, style: NumberStyle) -> float:
    """Parse a cell as a number: NaN if it isn't one, as "1_000" isn't, though Python reads it."""
    try:
        if isinstance(cell, str):
            if "_" in cell:
                return np.nan
            if style.decimal == "," and "." in cell:
                return read_number(cell, style.decimal, style.unit, style.scaled)
        return float(cell)
    except (TypeError, ValueError):
        pass
    except OverflowError:
        # A whole number of more than 308 digits: infinite, so that `numbers` calls it too large.
        return np.inf
    if not isinstance(cell, str) or style is PLAIN:
        return np.nan
    try:
        return read_number(cell, style.decimal, style.unit, style.scaled)
    except ValueError:
        return np.nan


def numbers(name: str, cells: pd.Series[Any], style: NumberStyle = PLAIN) -> Floats:
    """Convert a column to numbers.

    Args:
        name: of the column, for messages.
        cells: its cells.
        style: how numbers are written.

    Returns:
        (n,) float64, NaN where a cell is missing.

    Raises:
        SennError: a cell isn't a finite number; the first one is named.
    """
    # numeric columns need no parsing; complex numbers count as numeric, too, and fail below
    if pd.api.types.is_numeric_dtype(cells.dtype) and not pd.api.types.is_complex_dtype(
        cells.dtype
    ):
        values = cells.to_numpy(dtype=np.float64, na_value=np.nan)
        known = ~np.isnan(values)
    else:
        known = ~is_missing(cells)
        values = np.full(len(cells), np.nan)
        values[known] = [_parse_number(cell, style) for cell in cells[known]]
    bad = known & np.isnan(values)
    if bad.any():
        refuse(name, cells, bad, _complaint(cells.iloc[int(np.flatnonzero(bad)[0])], style))
    refuse(name, cells, np.isinf(values), "is infinite or too large")
    return values


def _complaint(cell: Any, style: NumberStyle) -> str:
    try:
        read_number(str(cell), style.decimal, style.unit, style.scaled)
    except ValueError as error:
        return str(error)
    return "is not a number"


def refuse(name: str, cells: pd.Series[Any], bad: NDArray[np.bool_], complaint: str) -> None:
    """Refuse a column if there are bad cells.

    Args:
        name: of the column.
        cells: its cells.
        bad: (n,) which of them are wrong.
        complaint: end of the sentence.

    Raises:
        SennError: naming the first bad cell and its row.
    """
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        raise SennError(
            f"column {name!r}, row {cells.index[at]}: {shown(cells.iloc[at])} {complaint}"
        )


def shown(cell: Any) -> str:
    """Quote a cell for a message, cut to 40 characters: it may hold a whole document."""
    text = cell if isinstance(cell, str) else str(cell)
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def texts(cells: pd.Series[Any]) -> NDArray[np.object_]:
    """Convert a column to texts, (n,) str, or None where a cell is missing or one of `NO_VALUE`."""
    out = np.empty(len(cells), dtype=object)
    for at, (cell, missing) in enumerate(zip(cells.astype(object), cells.isna(), strict=True)):
        out[at] = (
            None if missing or (isinstance(cell, str) and cell.strip() in NO_VALUE) else text(cell)
        )
    return out


def text(cell: Any) -> str:
    """Convert a cell to text without blanks around it, the same for 3, 3.0 and "3"."""
    return as_text(cell.item() if isinstance(cell, np.generic) else cell)
