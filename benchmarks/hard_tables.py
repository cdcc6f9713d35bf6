"""Tables that are hard for a network: many columns, heavy tails, many categories, wild cells, few rows.

Each is drawn anew for every seed, and fitted at the defaults and by a control: with what is meant to help switched off,
or by a model of scikit-learn's. The defaults should be ahead of the former, and not behind the latter by more than a
standard error.

    python benchmarks/hard_tables.py --out benchmarks/results/hard_tables.json
    python benchmarks/hard_tables.py --report benchmarks/results/hard_tables.json

Every fit is a record of the results; what is there already is not fitted again. A score is the accuracy or R2.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from criteria import Results
from sklearn import datasets
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from senn import SENNClassifier, SENNRegressor
from senn.training import TrainConfig

Rows = tuple[Any, Any, Any, Any]
"""Inputs and targets to train on, then those to score on."""


def senn(task: str, seed: int, **settings: Any) -> Any:
    kind = SENNRegressor if task == "regression" else SENNClassifier
    return kind(recipe=TrainConfig(**settings), random_state=seed)


def halves(x: Any, y: Any) -> Rows:
    half = len(y) // 2
    if isinstance(x, pd.DataFrame):
        return x.iloc[:half], y[:half], x.iloc[half:], y[half:]
    return x[:half], y[:half], x[half:], y[half:]


def signal(x: np.ndarray, rng: np.random.Generator, noise: float) -> np.ndarray:
    smooth = x[:, 0] * x[:, 1] + np.sin(2 * x[:, 2]) + 0.5 * x[:, 3]
    return smooth + noise * rng.normal(size=len(x))


def wide(seed: int) -> Iterator[tuple[str, Rows, Any]]:
    rng = np.random.default_rng(seed)
    x, slope = rng.normal(size=(4000, 2000)), np.zeros(2000)
    slope[:20] = rng.normal(size=20)
    y = (x @ slope / np.sqrt(20) + rng.normal(size=4000) > 0).astype(int)
    yield "default", halves(x, y), senn("classification", seed)
    yield "network alone", halves(x, y), senn("classification", seed, linear=False)
    yield "logistic, C=.01", halves(x, y), LogisticRegression(C=0.01)


def heavy(seed: int) -> Iterator[tuple[str, Rows, Any]]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(8000, 8))
    rows = halves(x, np.exp(1.5 * signal(x, rng, 0.2) / 1.3))
    yield "default", rows, senn("regression", seed)
    yield "as they are", rows, senn("regression", seed, target_transform="none")
    yield "boosted trees", rows, HistGradientBoostingRegressor(random_state=seed)


def categories(seed: int) -> Iterator[tuple[str, Rows, Any]]:
    rng = np.random.default_rng(seed)
    x, town, effect = rng.normal(size=(8000, 5)), rng.integers(300, size=8000), rng.normal(size=300)
    frame = pd.DataFrame(x).add_prefix("x").assign(town=[f"town {at}" for at in town])
    rows = halves(frame, effect[town] + signal(x, rng, 0.5))
    yield "default", rows, senn("regression", seed)
    # A limit of the size that nothing reaches leaves 64 categories.
    yield "64 categories", rows, senn("regression", seed, max_params=10**6, members=8)


def wild(seed: int) -> Iterator[tuple[str, Rows, Any]]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4000, 8))
    rows = halves(x, signal(x, rng, 0.2))
    yield "clean", rows, senn("regression", seed)
    train, test, target = rows[0].copy(), rows[2].copy(), rows[1].copy()
    train[5, 0], train[7, 1], test[0, 0], target[3] = 1e6, -9999, 1e4, 1e6
    yield "two wild cells", (train, *rows[1:]), senn("regression", seed)
    yield "a wild test cell", (*rows[:2], test, rows[3]), senn("regression", seed)
    yield "a wild target", (rows[0], target, *rows[2:]), senn("regression", seed)
    uneven = halves(np.exp(2.5 * x), np.concatenate([rows[1], rows[3]]))
    yield "log-normal columns", uneven, senn("regression", seed)


def few(name: str, seed: int) -> Iterator[tuple[str, Rows, Any]]:
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    left, right, known, asked = train_test_split(x, y, train_size=60, random_state=seed, stratify=y)
    rows = left, known, right, asked
    yield "default", rows, senn("classification", seed)
    yield "no validation rows", rows, senn("classification", seed, validation_fraction=0.0)
    logistic = make_pipeline(StandardScaler(), LogisticRegressionCV(max_iter=2000))
    yield "logistic", rows, logistic


TABLES: Mapping[str, Callable[[int], Iterator[tuple[str, Rows, Any]]]] = {
    "2,000 columns": wide,
    "heavy-tailed target": heavy,
    "300 categories": categories,
    "wild cells": wild,
    "60 rows of iris": lambda seed: few("iris", seed),
    "60 rows of wine": lambda seed: few("wine", seed),
    "60 rows of breast_cancer": lambda seed: few("breast_cancer", seed),
}


def table(records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rows of a table: what is fitted, how, how often, and the mean score with its standard error."""
    found = []
    for key in dict.fromkeys((one["table"], one["arm"]) for one in records):
        scores = [one["score"] for one in records if (one["table"], one["arm"]) == key]
        error = statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else math.nan
        found.append([*key, str(len(scores)), f"{statistics.fmean(scores):.3f} ± {error:.3f}"])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Fit what is missing, and print what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=[*TABLES])
    parser.add_argument("--seeds", nargs="+", type=int, default=[*range(3)])
    parser.add_argument("--out", type=Path, help="where the results are kept, as JSON")
    parser.add_argument("--report", type=Path, help="print these results, and fit nothing")
    given = parser.parse_args(argv)
    results = Results(given.report or given.out)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in () if given.report else given.tables:
        for seed in given.seeds:
            for arm, (x, y, tests, targets), model in TABLES[name](seed):
                about = {"table": name, "arm": arm, "seed": seed}
                key = results.key(**about)
                if key not in results.records:
                    score = float(model.fit(x, y).score(tests, targets))
                    results.add(about, {"score": score})
                    print(key, score, file=sys.stderr)
    for row in table([*results.records.values()]):
        print(f"{row[0]:26}{row[1]:22}{row[2]:>3}  {row[3]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
