"""Content of `results.json`: the test scores, and what the run was."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from torch import nn

from senn import __version__
from senn.atomic_files import plain
from senn.cli.cross_validation import summary
from senn.cli.prepared_data import Prepared
from senn.cli.signals import Signals
from senn.events.run_schema import FoldRecord
from senn.training import TrainResult
from senn.training.run_records import outcome

SCORED = 1.1
"""Seconds after a signal within which the test must be scored, or is left out."""


def test_record(preparation: Prepared, model: nn.Module, signals: Signals) -> dict[str, Any]:
    """Score a network on the test part, beside baselines.

    After a signal only what a second has time for is computed.

    Args:
        preparation: the data.
        model: the network.
        signals: that may ask the run to end.

    Returns:
        `test`, scores by name; `intervals` of 95 %, `baselines` with the same scores, `confusion`, `metric` and
        `positive`. Empty or None where there was no time.
    """
    scorer = preparation.scorer
    record: dict[str, Any] = {
        "test": {},
        "intervals": {},
        "baselines": {},
        "confusion": None,
        **scorer.record(),
    }

    def score() -> bool:
        x, truth = preparation.test_arrays()
        predictions = scorer.predictions(preparation.test_outputs(model))
        record["test"] = scorer.scores(predictions, truth)
        record["confusion"] = scorer.confusion(predictions, truth)
        record["intervals"] = scorer.intervals(predictions, truth, preparation.clusters)
        record["baselines"] = scorer.baselines(preparation.train_arrays(), (x, truth))
        return True

    signals.run_interruptible(SCORED, score, False)
    return record


def run_results(
    preparation: Prepared,
    trained: TrainResult,
    scores: dict[str, Any],
    folds: Sequence[FoldRecord] = (),
) -> dict[str, Any]:
    """Return the content of results.json.

    Args:
        preparation: the data.
        trained: the network, and how it came about.
        scores: content of `test_record`.
        folds: records of a cross-validation; none without `--cv`.
    """
    recipe = preparation.recipe
    results = {
        "task": preparation.task,
        "seed": recipe.seed,
        "optimizer": recipe.optimizer,
        "policy": repr(recipe.policy),
        **outcome(trained),
        **scores,
        "cross_validation": summary(folds) if folds else None,
        "growth_events": sum(record["event"] == "growth" for record in trained.history),
        "data": preparation.summary(),
        "versions": versions(),
    }
    return {key: plain(value) for key, value in results.items()}


def versions() -> dict[str, str]:
    """Return the versions of the packages that compute."""
    packages = ("torch", "numpy", "pandas", "scikit-learn")
    return {
        "senn": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
