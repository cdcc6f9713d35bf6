"""Shorten the records of a run for its page: only what is shown, rounded figures, no text twice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

from senn.events import Frontier

Record = Mapping[str, Any]

DIGITS = 5
"""Significant digits that a page keeps: tables show up to four, and a page of a long run stays below 3 MB."""

CANDIDATE = (
    "kind",
    "place",
    "detail",
    "units",
    "parameters",
    "gain",
    "held_out_gain",
    "held_out_stderr",
    "expected_decrease",
    "price",
    "margin",
    "reason",
)
"""Columns of a candidate's row after the first, which is 1 if it was accepted and 0 if it was refused."""

MOST_NAMES = 200
"""Classes, columns and notes of a data set that are listed by name."""

_RESULTS = (
    "task", "seed", "optimizer", "policy", "architecture", "parameters", "seconds", "best_epoch", "interrupted", "test",
    "validation", "growth_events", "versions", "intervals", "baselines", "confusion", "positive", "test_notes",
    "cross_validation", "members",
)  # fmt: skip
_DATA = ("name", "kind", "shape", "rows", "train_rows", "test_rows", "features", "target")
_LISTS = ("classes", "notes")

_IMAGE = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+=*")
_MOST_IMAGE = 40_000
"""Characters of an image, at most."""
_MOST_SHOWN = 24
"""Images of the test that are shown."""


def downsample_record(record: Record) -> dict[str, Any]:
    """Shorten one record of a run's history.

    Args:
        record: a record as in `TrainResult.history`.

    Returns:
        The same fields with rounded figures. A growth round has `rows` instead of `accepted` and `refused`: for each
        candidate 1 or 0 and the columns `CANDIDATE`, with texts as indices into `names`.

    Raises:
        KeyError, TypeError, ValueError: it isn't such a record.
    """
    event = record["event"]
    if not isinstance(event, str):
        raise TypeError("the event of a record isn't a text")
    # The last record has no step: it is about the run.
    if event == "end":
        if record.get("frontier") is not None:
            _check_frontier(Frontier.from_dict(record["frontier"]))
        return _rounded(record)
    # bool is an int in Python.
    if isinstance(record["step"], bool) or not isinstance(record["step"], int):
        raise TypeError("the step of a record isn't a whole number")
    if event in ("start", "epoch", "growth"):
        if not all(isinstance(width, int) for width in record.get("architecture", ())):
            raise TypeError("the widths of a record aren't whole numbers")
        # Raises for what is no number: the scripts of the page count on it.
        int(record["parameters"])
    if event != "growth_round":
        return _rounded(record)
    # A long run has some 100,000 candidates, whose texts repeat: each text is kept once per round.
    names: dict[str, int] = {}
    rows = [
        [
            accepted,
            *(_cell(candidate[column], names) for column in CANDIDATE[:-1]),
            _cell(candidate.get("reason", ""), names),
        ]
        for accepted, key in ((1, "accepted"), (0, "refused"))
        for candidate in record[key]
    ]
    rest = {key: value for key, value in record.items() if key not in ("accepted", "refused")}
    return {**_rounded(rest), "names": list(names), "rows": rows}


def _check_frontier(frontier: Frontier) -> None:
    """Raise for what is no number: the scripts of the page count on it."""
    int(frontier.units)
    for point in frontier.points:
        float(point.figures["loss"])
        numbers = [point.parameters, point.removed, *point.widths.values()]
        if not all(isinstance(number, int) for number in numbers):
            raise TypeError("the sizes of a frontier aren't whole numbers")


def select_results(results: Record) -> dict[str, Any]:
    """Select the results of a run that the page shows."""
    data = results.get("data") or {}
    shown: dict[str, Any] = {key: results[key] for key in _RESULTS if key in results}
    about = {key: data[key] for key in _DATA if key in data}
    for key in _LISTS:
        if data.get(key):
            about[key] = _first([str(item) for item in data[key]])
    # Counts of more classes than are named would stand beside the wrong ones.
    if data.get("class_rows") and len(data.get("classes") or ()) <= MOST_NAMES:
        about["class_rows"] = data["class_rows"]
    if isinstance(data.get("columns"), dict):
        about["columns"] = _first(
            [[str(name), str(kind)] for name, kind in data["columns"].items()]
        )
    return _rounded({**shown, "data": about})


def select_details(details: Record) -> dict[str, Any]:
    """Select what the page draws of a test.

    Args:
        details: content of `test.json`.

    Raises:
        ValueError: an image isn't one.
    """
    shown = details.get("wrongest") or []
    for one in shown:
        # The page may be somebody else's: an address would be loaded, and other data may be anything.
        if len(one["image"]) > _MOST_IMAGE or not _IMAGE.fullmatch(one["image"]):
            raise ValueError("an image of the test isn't one")
    found = {"pairs": details.get("pairs"), "wrong": details.get("wrong")}
    return _rounded({**found, "wrongest": shown[:_MOST_SHOWN]})


def _rounded(record: Record) -> dict[str, Any]:
    return {str(key): round_floats(item) for key, item in record.items()}


def round_floats(value: Any) -> Any:
    """Round the floats in a nesting to `DIGITS` digits; NaN and infinity, which JSON lacks, become None.

    >>> round_floats([1 / 3, float("nan"), {"a": 2}])
    [0.33333, None, {'a': 2}]
    """
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if isfinite(value) else None
    if isinstance(value, Mapping):
        return _rounded(value)
    return [round_floats(item) for item in value] if isinstance(value, list | tuple) else value


def _cell(value: Any, names: dict[str, int]) -> Any:
    return names.setdefault(value, len(names)) if isinstance(value, str) else round_floats(value)


def _first(items: Iterable[Any]) -> list[Any]:
    """Return the first items, and as the last one how many more there are."""
    every = list(items)
    more = len(every) - MOST_NAMES
    if more <= 0:
        return every
    word = f"and {more:,} more"
    return [*every[:MOST_NAMES], [word, ""] if isinstance(every[0], list) else word]
