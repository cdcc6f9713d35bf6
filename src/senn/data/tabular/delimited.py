"""Tables written as text, one line for each row."""

from __future__ import annotations

import csv
import io
import re
from typing import Any, NamedTuple

import pandas as pd

from senn.data.tabular.containers import Source, check_columns
from senn.data.tabular.legacy_encodings import LegacyEncoding, legacy_encoding, stray_line
from senn.data.tabular.plain_numbers import has_blanks
from senn.data.tabular.text_layout import NAMELESS, Layout, encoding_of, layout_of
from senn.errors import SennError


class Delimited(NamedTuple):
    """A table of text.

    Attributes:
        frame: the rows, counted from 1, without those that are empty.
        layout: how the table stands in the text.
        notes: remarks, one sentence each.
        legacy: encoding of the text, if it isn't Unicode and nobody named it; else None.
    """

    frame: pd.DataFrame
    layout: Layout
    notes: list[str]
    legacy: str | None


def read_delimited(source: Source, encoding: str | None, legacy: str | None = None) -> Delimited:
    """Read a table of text, every cell as a text without blanks around it.

    Args:
        source: its bytes.
        encoding: that the user names; None to find it.
        legacy: likeliest encoding if it isn't Unicode; None to tell it by the words.

    Raises:
        ValueError: the text isn't a table; the message says where.
        LookupError: the encoding isn't one.
        UnicodeDecodeError: the text isn't in that encoding.
    """
    name, found = _encoding(source, encoding, legacy)
    notes = [] if found is None else [found.note]
    with source.open() as stream, _text(stream, name) as lines:
        layout = layout_of(iter(lines), source.suffix, repr(source.shown))
    check_names(layout, repr(source.shown))
    if not layout.rows:
        raise SennError(f"table {source.shown!r} has no rows")
    frame = _cells(source, name, layout)
    frame = frame[layout.places].set_axis(pd.RangeIndex(1, len(frame) + 1), axis=0)
    frame = _without_blanks(frame).set_axis(layout.names, axis=1)
    empty = frame.isna().all(axis=1)
    if empty.any() and not empty.all():
        lines_of = "lines without any cell are" if empty.sum() > 1 else "line without any cell is"
        notes.append(f"{int(empty.sum()):,} {lines_of} left out")
        frame = frame[~empty]
    found_name = None if found is None else found.name
    return Delimited(frame, layout, [*notes, *layout.notes], found_name)


def _encoding(
    source: Source, named: str | None, legacy: str | None
) -> tuple[str, LegacyEncoding | None]:
    """Return the encoding of a text, and how it was found if it isn't Unicode and nobody named it."""
    with source.open() as stream:
        name = encoding_of(stream, named or "")
        if not name and (line := stray_line(stream)) is not None:
            raise ValueError(
                f"line {line} of {source.shown!r} isn't UTF-8, as nearly all others are; correct it, or name an "
                "encoding with --encoding"
            )
        found = None if name else legacy_encoding(stream, legacy)
    if not name and found is None:
        raise ValueError(
            "it is text neither in UTF-8 nor in another encoding that can be told; name its encoding with --encoding"
        )
    return (name, None) if found is None else (found.name, found)


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
            # Python's own texts, which take more memory than those of Arrow and a tenth of the time to look at.
            dtype=object,
            # Words such as NA may be the names of classes: what they mean is decided column by column.
            keep_default_na=False,
            na_values=[""],
            skipinitialspace=True,
        )
    return cells


def _text(stream: Any, encoding: str) -> io.TextIOWrapper:
    # newline="" leaves line ends within quotes to the csv module.
    return io.TextIOWrapper(stream, encoding=encoding, newline="")


def _without_blanks(frame: pd.DataFrame) -> pd.DataFrame:
    for name in [name for name, cells in frame.items() if has_blanks(cells)]:
        plain = [cell.strip() or None if isinstance(cell, str) else None for cell in frame[name]]
        frame[name] = pd.Series(plain, index=frame.index, dtype=object)
    return frame


def check_names(layout: Layout, shown: str) -> None:
    """Refuse a table of which a column has no name, but for the first, or two have one.

    Args:
        layout: with the names.
        shown: how messages call the table.

    Raises:
        SennError: naming the first such column, or saying that there are too many.
    """
    check_columns(len(layout.names), shown)
    seen: set[str] = set()
    for name, place in zip(layout.names, layout.places, strict=True):
        if not name and place:
            raise SennError(f"column {place + 1} of {shown} has no name")
        if name in seen:
            raise SennError(f"{shown} has two columns named {name!r}")
        seen.add(name)


def without_row_numbers(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Leave out a first column of row numbers without a name, as `DataFrame.to_csv` writes it; any other gets one.

    Args:
        frame: the table.

    Returns:
        The table, and a sentence about the name, if it was given one.
    """
    if frame.columns[0] != "":
        return frame, []
    cells = frame.iloc[:, 0].infer_objects()
    if pd.api.types.is_integer_dtype(cells.dtype) and cells.is_unique:
        return frame.iloc[:, 1:], []
    name = NAMELESS if NAMELESS not in frame.columns else f"{NAMELESS} (first)"
    note = f"the first column has no name, and is called {name!r}"
    return frame.set_axis([name, *frame.columns[1:]], axis=1), [note]


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
