"""Scores as lines for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CONSTANT, LINEAR = "constant", "linear"
"""Names of the baselines in `results.json`."""

_MOST_CLASSES = 12
"""Classes of which a confusion matrix is printed."""


def tested(data: Mapping[str, Any]) -> str:
    """Say how many rows were tested, as "36 rows" or "1,000 images".

    Args:
        data: entry of `results.json`.
    """
    unit = "image" if data.get("kind") == "images" else "row"
    return f"{data['test_rows']:,} {unit}{'s' * (data['test_rows'] != 1)}"


def score_table(record: Mapping[str, Any], rows: str) -> list[str]:
    """Format test scores beside their intervals and baselines, a line for each score.

    Args:
        record: `test` and, if they were computed, `intervals`, `baselines` and `positive`, as in `results.json`.
        rows: what was scored, such as "36 rows".
    """
    test = record.get("test") or {}
    if not test:
        return [f"test ({rows}): not scored"]
    intervals, baselines = record.get("intervals") or {}, record.get("baselines") or {}
    heads = {
        CONSTANT: "majority guess" if "accuracy" in test else "mean guess",
        LINEAR: "linear model",
    }
    names = [name for name in heads if name in baselines]
    head = [f"test ({rows})", "network", *(["95 % interval"] if intervals else [])]
    table = [[*head, *(heads[name] for name in names)]]
    for name, value in test.items():
        line = [_title(name, record), _number(value)]
        if intervals:
            line.append(_interval(intervals.get(name)))
        table.append([*line, *(_number(baselines[other].get(name)) for other in names)])
    return _aligned(table)


def _title(name: str, record: Mapping[str, Any]) -> str:
    # Which class it is about: of "fraud" and "no fraud" the other one is easy.
    positive = record.get("positive")
    of_class = name in ("f1", "recall", "precision", "average_precision", "jaccard")
    return f"{name} of {positive!r}" if of_class and positive is not None else name


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}"


def _interval(ends: Sequence[float] | None) -> str:
    return "-" if ends is None else f"{_number(ends[0])} to {_number(ends[1])}"


def _aligned(table: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = [
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def confusion_lines(counts: Sequence[Sequence[int]] | None, labels: Sequence[Any]) -> list[str]:
    """Format a confusion matrix, true classes by rows; nothing for many classes.

    Args:
        counts: rows of each class that were taken for each class; None for none.
        labels: the classes.
    """
    if counts is None or len(labels) > _MOST_CLASSES:
        return []
    # Of a record that somebody else has written.
    if {len(counts), *map(len, counts)} != {len(labels)}:
        return []
    names = [name if len(name) <= 16 else f"{name[:13]}..." for name in map(str, labels)]
    body = [
        [name, *(f"{count:,}" for count in row)] for name, row in zip(names, counts, strict=True)
    ]
    return _aligned([["true class, taken for", *names], *body])
