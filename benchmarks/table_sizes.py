"""Is the size that growth finds worth a guess, on ten tables?

Grown by default, beside fixed nets of the same optimizer, epochs and stopping rule; the same inputs for all, at most
6,000 rows a table, three folds. The best of the grid is chosen by validation loss, and its time is that of all six.
Every fit is one record of the results, which are written as they come: what is there already is not fitted again.

    SENN_DATA=DIR python benchmarks/table_sizes.py --seeds 5 --out results.json
    SENN_DATA=DIR python benchmarks/table_sizes.py --tuning --arms grown 128-128 --recipe '{"hidden": [32, 32]}'

With `--tuning`, the rows of the test folds are never looked at: a fifth of each training fold is what scores are
measured on. Defaults are to be chosen in this mode only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.impute import SimpleImputer
from sklearn.metrics import log_loss, mean_squared_error
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import LabelEncoder, OneHotEncoder, StandardScaler

from senn.integrations.sklearn import SENNClassifier, SENNRegressor
from senn.training import TrainConfig

REGRESSION = ("california", "bike", "concrete")
TABLES = (*REGRESSION, "phoneme", "letter", "adult", "telco", "wine_white", "spambase", "titanic")
GRID = {
    "8": (8,),
    "32": (32,),
    "128": (128,),
    "512": (512,),
    "32-32": (32, 32),
    "128-128": (128, 128),
}
ARMS = ("grown", *GRID)
MOST_ROWS, FOLDS = 6000, 3


def read(name: str) -> tuple[pd.DataFrame, np.ndarray[Any, Any]]:
    """Read at most 6,000 rows of a table: columns and targets."""
    frame = pd.read_csv(Path(os.environ["SENN_DATA"]) / "tables" / f"{name}.csv.gz")
    if len(frame) > MOST_ROWS:
        frame = frame.sample(MOST_ROWS, random_state=0).reset_index(drop=True)
    target = frame.pop(frame.columns[-1])
    is_number = name in REGRESSION
    return frame, target.to_numpy(float) if is_number else LabelEncoder().fit_transform(target)


def split(
    frame: pd.DataFrame, y: np.ndarray[Any, Any], *, is_regression: bool, tuning: bool
) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Rows to train on and rows that scores are measured on, fold by fold."""
    kind = KFold if is_regression else StratifiedKFold
    found = []
    for train, test in kind(FOLDS, shuffle=True, random_state=0).split(frame, y):
        if tuning:
            train, test = train_test_split(
                train, test_size=0.2, random_state=1, stratify=None if is_regression else y[train]
            )
        found.append((train, test))
    return found


def folds(
    frame: pd.DataFrame, y: np.ndarray[Any, Any], *, is_regression: bool, tuning: bool
) -> list[tuple[np.ndarray[Any, Any], ...]]:
    """Training inputs and targets, then those that scores are measured on, fold by fold."""
    found = []
    for train, test in split(frame, y, is_regression=is_regression, tuning=tuning):
        x, others = frame.iloc[train], frame.iloc[test]
        numbers = [column for column in frame if frame[column].dtype.kind in "iufb"]
        words = [column for column in frame if column not in numbers]
        parts = []
        if numbers:
            scale = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
            parts.append([scale.fit_transform(x[numbers]), scale.transform(others[numbers])])
        if words:
            fill = SimpleImputer(strategy="constant", fill_value="missing")
            code = OneHotEncoder(
                handle_unknown="infrequent_if_exist", min_frequency=5, sparse_output=False
            )
            one_hot = make_pipeline(fill, code)
            parts.append([one_hot.fit_transform(x[words]), one_hot.transform(others[words])])
        inputs, tests = (np.hstack(side) for side in zip(*parts, strict=True))
        found.append((inputs, y[train], tests, y[test]))
    return found


