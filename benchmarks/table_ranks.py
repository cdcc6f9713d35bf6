"""Ranks, ratings and wins of models on several tables, from the records of `tables.py`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
FIGURES = {"score": False, "loss": True}
"""What models are ranked by, and whether less of it is better."""
NETWORKS = (
    "senn",
    "senn, one network",
    "fixed 128-128",
    "fixed 256-256",
    "realmlp",
    "tabm",
    "sklearn mlp",
)


def complete(records: Sequence[Record], folds: Sequence[int]) -> list[Record]:
    """Keep the records of these folds, of the models that have one for each table and fold.

    Args:
        records: of `tables.py`.
        folds: to keep.
    """
    kept = [one for one in records if one["fold"] in folds]
    cases = {(one["table"], one["fold"]) for one in kept}
    by_model: dict[str, set[tuple[str, int]]] = {}
    for one in kept:
        by_model.setdefault(one["model"], set()).add((one["table"], one["fold"]))
    return [one for one in kept if by_model[one["model"]] == cases]


def ranks(values: Mapping[str, float], *, rising: bool) -> dict[str, float]:
    """Rank models, 1 for the best; ties share the mean of their ranks.

    Args:
        values: figure by model.
        rising: True where less is better.

    >>> ranks({"a": 0.9, "b": 0.8, "c": 0.9}, rising=False)
    {'a': 1.5, 'b': 3.0, 'c': 1.5}
    """
    signed = {name: value if rising else -value for name, value in values.items()}
    return {
        name: 0.5
        + sum(other < own for other in signed.values())
        + sum(other == own for other in signed.values()) / 2
        for name, own in signed.items()
    }


def table_means(records: Sequence[Record], figure: str) -> list[dict[str, float]]:
    """Average a figure over folds and seeds: by model, table by table."""
    found: dict[str, dict[str, list[float]]] = {}
    for one in records:
        found.setdefault(one["table"], {}).setdefault(one["model"], []).append(one[figure])
    return [
        {name: statistics.fmean(values) for name, values in table.items()}
        for table in found.values()
    ]


def mean_ranks(records: Sequence[Record], figure: str, models: Sequence[str]) -> dict[str, float]:
    """Rank models by their means on each table, and average over tables; best first.

    Args:
        records: of `tables.py`, complete.
        figure: a key of `FIGURES`.
        models: that are ranked among each other.
    """
    placed = [
        ranks({k: v for k, v in one.items() if k in models}, rising=FIGURES[figure])
        for one in table_means(records, figure)
    ]
    means = {name: statistics.fmean(one[name] for one in placed) for name in placed[0]}
    return dict(sorted(means.items(), key=lambda pair: pair[1]))


def elo(records: Sequence[Record], figure: str) -> dict[str, float]:
    """Fit Elo ratings to all pairs of models on all tables by maximum likelihood, with a weak prior; 1000 is the mean.

    Args:
        records: of `tables.py`, complete.
        figure: a key of `FIGURES`.
    """
    tables = table_means(records, figure)
    rating = dict.fromkeys(tables[0], 0.0)
    sign = 1 if FIGURES[figure] else -1
    for _ in range(1000):
        slope = {name: -0.01 * value for name, value in rating.items()}
        for table in tables:
            for one, own in table.items():
                for other, its in table.items():
                    if one != other:
                        won = 0.5 if own == its else float(sign * own < sign * its)
                        slope[one] += won - 1 / (1 + math.exp(rating[other] - rating[one]))
        rating = {name: value + 0.05 * slope[name] for name, value in rating.items()}
    return {name: 1000 + 400 / math.log(10) * value for name, value in rating.items()}


def wins(records: Sequence[Record], figure: str, other: str) -> tuple[int, int, int]:
    """Count tables on which senn is ahead of another model by more than a standard error over folds, level, behind.

    Args:
        records: of `tables.py`.
        figure: a key of `FIGURES`.
        other: name of the other model.
    """
    counts = [0, 0, 0]
    for table in dict.fromkeys(one["table"] for one in records):
        sides = [
            {
                (one["fold"], one["seed"]): one[figure]
                for one in records
                if (one["table"], one["model"]) == (table, model)
            }
            for model in ("senn", other)
        ]
        less = [own - sides[1][key] for key, own in sides[0].items() if key in sides[1]]
        if len(less) < 2:
            continue
        better = -statistics.fmean(less) if FIGURES[figure] else statistics.fmean(less)
        error = statistics.stdev(less) / math.sqrt(len(less))
        counts[0 if better > error else 2 if better < -error else 1] += 1
    return counts[0], counts[1], counts[2]


def time_ratio(records: Sequence[Record], other: str) -> float:
    """Return the median over tables of senn's processor time over another model's."""
    seconds = table_means(records, "seconds")
    return statistics.median(one["senn"] / max(one[other], 1e-3) for one in seconds)


def mean_calibration(records: Sequence[Record], model: str) -> float:
    """Return a model's expected calibration error, the mean over tables of classes and folds."""
    found = [one["ece"] for one in records if one["model"] == model and one["ece"] is not None]
    return statistics.fmean(found)
