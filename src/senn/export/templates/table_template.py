"""Rows of a table as a network's inputs, and its outputs as predictions, in plain Python."""

import datetime as dt
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from senn.data.tabular.cell_texts import MISSING_MARKS, NO_VALUE, TRUTH, as_text, finder
from senn.data.tabular.text_layout import NAMELESS, cells_of, encoding_of, layout_of
from senn.data.tabular.written_dates import ISO, plain_date, plain_form
from senn.data.tabular.written_numbers import read_number, settled_decimal

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def read_table_rows(
    path: str | Path, encoding: str | None = None, legacy_encoding: str | None = None
) -> list[dict[str, Any]]:
    """Read the rows of a text file as dicts from column to text, None where a cell is empty.

    Args:
        path: of the file, CSV or one with other separators.
        encoding: that it has; None to find it.
        legacy_encoding: that it has if it isn't Unicode; None for Windows-1252.
    """
    path = Path(path)
    with open(path, "rb") as stream:
        name = encoding_of(stream, encoding or "") or legacy_encoding or "cp1252"
    with open(path, encoding=name, newline="") as file:
        layout = layout_of(file, path.suffix.lower(), repr(str(path)))
    with open(path, encoding=name, newline="") as file:
        for _ in range(layout.skipped):
            next(file)
        filled = (
            cells for _, cells in cells_of(file, layout.separator) if len(cells) > 1 or any(cells)
        )
        lines = [cells for _, cells in zip(range(layout.rows), filled, strict=False)]
    rows = []
    for cells in filter(any, lines):
        padded = cells + [""] * (layout.width - len(cells))
        named = zip(layout.names, layout.places, strict=True)
        rows.append({name or NAMELESS: padded[at] or None for name, at in named})
    return rows


def encode(rows: list[dict[str, Any]], columns: list[dict[str, Any]]) -> list[list[float]]:
    """Return the numbers that the network reads, a list per row.

    Args:
        rows: dicts from column to cell.
        columns: in preprocessing.json.
    """
    used = [column for column in columns if column["kind"] != "dropped"]
    encoded = [_encode_cells([row[column["name"]] for row in rows], column) for column in used]
    return [[x for cell in cells for x in cell] for cells in zip(*encoded, strict=True)]


def _encode_cells(cells: list[Any], column: dict[str, Any]) -> list[list[float]]:
    """Return the numbers that stand for each cell of a column."""
    encoder = ENCODERS[column["kind"]](cells, column)
    encoded = []
    for cell in cells:
        try:
            encoded.append(encoder(cell))
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            complaint = f"column {column['name']!r}: {cell!r} is no {column['kind']}"
            raise ValueError(complaint) from error
    return encoded


def _is_nothing(cell: Any) -> bool:
    """Return True if there is no value: None, NaN, NaT."""
    return cell is None or cell != cell


def _is_missing(cell: Any) -> bool:
    """Return True if there is no value, or one of the texts that stand for it."""
    return _is_nothing(cell) or (isinstance(cell, str) and cell.strip().lower() in MISSING_MARKS)


def _standard(value: float, center: float, scale: float) -> float:
    """Standardize by center and scale of the training rows, within a million."""
    return min(max((value / 2 - center / 2) / scale * 2, -1e6), 1e6)


def _scaled(value: float, column: dict[str, Any]) -> list[float]:
    """Read a number: scaled and smoothly within 3, and how far it lies through each bin."""
    if column.get("mean") is not None:  # of version 0.1
        return [_standard(value, column["mean"], column["scale"])]
    number = _standard(value, column["median"], column["scale"])
    edges = column["edges"]
    parts = [
        min(max((value / 2 - low / 2) / (high / 2 - low / 2), 0.0), 1.0)
        for low, high in itertools.pairwise(edges)
    ]
    return [number / math.hypot(1.0, number / 3.0), *(2 * part - 1 for part in parts)]


Encoder = Callable[[Any], list[float]]


