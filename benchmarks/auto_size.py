"""Does a net that finds its own size keep up with the best of a grid of fixed sizes?

Digits, breast cancer, wine (accuracy) and diabetes (R squared), in 5-fold cross-validation with the same folds for all:
the grown net as `SENNClassifier` and `SENNRegressor` make it by default, fixed nets with the same optimizer, epochs and
stopping rule (the same estimators with `grow=False`), and scikit-learn's own multilayer perceptron beside them. The
grown net starts with a linear shortcut from inputs to outputs; fixed nets have none, or one too with `--shortcut`.

    python benchmarks/auto_size.py --out results.json
    python benchmarks/auto_size.py --tuning --methods grown --recipe '{"addition_rounds": [0.02]}'

With `--tuning`, the rows of the outer test folds are never looked at: each outer training fold is split 4 to 1, and the
smaller part is what scores are measured on. Defaults are to be chosen in this mode only.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from senn.integrations.sklearn import SENNClassifier, SENNRegressor
from senn.policies import PricePolicy
from senn.training import TrainConfig

SETS: dict[str, Callable[..., Any]] = {
    "digits": load_digits,
    "breast-cancer": load_breast_cancer,
    "wine": load_wine,
    "diabetes": load_diabetes,
}
REGRESSION = {"diabetes"}
FIXED = {"4": (4,), "16": (16,), "64": (64,), "256": (256,), "64-64": (64, 64)}
METHODS = ("grown", *FIXED, "sklearn")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore", ConvergenceWarning)
    rows = []
    for name in arguments.sets:
        rows += measure(name, arguments)
        print_table(name, rows, arguments.methods)
    summary = {name: summarise(rows, name, arguments.methods) for name in arguments.sets}
    complete = {"grown", *FIXED} <= set(arguments.methods)
    comparisons = compare(summary) if complete else None
    if comparisons:
        print_comparisons(comparisons)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "settings": settings(arguments),
            "summary": summary,
            "comparisons": comparisons,
            "rows": rows,
        }
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--seeds", type=int, default=1, help="repetitions with other folds and other random numbers"
    )
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--tuning", action="store_true", help="score on an inner part of each training fold"
    )
    parser.add_argument(
        "--recipe", type=json.loads, default={}, help="fields of the recipe, as JSON, for all nets"
    )
    parser.add_argument(
        "--shortcut", action="store_true", help="give the fixed nets the linear shortcut too"
    )
    parser.add_argument(
        "--policy", type=json.loads, help="arguments of PricePolicy, as JSON, for the grown net"
    )
    parser.add_argument("--out", type=Path, help="where to write the results, as JSON")
    return parser.parse_args(argv)


def measure(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row of figures per seed, fold and method; methods side by side within a fold, so that times compare."""
    x, y = SETS[name](return_X_y=True)
    rows = []
    for seed, fold, train, test in splits(name, x, y, arguments):
        for method in arguments.methods:
            estimator = build(method, name in REGRESSION, seed * arguments.folds + fold, arguments)
            started = time.perf_counter()
            estimator.fit(x[train], y[train])
            seconds = time.perf_counter() - started
            score = float(estimator.score(x[test], y[test]))
            hidden, parameters = size(estimator)
            rows.append(
                {
                    "set": name,
                    "method": method,
                    "seed": seed,
                    "fold": fold,
                    "score": score,
                    "parameters": parameters,
                    "hidden": hidden,
                    "seconds": seconds,
                }
            )
            print(
                f"  {name} seed {seed} fold {fold} {method}: {score:.4f} {hidden} {seconds:.2f} s",
                file=sys.stderr,
            )
    return rows


def splits(
    name: str, x: Any, y: Any, arguments: argparse.Namespace
) -> Iterator[tuple[int, int, Any, Any]]:
    """Seed, fold, rows to train on and rows to score on."""
    regression = name in REGRESSION
    for seed in range(arguments.seeds):
        folder = (KFold if regression else StratifiedKFold)(
            arguments.folds, shuffle=True, random_state=seed
        )
        for fold, (train, test) in enumerate(folder.split(x, y)):
            if arguments.tuning:
                train, test = train_test_split(
                    train,
                    test_size=0.2,
                    random_state=seed,
                    stratify=None if regression else y[train],
                )
            yield seed, fold, train, test


def build(method: str, regression: bool, seed: int, arguments: argparse.Namespace) -> Any:
    """The estimator of a method, untrained."""
    if method == "sklearn":
        return make_pipeline(
            StandardScaler(), (MLPRegressor if regression else MLPClassifier)(random_state=seed)
        )
    estimator = SENNRegressor if regression else SENNClassifier
    fields = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in arguments.recipe.items()
    }
    # One network in each case: sizes are compared, not ensembles.
    recipe = TrainConfig(**{"members": 1, **fields})
    if method == "grown":
        policy = None if arguments.policy is None else PricePolicy(**arguments.policy)
        return estimator(policy=policy, recipe=recipe, random_state=seed)
    recipe = replace(recipe, shortcut=arguments.shortcut)
    return estimator(FIXED[method], grow=False, recipe=recipe, random_state=seed)


