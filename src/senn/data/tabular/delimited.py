"""Tables written as text, one line for each row."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from typing import Any

import pandas as pd

from senn.data.tabular.containers import Source
from senn.data.tabular.number_style import Mark
from senn.data.tabular.text_layout import Layout, encoding_of, layout_of
from senn.errors import SennError

_PLAIN = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_WHOLE = r"[-+]?[0-9]{1,18}"
_ZEROS_AHEAD = r"[-+]?0[0-9]+"
_EITHER = r"[-+]?[1-9][0-9]{0,2},[0-9]{3}"
_COMMA = r"[-+]?(?:[0-9]+,(?:[0-9]{1,2}|[0-9]{4,})|0,[0-9]+|[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]+)"
_POINT = r"[-+]?(?:[0-9]*\.(?:[0-9]{1,2}|[0-9]{4,})|0\.[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+\.[0-9]+)"


def read_delimited(source: Source, encoding: str | None) -> tuple[pd.DataFrame, Layout, list[str]]:
    """Read a table of text, every cell as a text without blanks around it.

    Args:
        source: its bytes.
        encoding: that the user names; None to find it.

    Returns:
        The rows, counted from 1, without those that are empty; how the table stands in the text; remarks.

    Raises:
        ValueError: the text isn't a table; the message says where.
        LookupError: the encoding isn't one.
        UnicodeDecodeError: the text isn't in that encoding.
    """
    with source.open() as stream:
        name = encoding_of(stream, encoding or "")
    notes = []
    if name == "cp1252" and not encoding:
        notes.append(
            "the table isn't UTF-8 and is read as Windows-1252; --encoding names another encoding"
        )
    with source.open() as stream, _text(stream, name) as lines:
        layout = layout_of(iter(lines), source.suffix, repr(source.shown))
    check_names(layout, repr(source.shown))
    if not layout.rows:
        raise SennError(f"table {source.shown!r} has no rows")
    frame = _cells(source, name, layout)
    frame = frame[layout.places].set_axis(pd.RangeIndex(1, len(frame) + 1), axis=0)
    frame = frame.apply(_stripped).set_axis(layout.names, axis=1)
    empty = frame.isna().all(axis=1)
    if empty.any() and not empty.all():
        lines_of = "lines without any cell are" if empty.sum() > 1 else "line without any cell is"
        notes.append(f"{int(empty.sum()):,} {lines_of} left out")
        frame = frame[~empty]
    return frame, layout, [*notes, *layout.notes]


def _cells(source: Source, encoding: str, layout: Layout) -> pd.DataFrame:
    """Read the cells of all rows as texts; empty ones are missing."""
    with source.open() as stream, _text(stream, encoding) as lines:
        for _ in range(layout.skipped):
            next(lines)
        cells: pd.DataFrame = pd.read_csv(
            lines,
            sep=r"\s+" if layout.separator == " " else layout.separator,
            header=None,
            names=range(layout.width),
            usecols=layout.places,
            index_col=False,
            nrows=layout.rows,
            dtype="str",
            # Words such as NA may be the names of classes: what they mean is decided column by column.
            keep_default_na=False,
            na_values=[""],
            skipinitialspace=True,
        )
    return cells


def _text(stream: Any, encoding: str) -> io.TextIOWrapper:
    # newline="" leaves line ends within quotes to the csv module.
    return io.TextIOWrapper(stream, encoding=encoding, newline="")


def _stripped(cells: pd.Series[Any]) -> pd.Series[Any]:
    plain = cells.str.strip()
    return plain.mask(plain == "", None)


def decimal_of(frame: pd.DataFrame, separator: str, shown: str) -> Mark | None:
    """Find the decimal mark of a table's numbers, from those that can only be read with one.

    Args:
        frame: cells as texts.
        separator: between them: where it is a semicolon, commas tend to be decimal.
        shown: how messages call the table.

    Returns:
        The mark; None if nothing says it.

    Raises:
        SennError: numbers between semicolons may be thousands or have decimals, and no other number tells.
    """
    commas = _columns_of(frame, rf"{_COMMA}|{_EITHER}", _COMMA)
    points = _columns_of(frame, rf"{_POINT}|{_PLAIN}", _POINT)
    if commas and not points:
        return ","
    if points and not commas:
        return "."
    unsure = _columns_of(frame, rf"{_EITHER}|{_WHOLE}", _EITHER)
    if separator == ";" and unsure and not points and not commas:
        cells = frame[unsure[0]]
        first = cells[cells.str.fullmatch(_EITHER).fillna(False).astype(bool)].iloc[0]
        whole, part = first.replace(",", ""), first.replace(",", ".")
        raise SennError(
            f"column {unsure[0]!r} of {shown} writes {first!r}, which may be {whole} or {part}: say which with "
            "--decimal . or --decimal ,"
        )
    return None


def _columns_of(frame: pd.DataFrame, every: str, some: str) -> list[str]:
    """List the columns of which every cell matches one pattern, and some cell another."""
    found = []
    for name in frame.columns:
        known = frame[name].dropna()
        # most columns are told by their first cells
        if known.iloc[:20].str.fullmatch(every).all() and known.str.fullmatch(every).all():
            found += [name] * bool(known.str.fullmatch(some).any())
    return found


def with_numbers(frame: pd.DataFrame, text: Iterable[str], decimal: Mark | None) -> pd.DataFrame:
    """Convert the columns that hold plain numbers, and leave the others as text.

    Args:
        frame: cells as texts.
        text: columns that stay text.
        decimal: decimal mark; after a comma, numbers with points stay text, for they may be thousands.

    Returns:
        A table in which codes with leading zeros are text, and whole numbers stay whole where cells are missing.
    """
    kept = set(text)
    columns = {}
    for name, cells in frame.items():
        read = cells if name in kept else _number(cells, decimal)
        # Python's own texts: what reads them one by one takes several times as long for those of Arrow.
        columns[name] = read.astype(object).where(read.notna(), None) if read is cells else read
    return pd.DataFrame(columns, index=frame.index)


def _number(cells: pd.Series[Any], decimal: Mark | None) -> pd.Series[Any]:
    known = cells.dropna()
    if known.empty or not known.iloc[:20].str.fullmatch(_PLAIN).all():
        return cells
    if not known.str.fullmatch(_PLAIN).all() or known.str.fullmatch(_ZEROS_AHEAD).any():
        return cells
    if decimal == "," and known.str.contains(".", regex=False).any():
        return cells
    if known.str.fullmatch(_WHOLE).all():
        whole = known.astype("int64")
        return whole if len(known) == len(cells) else whole.astype("Int64").reindex(cells.index)
    if known.str.fullmatch(r"[-+]?[0-9]+").all():
        return cells  # longer than any integer of a column: kept to the last digit
    # Python reads decimals as exactly as can be, and so does an exported network.
    values = [float(cell) for cell in known.to_numpy(dtype=object)]
    return pd.Series(values, index=known.index, dtype="float64").reindex(cells.index)


def check_names(layout: Layout, shown: str) -> None:
    """Refuse a table of which a column has no name, but for the first, or two have one.

    Args:
        layout: with the names.
        shown: how messages call the table.

    Raises:
        SennError: naming the first such column.
    """
    for at, name in enumerate(layout.names):
        if not name and layout.places[at]:
            raise SennError(f"column {layout.places[at] + 1} of {shown} has no name")
        if name in layout.names[:at]:
            raise SennError(f"{shown} has two columns named {name!r}")


def without_row_numbers(frame: pd.DataFrame, shown: str) -> pd.DataFrame:
    """Leave out a column of row numbers, which `DataFrame.to_csv` writes without a name.

    Args:
        frame: the table.
        shown: how messages call it.

    Raises:
        SennError: the first column has no name, and holds no row numbers.
    """
    if frame.columns[0] != "":
        return frame
    cells = frame.iloc[:, 0].infer_objects()
    if not (pd.api.types.is_integer_dtype(cells.dtype) and cells.is_unique):
        raise SennError(f"the first column of {shown} has no name")
    return frame.iloc[:, 1:]


def complaint(error: Exception, source: Source) -> str:
    """Say in a sentence what a reader of text objects to.

    Args:
        error: what it raised.
        source: what it read.
    """
    if isinstance(error, LookupError) and not isinstance(error, KeyError | IndexError):
        return f"there is no encoding {re.sub('.*: ', '', str(error))!r}"
    if isinstance(error, UnicodeError):
        return f"{source.shown!r} isn't text in the encoding that --encoding names"
    if isinstance(error, csv.Error) or not str(error).startswith(("line ", repr(source.shown))):
        return f"{source.shown!r} can't be read as csv: {str(error).splitlines()[0]}"
    return str(error)
