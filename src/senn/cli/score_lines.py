"""Scores as lines for the terminal."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

CONSTANT, LATEST, LINEAR = "constant", "latest", "linear"
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
    titles = heads(test)
    names = [name for name in titles if name in baselines]
    head = [f"test ({rows})", "network", *(["95 % interval"] if intervals else [])]
    table = [[*head, *(titles[name] for name in names)]]
    for name, value in test.items():
        line = [_title(name, record), _number(value)]
        if intervals:
            line.append(_interval(intervals.get(name)))
        table.append([*line, *(_number(baselines[other].get(name)) for other in names)])
    return _aligned(table)


def scores_in_short(test: Mapping[str, Any]) -> str:
    """Format the first two scores, for a line."""
    return ", ".join(f"{name} {_number(value)}" for name, value in list(test.items())[:2])


def fold_table(record: Mapping[str, Any] | None) -> list[str]:
    """Format the scores of a cross-validation, a line for each fold, with means and baselines below.

    Args:
        record: `cross_validation` of `results.json`; None for none.
    """
    if not record:
        return []
    folds, mean = record["folds"], record["mean"]
    names = [name for name in mean if name != "parameters"]
    table = [["cross-validation", "test rows", *names, "parameters", "hidden layers"]]
    for number, fold in enumerate(folds, 1):
        scores = [_number(fold["test"].get(name)) for name in names]
        layers = "-".join(map(str, fold["architecture"])) or "none"
        table.append(
            [f"fold {number}", f"{fold['test_rows']:,}", *scores, f"{fold['parameters']:,}", layers]
        )
    for title, figures in (("mean", mean), ("standard deviation", record["spread"])):
        scores = [_number(figures.get(name)) for name in names]
        size = figures.get("parameters")
        table.append([title, "", *scores, "-" if size is None else f"{size:,.0f}", ""])
    for name, title in heads(names).items():
        if figures := record["baselines"].get(name):
            table.append(
                [f"{title}, mean", "", *(_number(figures.get(one)) for one in names), "", ""]
            )
    return _aligned(table)


def heads(scores: Collection[str]) -> dict[str, str]:
    """Return what baselines are called beside scores of these names."""
    return {
        CONSTANT: "majority guess" if "accuracy" in scores else "mean guess",
        LATEST: "latest value",
        LINEAR: "linear model",
    }


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