def size(estimator: Any) -> tuple[list[int], int]:
    """Hidden widths and number of parameters of a trained estimator."""
    if hasattr(estimator, "architecture_"):
        return list(estimator.architecture_), sum(p.numel() for p in estimator.model_.parameters())
    mlp = estimator[-1]
    return [len(b) for b in mlp.intercepts_[:-1]], sum(
        a.size for a in [*mlp.coefs_, *mlp.intercepts_]
    )


def summarise(
    rows: list[dict[str, Any]], name: str, methods: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Means over seeds and folds of each method on one set, the standard error of its score, total seconds."""
    summary = {}
    for method in methods:
        mine = [row for row in rows if row["set"] == name and row["method"] == method]
        scores = [row["score"] for row in mine]
        summary[method] = {
            "score": statistics.fmean(scores),
            "standard_error": statistics.stdev(scores) / len(scores) ** 0.5,
            "parameters": statistics.fmean(row["parameters"] for row in mine),
            "hidden": [row["hidden"] for row in mine],
            "seconds": sum(row["seconds"] for row in mine),
        }
    return summary


def compare(summary: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """The grown net against, on each set, the fixed net with the best mean score, and against the whole grid's time."""
    sets = {}
    for name, figures in summary.items():
        best = max(FIXED, key=lambda method: figures[method]["score"])
        grown, fixed = figures["grown"], figures[best]
        sets[name] = {
            "best_fixed": best,
            "margin": grown["score"] - fixed["score"],
            "standard_error": fixed["standard_error"],
            "within_one_standard_error": grown["score"] >= fixed["score"] - fixed["standard_error"],
            "parameter_ratio": grown["parameters"] / fixed["parameters"],
            "time_ratio": grown["seconds"] / sum(figures[method]["seconds"] for method in FIXED),
        }
    ratios = [entry["parameter_ratio"] for entry in sets.values()]
    margin = statistics.fmean(entry["margin"] for entry in sets.values())
    grid = sum(figures[method]["seconds"] for figures in summary.values() for method in FIXED)
    time_ratio = sum(figures["grown"]["seconds"] for figures in summary.values()) / grid
    return {
        "sets": sets,
        "mean_margin": margin,
        "median_parameter_ratio": statistics.median(ratios),
        "time_ratio": time_ratio,
        "met": {
            "at least the best fixed net less one standard error, on every set": all(
                entry["within_one_standard_error"] for entry in sets.values()
            ),
            "above the best fixed net in the mean over the sets": margin > 0,
            "no more parameters than the best fixed net, on every set": max(ratios) <= 1,
            "half its parameters or fewer in the median": statistics.median(ratios) <= 0.5,
            "a third of the grid's time or less": time_ratio <= 1 / 3,
        },
    }


def print_table(name: str, rows: list[dict[str, Any]], methods: Sequence[str]) -> None:
    print(f"\n{name}\n{'':>8}  {'score':>16}  {'parameters':>10}  {'seconds':>8}  hidden widths")
    for method, entry in summarise(rows, name, methods).items():
        widths = entry["hidden"] if method == "grown" else entry["hidden"][:1]
        shown = "  ".join("-".join(map(str, hidden)) or "none" for hidden in widths[:10])
        score = f"{entry['score']:.4f} +- {entry['standard_error']:.4f}"
        print(
            f"{method:>8}  {score:>16}  {entry['parameters']:>10,.0f}  {entry['seconds']:>8.2f}  {shown}",
            flush=True,
        )


def print_comparisons(comparisons: dict[str, Any]) -> None:
    print("\nthe grown net against the best fixed net of each set")
    for name, entry in comparisons["sets"].items():
        print(
            f"{name:>14}: {entry['margin']:+.4f} (standard error {entry['standard_error']:.4f}) against "
            f"{entry['best_fixed']}, {entry['parameter_ratio']:.2f} of its parameters, "
            f"{entry['time_ratio']:.2f} of the grid's time"
        )
    print(
        f"{'all':>14}: {comparisons['mean_margin']:+.4f} in the mean, {comparisons['median_parameter_ratio']:.2f} of "
        f"the parameters in the median, {comparisons['time_ratio']:.2f} of the grid's time"
    )
    for what, met in comparisons["met"].items():
        print(f"{'met' if met else 'NOT MET':>14}: {what}")


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    versions = {
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        "numpy": np.__version__,
    }
    chosen = {key: value for key, value in vars(arguments).items() if key != "out"}
    return {
        **chosen,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": versions,
    }


if __name__ == "__main__":
    sys.exit(main())
