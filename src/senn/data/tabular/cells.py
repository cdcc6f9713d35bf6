"""Cells of one column: their kind, and their values as numbers, texts or dates.

Rows are named by the table's own index (`read_table` counts from 1 below the header), so that a message
points at the cell in the file even when it was met in a part of the table.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from senn.errors import SennError

Floats = NDArray[np.float64]

MISSING_MARKS = frozenset(
    {"", "?", "-", "--", ".", "na", "n/a", "n.a.", "nan", "null", "none", "missing", "#n/a"}
)
"""Texts that stand for a missing number or date, in lower case."""

MOSTLY = 0.8
"""Share of readable cells from which the others count as mistakes rather than as text.

At a half, a column of codes of which many happen to be numbers would be refused; at 0.95, one typing error in ten rows
would turn a column of numbers into a category, silently.
"""

DATE_FORMATS = tuple(
    f"{day}{clock}"
    for day in ("%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%d-%m-%Y", "%d %b %Y", "%b %d, %Y")
    for clock in ("", " %H:%M", " %H:%M:%S")
)
"""Formats tried after ISO 8601, the month before the day where both would do."""

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
    "empty": "empty",
}
_DECIMAL_COMMA = re.compile(r"[-+]?[\d.]*\d,\d+")


def kind_of(name: str, cells: pd.Series[Any]) -> str:
    """Infer the kind of a column.

    Args:
        name: of the column, for messages.
        cells: its cells.

    Returns:
        "number", "boolean", "category", "date" or "empty".

    Raises:
        SennError: the cells are of a type that isn't understood, or nearly all but not all of them are numbers (or
            dates).
    """
    inferred = pd.api.types.infer_dtype(cells, skipna=True)
    kind = _INFERRED.get(inferred)
    if kind is None:
        raise SennError(f"column {name!r} holds cells of type {inferred}, which isn't understood")
    # pandas infers numbers and booleans by their Python types; text may still hold anything
    if kind != "text":
        return "empty" if cells.isna().all() else kind
    return _kind_of_text(name, cells)


def _kind_of_text(name: str, cells: pd.Series[Any]) -> str:
    """Tell numbers and dates written as text from other text."""
    # marks such as "?" say nothing about the kind
    known = cells[~is_missing(cells)]
    for cell in known:
        if not isinstance(cell, str | int | float | Decimal | np.generic):
            raise SennError(
                f"column {name!r} holds a {type(cell).__name__}, which isn't understood"
            )
    if known.empty:
        return "empty"
    # read as text, such a column would become a category of hundreds of values without a word
    if all(_DECIMAL_COMMA.fullmatch(str(cell)) for cell in known):
        where = f"row {known.index[0]}: {known.iloc[0]!r}"
        raise SennError(
            f"column {name!r} writes numbers with a decimal comma ({where}); write them with a point"
        )
    if _readable(name, known, _parse_numbers(known), "numbers"):
        return "number"
    if date_format(name, known) is not None:
        return "date"
    return "category"


def _readable(name: str, known: pd.Series[Any], parsed: pd.Series[Any], what: str) -> bool:
    """True if all cells were parsed; refuse a column of which only a few weren't."""
    bad = parsed.isna()
    if not bad.any():
        return True
    if 1 - bad.mean() >= MOSTLY:
        row = known.index[bad.to_numpy()][0]
        cell = known[bad].iloc[0]
        raise SennError(
            f"column {name!r} holds {what} except in {int(bad.sum())} of {len(known)} rows, "
            f"the first being row {row}: {cell!r}; correct it, leave it empty, or declare the column a category"
        )
    return False


def is_missing(cells: pd.Series[Any]) -> NDArray[np.bool_]:
    """Find missing cells, (n,) bool; `MISSING_MARKS` count as missing."""
    missing = cells.isna().to_numpy(dtype=bool)
    if cells.dtype == object or isinstance(cells.dtype, pd.StringDtype):
        marked = [isinstance(cell, str) and cell.strip().lower() in MISSING_MARKS for cell in cells]
        missing = missing | np.asarray(marked, dtype=bool)
    return missing


def _parse_numbers(cells: pd.Series[Any]) -> pd.Series[Any]:
    return pd.Series([_parse_number(cell) for cell in cells], index=cells.index, dtype=np.float64)


def _parse_number(cell: Any) -> float:
    """Parse a cell as a number: NaN if it isn't one, as "1_000" isn't, though Python reads it."""
    try:
        return np.nan if isinstance(cell, str) and "_" in cell else float(cell)
    except (TypeError, ValueError):
        return np.nan
    except OverflowError:
        # A whole number of more than 308 digits: infinite, so that `numbers` calls it too large.
        return np.inf


