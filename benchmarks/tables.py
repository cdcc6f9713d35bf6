"""Which model would a person with a table pick? Senn beside networks, boosted trees, a forest and a linear model.

The ten tables of `table_sizes.py`, at most 6,000 rows each, in three folds; every model at its defaults, given the same
rows as a data frame, or encoded (medians, standardized numbers, one-hot categories) where it takes numbers alone. Every
fit is a record of the results, which are written as they come: what is there already is not fitted again.

    SENN_DATA=DIR python benchmarks/tables.py --models senn lightgbm linear --out results.json
    SENN_DATA=DIR python benchmarks/tables.py --report results.json

With `--tuning`, rows of the test folds are never looked at, as of `table_sizes.py`. The other packages, in an
environment of its own: `pip install -c constraints.txt torch lightgbm xgboost catboost`, then `pip install --no-deps
pytabkit` and what it asks for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import log_loss, r2_score, root_mean_squared_error
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from table_ranks import (
    FIGURES,
    NETWORKS,
    complete,
    elo,
    mean_calibration,
    mean_ranks,
    time_ratio,
    wins,
)
from table_sizes import FOLDS, REGRESSION, TABLES, read, split

from senn import SENNClassifier, SENNRegressor
from senn.cli.metrics import calibration_error
from senn.training import TrainConfig

Figures = dict[str, Any]
Maker = Callable[[bool, int], Any]


def encoded(model: Any, frame: pd.DataFrame) -> Any:
    """Put an encoding of the columns as numbers before a model."""
    numbers = [name for name in frame if frame[name].dtype.kind in "iufb"]
    words = [name for name in frame if name not in numbers]

    scale = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    fill = SimpleImputer(strategy="constant", fill_value="missing")
    code = OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=5, sparse_output=False)
    columns = make_column_transformer((scale, numbers), (make_pipeline(fill, code), words))
    return make_pipeline(columns, model)


def categories(frame: pd.DataFrame) -> pd.DataFrame:
    """Mark words as categories, missing ones as a value of their own."""
    words = [name for name in frame if frame[name].dtype.kind not in "iufb"]
    return frame.assign(
        **{name: frame[name].astype(object).fillna("missing").astype("category") for name in words}
    )


def senn_model(is_regression: bool, seed: int, **recipe: Any) -> Any:
    kind = SENNRegressor if is_regression else SENNClassifier
    return kind(recipe=TrainConfig(**recipe), random_state=seed)


def lightgbm(is_regression: bool, seed: int) -> Any:
    import lightgbm as package

    kind = package.LGBMRegressor if is_regression else package.LGBMClassifier
    return kind(random_state=seed, n_jobs=1, verbose=-1)


def xgboost(is_regression: bool, seed: int) -> Any:
    import xgboost as package

    kind = package.XGBRegressor if is_regression else package.XGBClassifier
    return kind(random_state=seed, n_jobs=1, enable_categorical=True)


def catboost(is_regression: bool, seed: int) -> Any:
    import catboost as package

    kind = package.CatBoostRegressor if is_regression else package.CatBoostClassifier
    return kind(random_seed=seed, thread_count=1, verbose=False, allow_writing_files=False)


def histograms(is_regression: bool, seed: int) -> Any:
    kind = HistGradientBoostingRegressor if is_regression else HistGradientBoostingClassifier
    return kind(random_state=seed, categorical_features="from_dtype")


def forest(is_regression: bool, seed: int) -> Any:
    kind = RandomForestRegressor if is_regression else RandomForestClassifier
    return kind(random_state=seed)


def linear(is_regression: bool, seed: int) -> Any:
    if is_regression:
        return RidgeCV(alphas=np.logspace(-3, 3, 13))
    return LogisticRegression(max_iter=2000)


def sklearn_mlp(is_regression: bool, seed: int) -> Any:
    if not is_regression:
        return MLPClassifier(random_state=seed, early_stopping=True)
    model = MLPRegressor(random_state=seed, early_stopping=True)
    return TransformedTargetRegressor(model, transformer=StandardScaler())


def pytabkit(name: str) -> Maker:
    def make(is_regression: bool, seed: int) -> Any:
        from pytabkit import models

        kind = f"{name}_{'Regressor' if is_regression else 'Classifier'}"
        return getattr(models.sklearn.sklearn_interfaces, kind)(
            device="cpu", random_state=seed, n_threads=1, verbosity=0
        )

    return make


MODELS: Mapping[str, tuple[str, Maker]] = {
    "senn": ("frame", senn_model),
    "senn, one network": ("frame", lambda r, s: senn_model(r, s, members=1)),
    "fixed 128-128": ("frame", lambda r, s: senn_model(r, s, grow=False, hidden=(128, 128))),
    "fixed 256-256": ("frame", lambda r, s: senn_model(r, s, grow=False, hidden=(256, 256))),
    "realmlp": ("complete", pytabkit("RealMLP_TD")),
    "tabm": ("complete", pytabkit("TabM_D")),
    "sklearn mlp": ("encoded", sklearn_mlp),
    "lightgbm": ("categories", lightgbm),
    "xgboost": ("categories", xgboost),
    "catboost": ("catboost", catboost),
    "histograms": ("categories", histograms),
    "forest": ("encoded", forest),
    "linear": ("encoded", linear),
}
"""How a model takes its inputs, and what makes it."""


def fit(
    name: str,
    frame: pd.DataFrame,
    y: np.ndarray[Any, Any],
    rows: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]],
    *,
    is_regression: bool,
    seed: int,
) -> Figures:
    """Fit one model; returns its figures."""
    takes, make = MODELS[name]
    model = make(is_regression, seed)
    train, test = rows
    options = {}
    if takes == "encoded":
        model = encoded(model, frame)
    elif takes != "frame":
        # LightGBM takes no name with a character of JSON's.
        frame = categories(frame.set_axis([f"c{at}" for at in range(frame.shape[1])], axis=1))
        if takes == "complete":  # numbers may not be missing
            frame = frame.fillna(frame.iloc[train].median(numeric_only=True))
        if takes == "catboost":
            words = [at for at in frame if isinstance(frame[at].dtype, pd.CategoricalDtype)]
            options["cat_features"] = words
    started = time.process_time()
    model.fit(frame.iloc[train], y[train], **options)
    seconds = time.process_time() - started
    shown, truth = frame.iloc[test], y[test]
    network = getattr(model, "model_", None)
    size = sum(p.numel() for p in network.parameters()) if hasattr(network, "parameters") else None
    if is_regression:
        values = np.asarray(model.predict(shown), dtype=float).ravel()
        score, loss, ece = r2_score(truth, values), root_mean_squared_error(truth, values), None
    else:
        chances = np.asarray(model.predict_proba(shown), dtype=float)
        chances = chances / chances.sum(1, keepdims=True)
        score = float((chances.argmax(1) == truth).mean())
        loss = log_loss(truth, chances, labels=range(chances.shape[1]))
        ece = calibration_error(chances, truth)
    return {
        "score": float(score),
        "loss": float(loss),
        "ece": ece,
        "seconds": seconds,
        "parameters": size,
    }


def report(records: Sequence[Figures], folds: Sequence[int]) -> str:
    """Write mean ranks, ratings, wins beyond a standard error and times of models that have all these folds."""
    kept = complete(records, folds)
    models = [name for name in MODELS if any(one["model"] == name for one in kept)]
    has_ours = (
        "senn" in models
    )  # other models may have been fitted alone, in an environment of theirs
    lines = []
    for figure in FIGURES:
        rated = elo(kept, figure)
        among = mean_ranks(kept, figure, NETWORKS)
        lines.append(f"{figure}: mean rank, among networks, Elo, senn's tables ahead-level-behind")
        for name, rank in mean_ranks(kept, figure, models).items():
            own = f"{among[name]:5.2f}" if name in among else "    -"
            beside = "-".join(map(str, wins(kept, figure, name))) if has_ours else "-"
            lines.append(f"  {name:20} {rank:5.2f} {own} {rated[name]:6.0f}  {beside}")
    lines.append("senn's processor time over its, calibration error")
    for name in models:
        times = time_ratio(kept, name) if has_ours else float("nan")
        error = mean_calibration(kept, name)
        lines.append(f"  {name:20} {times:8.2f} {error:8.4f}")
    for table in dict.fromkeys(one["table"] for one in kept):
        for name in models:
            mine = [one for one in kept if (one["table"], one["model"]) == (table, name)]
            score, loss, seconds = (
                statistics.fmean(one[key] for one in mine) for key in ("score", "loss", "seconds")
            )
            lines.append(f"{table:13} {name:20} {score:7.4f} {loss:10.4f} {seconds:6.1f} s")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Fit what is missing, and print what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=[*MODELS])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=[*TABLES])
    parser.add_argument("--folds", nargs="+", type=int, default=[*range(FOLDS)])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--tuning", action="store_true", help="look at no row of the test folds")
    parser.add_argument("--out", type=Path, help="where the results are kept, as JSON")
    parser.add_argument(
        "--report", nargs="+", type=Path, help="print these results, and fit nothing"
    )
    arguments = parser.parse_args(argv)
    records: dict[str, Figures] = {}
    for path in arguments.report or [arguments.out]:
        if path is not None and path.exists():
            records |= json.loads(path.read_text())
    if not arguments.report:
        run(arguments, records)
    print(report([*records.values()], arguments.folds))
    return 0


def run(arguments: argparse.Namespace, records: dict[str, Figures]) -> None:
    """Fit what is missing among the records, and write them after each fit."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for seed in arguments.seeds:
        for number in arguments.folds:
            for table in arguments.tables:
                frame, y = read(table)
                is_regression = table in REGRESSION
                parts = split(frame, y, is_regression=is_regression, tuning=arguments.tuning)
                for model in arguments.models:
                    key = f"{table} | {number} | {model} | {seed}"
                    if key in records:
                        continue
                    figures = fit(
                        model, frame, y, parts[number], is_regression=is_regression, seed=seed
                    )
                    about = {"table": table, "fold": number, "model": model, "seed": seed}
                    records[key] = {**about, **figures}
                    print(key, figures, file=sys.stderr)
                    if arguments.out:
                        draft = arguments.out.with_suffix(".draft")
                        draft.write_text(json.dumps(records, indent=0) + "\n")
                        draft.replace(arguments.out)


if __name__ == "__main__":
    sys.exit(main())
