"""Rows of a table as a network's inputs, and its outputs as predictions, in plain Python."""

import csv
import datetime as dt
import math
from pathlib import Path
from typing import Any

MISSING = {"", "?", "-", "--", ".", "na", "n/a", "n.a.", "nan", "null", "none", "missing", "#n/a"}
EMPTY = {"", "#N/A", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "<NA>"}
TRUTH = {"true": 1.0, "false": -1.0, "1": 1.0, "0": -1.0, "yes": 1.0, "no": -1.0}
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read the rows of a CSV file as dicts from column to text, None where a cell is empty."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        mark = max(",;\t|", key=file.readline().count)
        file.seek(0)
        rows = list(csv.DictReader(file, delimiter=mark))
    return [{name: None if cell in EMPTY else cell for name, cell in row.items()} for row in rows]


def encode(rows: list[dict[str, Any]], columns: list[dict[str, Any]]) -> list[list[float]]:
    """Return the numbers that the network reads, a list per row.

    Args:
        rows: dicts from column to cell.
        columns: in preprocessing.json.
    """
    return [[x for column in columns for x in _encode_cell(row, column)] for row in rows]


def _encode_cell(row: dict[str, Any], column: dict[str, Any]) -> list[float]:
    """Return the numbers that stand for one cell."""
    if column["kind"] == "dropped":
        return []
    cell = row[column["name"]]
    try:
        return ENCODERS[column["kind"]](cell, column)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise ValueError(f"column {column['name']!r}: {cell!r} is no {column['kind']}") from error


def _is_nothing(cell: Any) -> bool:
    """Return True if there is no value: None, NaN, NaT."""
    return cell is None or cell != cell


def _is_missing(cell: Any) -> bool:
    """Return True if there is no value, or one of the texts that stand for it."""
    return _is_nothing(cell) or (isinstance(cell, str) and cell.strip().lower() in MISSING)


def _standard(value: float, mean: float, scale: float) -> float:
    """Standardize by the mean and deviation of the training rows, within a million."""
    return min(max((value / 2 - mean / 2) / scale * 2, -1e6), 1e6)


def _as_text(cell: Any) -> str:
    """Return the same text for 3, 3.0 and "3"."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _encode_number(cell: Any, column: dict[str, Any]) -> list[float]:
    """Return the standardized number, the median for a missing one, and whether it was missing."""
    missing = _is_missing(cell)
    value = column["median"] if missing else float(cell)
    if not math.isfinite(value) or (isinstance(cell, str) and "_" in cell):
        raise ValueError(cell)
    number = _standard(value, column["mean"], column["scale"])
    return [number] + [float(missing)] * column["indicator"]


def _encode_boolean(cell: Any, column: dict[str, Any]) -> list[float]:
    """Return 1 for true, -1 for false, 0 for missing."""
    return [0.0 if _is_missing(cell) else TRUTH[_as_text(cell).strip().lower()]]


def _encode_category(cell: Any, column: dict[str, Any]) -> list[float]:
    """Return a one in the place of the category, and zeros."""
    categories = column["categories"]
    text = None if _is_nothing(cell) else _as_text(cell)
    known = text in categories
    ones = [float(text == category) for category in categories]
    absent = text is None and column["indicator"]
    ones += [float(not known and not absent)] * column["other"]
    return ones + [float(absent)] * column["indicator"]


def _encode_date(cell: Any, column: dict[str, Any]) -> list[float]:
    """Return days and year, standardized; month, weekday and time of day as points on circles."""
    missing = _is_missing(cell)
    if missing:
        stamp = EPOCH + dt.timedelta(seconds=round(column["median"] * 86_400))
        days = column["median"]
    else:
        stamp = _as_date(cell, column["form"])
        days = (stamp - EPOCH) // dt.timedelta(microseconds=1) / 86_400e6
    phases = [(stamp.month - 1) / 12, stamp.weekday() / 7] + [days % 1] * column["clock"]
    return [
        _standard(days, column["mean"], column["scale"]),
        _standard(stamp.year, column["year_mean"], column["year_scale"]),
        *(wave(2 * math.pi * phase) for phase in phases for wave in (math.sin, math.cos)),
        *([float(missing)] * column["indicator"]),
    ]


def _as_date(cell: Any, form: str) -> dt.datetime:
    """Return a date or text as a point in time; one without a zone is in UTC."""
    if isinstance(cell, dt.date) and not isinstance(cell, dt.datetime):
        cell = dt.datetime(cell.year, cell.month, cell.day)
    if isinstance(cell, str):
        iso = form in ("", "ISO8601")
        cell = dt.datetime.fromisoformat(cell) if iso else dt.datetime.strptime(cell, form)
    stamp: dt.datetime = cell
    return stamp.replace(tzinfo=dt.UTC) if stamp.tzinfo is None else stamp.astimezone(dt.UTC)


ENCODERS = {
    "number": _encode_number,
    "boolean": _encode_boolean,
    "category": _encode_category,
    "date": _encode_date,
}


def decode(outputs: list[list[float]], target: dict[str, Any]) -> list[Any]:
    """Return the most probable class of each row, or the number in its own unit.

    Args:
        outputs: of the network, a list per row.
        target: in preprocessing.json.
    """
    if target["task"] == "regression":
        return [output[0] * target["scale"] + target["mean"] for output in outputs]
    return [target["labels"][max(range(len(output)), key=output.__getitem__)] for output in outputs]