def numbers(name: str, cells: pd.Series[Any]) -> Floats:
    """Convert a column to numbers.

    Args:
        name: of the column, for messages.
        cells: its cells.

    Returns:
        (n,) float64, NaN where a cell is missing.

    Raises:
        SennError: a cell isn't a finite number; the first one is named.
    """
    known = ~is_missing(cells)
    values = np.full(len(cells), np.nan)
    # numeric columns need no parsing; complex numbers count as numeric, too, and fail below
    if pd.api.types.is_numeric_dtype(cells.dtype) and not pd.api.types.is_complex_dtype(
        cells.dtype
    ):
        values = cells.to_numpy(dtype=np.float64, na_value=np.nan)
    elif known.any():
        values[known] = _parse_numbers(cells[known]).to_numpy(dtype=np.float64, na_value=np.nan)
    _refuse(name, cells, known & np.isnan(values), "is not a number")
    _refuse(name, cells, np.isinf(values), "is infinite or too large")
    return values


def _refuse(name: str, cells: pd.Series[Any], bad: NDArray[np.bool_], complaint: str) -> None:
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        cell = cells.iloc[at]
        shown = cell if isinstance(cell, str) else str(cell)
        # a cell may hold a whole document
        shown = shown if len(shown) <= 40 else f"{shown[:37]}..."
        raise SennError(f"column {name!r}, row {cells.index[at]}: {shown!r} {complaint}")


def texts(cells: pd.Series[Any]) -> NDArray[np.object_]:
    """Convert a column to texts, (n,) str or None where a cell is missing; whole numbers lose a trailing ".0"."""
    out = np.empty(len(cells), dtype=object)
    for at, (cell, missing) in enumerate(zip(cells.astype(object), cells.isna(), strict=True)):
        out[at] = None if missing else text(cell)
    return out


def text(cell: Any) -> str:
    """Convert a cell to text, the same for 3, 3.0 and "3"."""
    # a column of whole numbers with a missing cell comes as floats from pandas
    if isinstance(cell, float | np.floating) and float(cell).is_integer():
        return str(int(cell))
    return str(cell)


def date_format(name: str, known: pd.Series[Any]) -> str | None:
    """Find the format in which texts are dates.

    Args:
        name: of the column, for messages.
        known: its texts, without missing ones.

    Returns:
        A format of `strptime`, or "ISO8601"; None if they aren't dates.

    Raises:
        SennError: nearly all but not all of them are dates.
    """
    # Parsing all cells in each of dozens of formats is slow, so 50 cells choose the formats worth trying.
    sample = known.iloc[:50]
    best, share = None, 0.0
    # the format that reads most cells, not the first that reads some: 01/02 fits two of them
    for form in ("ISO8601", *DATE_FORMATS):
        hits = float(_parse_dates(sample, form).notna().mean())
        if hits >= MOSTLY:
            whole = float(_parse_dates(known, form).notna().mean())
            # Strictly more: of two formats that read as many, the earlier one has the month first.
            if whole > share:
                best, share = form, whole
    if best is None:
        return None
    return best if _readable(name, known, _parse_dates(known, best), "dates") else None


def _parse_dates(cells: pd.Series[Any], form: str) -> pd.Series[Any]:
    # Without utc=True, pandas refuses cells of several offsets (summer and winter).
    return pd.to_datetime(cells.astype("str"), format=form, errors="coerce", utc=True)


def dates(name: str, cells: pd.Series[Any], form: str) -> pd.Series[Any]:
    """Convert a column to time stamps.

    Args:
        name: of the column, for messages.
        cells: its cells.
        form: format of texts, from `date_format`; "" for cells that are dates already.

    Returns:
        UTC time stamps, NaT where a cell is missing.

    Raises:
        SennError: a cell isn't a date of that format; the first one is named.
    """
    known = ~is_missing(cells)
    if pd.api.types.is_datetime64_any_dtype(cells.dtype) or pd.api.types.infer_dtype(cells) in (
        "date",
        "datetime",
    ):
        # In microseconds: nanoseconds end in 2262, and "9999-12-31" is a common mark.
        return pd.to_datetime(cells, utc=True).astype("datetime64[us, UTC]")
    stamps = pd.Series(pd.NaT, index=cells.index, dtype="datetime64[us, UTC]")
    if known.any():
        stamps[known] = _parse_dates(cells[known], form or "ISO8601").astype("datetime64[us, UTC]")
    _refuse(
        name,
        cells,
        known & stamps.isna().to_numpy(),
        "is not a date like those of the training table",
    )
    return stamps