def _number_encoder(cells: list[Any], column: dict[str, Any]) -> Encoder:
    """Make a function from a cell to the standardized number, and whether it is missing."""
    style = {"decimal": ".", "unit": "", "scaled": False, **column.get("style", {})}
    texts = [cell for cell in cells if isinstance(cell, str) and not _is_missing(cell)]
    style["decimal"] = settled_decimal(texts, style["decimal"])

    def encode_number(cell: Any) -> list[float]:
        missing = _is_missing(cell)
        value = column["median"] if missing else _as_number(cell, style)
        if not math.isfinite(value):
            raise ValueError(cell)
        return _scaled(value, column) + [float(missing)] * column["indicator"]

    return encode_number


def _as_number(cell: Any, style: dict[str, Any]) -> float:
    """Read a number, which may be written as people do."""
    if isinstance(cell, str):
        if "_" in cell:
            raise ValueError(cell)
        if style["decimal"] == "," and "." in cell:
            return read_number(cell, **style)
    try:
        return float(cell)
    except ValueError:
        return read_number(cell, **style)


def _boolean_encoder(cells: list[Any], column: dict[str, Any]) -> Encoder:
    """Make a function to 1 for true, -1 for false, 0 for missing."""
    return lambda cell: [0.0 if _is_missing(cell) else TRUTH[as_text(cell).lower()]]


def _category_encoder(cells: list[Any], column: dict[str, Any]) -> Encoder:
    """Make a function to a one in the place of the category, and zeros."""
    count, find = len(column["categories"]), finder(column["categories"])

    def encode_category(cell: Any) -> list[float]:
        text = None if _is_nothing(cell) else as_text(cell)
        at = None if text is None else find(text)
        absent = at is None and (text is None or text in NO_VALUE) and column["indicator"]
        ones = [float(at == place) for place in range(count)]
        ones += [float(at is None and not absent)] * column["other"]
        return ones + [float(absent)] * column["indicator"]

    return encode_category


def _date_encoder(cells: list[Any], column: dict[str, Any]) -> Encoder:
    """Make a function to days and year, and to month, weekday and time of day on circles."""

    def encode_date(cell: Any) -> list[float]:
        missing = _is_missing(cell)
        if missing:
            stamp = EPOCH + dt.timedelta(seconds=round(column["median"] * 86_400))
            days = column["median"]
        else:
            stamp = _as_date(cell, column["form"])
            days = (stamp - EPOCH) // dt.timedelta(microseconds=1) / 86_400e6
        numbers = [_standard(days, column["mean"], column["scale"])]
        phases = [days % 1] * column["clock"]
        if column.get("calendar", True):
            numbers.append(_standard(stamp.year, column["year_mean"], column["year_scale"]))
            phases = [(stamp.month - 1) / 12, stamp.weekday() / 7, *phases]
        circles = [wave(2 * math.pi * phase) for phase in phases for wave in (math.sin, math.cos)]
        return [*numbers, *circles, *([float(missing)] * column["indicator"])]

    return encode_date


def _as_date(cell: Any, form: str) -> dt.datetime:
    """Return a date or text as a point in time; one without a zone is in UTC."""
    if isinstance(cell, dt.date) and not isinstance(cell, dt.datetime):
        cell = dt.datetime(cell.year, cell.month, cell.day)
    if not isinstance(cell, dt.datetime):
        text, plain = plain_date(as_text(cell), form), plain_form(form)
        cell = (
            dt.datetime.fromisoformat(text) if plain == ISO else dt.datetime.strptime(text, plain)
        )
    stamp: dt.datetime = cell
    return stamp.replace(tzinfo=dt.UTC) if stamp.tzinfo is None else stamp.astimezone(dt.UTC)


ENCODERS = {
    "number": _number_encoder,
    "boolean": _boolean_encoder,
    "category": _category_encoder,
    "date": _date_encoder,
}


def decode(outputs: list[list[float]], target: dict[str, Any]) -> list[Any]:
    """Return the most probable class of each row, or the number in its own unit.

    Args:
        outputs: of the network, a list per row.
        target: in preprocessing.json.
    """
    if target["task"] == "regression":
        low, high = target.get("low"), target.get("high")
        found = [output[0] * target["scale"] + target["mean"] for output in outputs]
        return found if low is None else [min(max(number, low), high) for number in found]
    return [target["labels"][max(range(len(output)), key=output.__getitem__)] for output in outputs]
