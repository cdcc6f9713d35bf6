"""Tables from files and built-in ones, as data frames whose rows count from 1 below the header."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from senn.data.tabular import readers
from senn.data.tabular.built_in import BUILT_IN
from senn.data.tabular.containers import STANDARD_INPUT, Source, check_columns, source_of
from senn.data.tabular.delimited import (
    complaint,
    read_delimited,
    without_row_numbers,
)
from senn.data.tabular.number_style import Mark
from senn.data.tabular.plain_numbers import decimal_of, number_facts, with_numbers
from senn.errors import SennError


@dataclass(frozen=True, eq=False)
class Table:
    """Table read from a file.

    Attributes:
        name: of the built-in table, or the file's name without its suffix.
        frame: the rows, indexed from 1; lines that are left out leave a gap.
        target: column to predict if the source names one (built-in tables, NPZ), else None.
        notes: sentences about how the file was read, where that isn't a matter of course.
        decimal: decimal mark of its numbers, where something says it; None where nothing does.
        legacy_encoding: character encoding of its text, if it isn't Unicode and nobody named it; else None.
    """

    name: str
    frame: pd.DataFrame
    target: str | None = None
    notes: list[str] = field(default_factory=list)
    decimal: Mark | None = None
    legacy_encoding: str | None = None


def read_table(
    source: str | Path,
    text: Sequence[str] = (),
    *,
    encoding: str | None = None,
    decimal: Mark | None = None,
    legacy_encoding: str | None = None,
) -> Table:
    """Read a built-in table by name, a file, or standard input.

    Args:
        source: `digits`, `breast-cancer`, `wine`, `diabetes` or `moons`; or a path: text with separators (.csv, .tsv,
            .txt, .data and others), Parquet, Feather, JSON (.jsonl, .json), Excel, Stata or NPZ, as they are or packed
            (.gz, .bz2, .xz, .zip); or `-` for standard input. NPZ files hold `X` (or `x`) and optionally `y`, or one
            array per column.
        text: columns of a text file that are read as text even if they look like numbers.
        encoding: character encoding of a text; None to find it.
        decimal: decimal mark of a text's numbers, "." or ","; None to find it.
        legacy_encoding: likeliest encoding of a text that isn't Unicode; None to tell it by the words.

    Returns:
        The table, its rows counted from 1.

    Raises:
        SennError: there is no such file, or it isn't a table.

    >>> table = read_table("wine")
    >>> table.frame.shape, table.target
    ((178, 14), 'cultivar')
    """
    given = str(source)
    # names of built-in tables win over files of that name: write ./wine for the file
    if given in BUILT_IN:
        frame, target = BUILT_IN[given]()
        return _table(Table(given, _counted(frame), target), given)
    if given not in STANDARD_INPUT and "://" not in given and not Path(given).exists():
        raise SennError(
            f"there is no file {given!r}, and the built-in tables are {', '.join(BUILT_IN)}"
        )
    try:
        found = source_of(given)
        reader = _READERS.get(found.suffix)
        if reader is None and found.suffix not in _TEXTS:
            endings = ", ".join([*_TEXTS, *_READERS])
            raise SennError(f"{given!r} ends in none of {endings}, so its format isn't known")
        if reader is None:
            read = partial(_text_table, encoding=encoding, decimal=decimal, legacy=legacy_encoding)
            table = read(found, text)
        else:
            table = reader(found)
    except OSError as error:
        raise SennError(f"{given!r} can't be read: {error.strerror or error}") from error
    return _table(table, repr(found.shown))


def _table(table: Table, shown: str) -> Table:
    frame = table.frame
    check_columns(frame.shape[1], f"table {shown}")
    if frame.shape[0] == 0 or frame.shape[1] == 0:
        raise SennError(f"table {shown} has no {'rows' if frame.shape[1] else 'columns'}")
    return replace(table, frame=frame.set_axis([str(column) for column in frame.columns], axis=1))


def _text_table(
    source: Source,
    text: Sequence[str],
    *,
    encoding: str | None,
    decimal: Mark | None,
    legacy: str | None,
) -> Table:
    try:
        found = read_delimited(source, encoding, legacy)
    except (SennError, OSError):
        raise
    except Exception as error:  # whatever a parser makes of a damaged file
        raise SennError(complaint(error, source)) from error
    facts = {name: number_facts(cells) for name, cells in found.frame.items()}
    mark = decimal or decimal_of(facts, found.layout.separator, repr(source.shown))
    frame, notes = without_row_numbers(with_numbers(found.frame, facts, text, mark))
    return Table(
        source.name,
        frame,
        notes=[*found.notes, *notes],
        decimal=mark,
        legacy_encoding=found.legacy,
    )


def _counted(frame: pd.DataFrame) -> pd.DataFrame:
    """Count rows from 1 below the header, as an editor shows them."""
    return frame.set_axis(pd.RangeIndex(1, len(frame) + 1), axis=0)


def _read_by(reader: Callable[[Source], tuple[Any, ...]], kind: str) -> Callable[[Source], Table]:
    """Make a reader of tables that says in a sentence what is wrong with a file."""

    def read(source: Source) -> Table:
        try:
            frame, target, notes = reader(source)
        except (SennError, OSError):
            raise
        except MemoryError as error:
            raise SennError(f"{source.shown!r} doesn't fit in memory") from error
        except ImportError as error:
            raise SennError(readers.missing(error, source)) from error
        except Exception as error:  # whatever a parser makes of a damaged file
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise SennError(f"{source.shown!r} can't be read as {kind}: {reason}") from error
        return Table(source.name, _counted(frame), target, notes)

    return read


_TEXTS = (".csv", ".tsv", ".txt", ".data", ".tab", ".psv", ".dat", ".asc")
_KINDS: dict[str, tuple[Callable[[Source], tuple[Any, ...]], Sequence[str]]] = {
    "parquet": (readers.parquet, (".parquet", ".pq")),
    "feather": (readers.feather, (".feather", ".arrow", ".ipc")),
    "json": (readers.json_lines, (".jsonl", ".ndjson", ".json")),
    "excel": (readers.excel, (".xlsx", ".xlsm", ".xls", ".ods")),
    "stata": (readers.stata, (".dta",)),
    "npz": (readers.npz, (".npz",)),
}
_READERS: dict[str, Callable[[Source], Table]] = {
    suffix: _read_by(reader, kind)
    for kind, (reader, suffixes) in _KINDS.items()
    for suffix in suffixes
}