def fit(
    fold: Sequence[np.ndarray[Any, Any]], arm: str, *, is_regression: bool, seed: int, recipe: Any
) -> dict[str, Any]:
    """Fit one net; returns its figures."""
    x, y, tests, targets = fold
    options: dict[str, Any] = {"members": 1}  # sizes are compared, not ensembles
    if arm == "grown":  # JSON has no tuples
        options |= {key: tuple(v) if isinstance(v, list) else v for key, v in recipe.items()}
    if arm in GRID:
        options |= {"grow": False, "hidden": GRID[arm]}
    kind = SENNRegressor if is_regression else SENNClassifier
    estimator = kind(recipe=TrainConfig(**options), random_state=seed)
    started = time.process_time()
    estimator.fit(x, y)
    seconds = time.process_time() - started
    if is_regression:
        loss = math.sqrt(mean_squared_error(targets, estimator.predict(tests)))
    else:
        loss = log_loss(targets, estimator.predict_proba(tests), labels=estimator.classes_)
    end = estimator.history_[-1]
    return {
        "score": float(estimator.score(tests, targets)),
        "loss": float(loss),
        "validation": end["validation"],
        "parameters": end["parameters"],
        "architecture": list(estimator.architecture_),
        "seconds": seconds,
        "best epoch": end["best_epoch"],
        "epochs": end["epochs"],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Fit what is missing, seed by seed, and print what came of it."""
    arguments = parse(argv)
    torch.set_num_threads(1)
    records = (
        json.loads(arguments.out.read_text()) if arguments.out and arguments.out.exists() else {}
    )
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for name in arguments.tables:
            frame, y = read(name)
            is_regression = name in REGRESSION
            several = folds(frame, y, is_regression=is_regression, tuning=arguments.tuning)
            for number in arguments.folds:
                for arm in arguments.arms:
                    label = arguments.label if arm == "grown" else arm
                    key = f"{name} | {number} | {label} | {seed}"
                    if key in records:
                        continue
                    figures = fit(
                        several[number],
                        arm,
                        is_regression=is_regression,
                        seed=seed,
                        recipe=arguments.recipe,
                    )
                    about = {"table": name, "fold": number, "arm": label, "seed": seed}
                    records[key] = {**about, **figures}
                    if arguments.out:
                        draft = arguments.out.with_suffix(".draft")
                        draft.write_text(json.dumps(records, indent=0) + "\n")
                        draft.replace(arguments.out)
    report([*records.values()])
    return 0


def report(records: Sequence[dict[str, Any]]) -> None:
    """Print means over folds and seeds, table by table, and the arms beside 128-128."""
    arms = [*dict.fromkeys(one["arm"] for one in records)]
    for table in dict.fromkeys(one["table"] for one in records):
        mine = [one for one in records if one["table"] == table]
        reference = {(one["fold"], one["seed"]): one for one in mine if one["arm"] == "128-128"}
        for arm in arms:
            found = [one for one in mine if one["arm"] == arm]
            if not found:
                continue
            mean = {
                key: statistics.fmean(one[key] for one in found)
                for key in ("score", "loss", "parameters", "seconds")
            }
            pairs = [(one, reference.get((one["fold"], one["seed"]))) for one in found]
            less = [one["score"] - other["score"] for one, other in pairs if other]
            ratio = [math.log(one["loss"] / other["loss"]) for one, other in pairs if other]
            beside = (
                f"less 128-128 {statistics.fmean(less):+.4f}, log ratio of loss {statistics.fmean(ratio):+.4f}"
                if less
                else ""
            )
            sizes = sorted(one["parameters"] for one in found)
            print(
                f"{table:12} {arm:12} {len(found):3} score {mean['score']:.4f} loss {mean['loss']:10.4f} parameters "
                f"{mean['parameters']:8.0f} ({sizes[0]} to {sizes[-1]}) {mean['seconds']:5.1f} s  {beside}"
            )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=[*TABLES])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS])
    parser.add_argument(
        "--folds", nargs="+", type=int, choices=range(FOLDS), default=[*range(FOLDS)]
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--tuning", action="store_true", help="look at no row of the test folds")
    parser.add_argument("--recipe", type=json.loads, default={}, help="of the grown net, as JSON")
    parser.add_argument("--label", default="grown", help="name of the grown arm in the results")
    parser.add_argument("--out", type=Path, help="where the results are kept, as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
