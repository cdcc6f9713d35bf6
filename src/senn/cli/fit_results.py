"""Content of `results.json`: the test scores, and what the run was."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from numpy.typing import NDArray
from torch import nn

from senn import __version__
from senn.atomic_files import plain
from senn.cli.baselines import Guess, LinearModel
from senn.cli.cross_validation import summary
from senn.cli.intervals import independent_rows
from senn.cli.kept_details import kept_details
from senn.cli.prepared_data import Prepared
from senn.cli.score_lines import LINEAR
from senn.cli.scorer import Scorer
from senn.cli.signals import Signals
from senn.cli.trained_rows import kept_fingerprints
from senn.events.run_schema import FoldRecord, TestDetails
from senn.training import TrainResult
from senn.training.run_records import outcome

SCORED = 1.1
"""Seconds after a signal within which the test must be scored, or is left out."""


def test_record(
    preparation: Prepared, model: nn.Module, signals: Signals
) -> tuple[dict[str, Any], TestDetails | None]:
    """Score a network on the test part, beside baselines.

    After a signal only what a second has time for is computed.

    Args:
        preparation: the data.
        model: the network.
        signals: that may ask the run to end.

    Returns:
        `test`, scores by name; `intervals` of 95 %, `baselines` with the same scores, `confusion`, `metric`,
        `positive` and `test_notes`, empty or None where there was no time; and what else is kept of the test.
    """
    scorer = preparation.scorer
    record: dict[str, Any] = {
        "test": {},
        "intervals": {},
        "baselines": {},
        "confusion": None,
        "test_notes": [],
        **scorer.record(),
    }

    def score() -> TestDetails:
        x, truth = preparation.test_arrays()
        train = preparation.train_arrays()
        predictions = scorer.predictions(preparation.test_outputs(model))
        record["test"] = scorer.scores(predictions, truth)
        record["confusion"] = scorer.confusion(predictions, truth)
        record["intervals"] = scorer.intervals(predictions, truth, preparation.clusters)
        if drift := drift_note(scorer, predictions, truth, preparation.times):
            # Rows of one period can't tell how much scores differ from period to period.
            record["intervals"] = dict.fromkeys(record["intervals"])
            record["test_notes"].append(drift)
        guesses = scorer.baselines(train, preparation.latest)
        record["baselines"] = scorer.baseline_scores(guesses, (x, truth))
        record["test_notes"] += _linear_notes(guesses, train[0].shape)
        pictures = preparation.test_pixels()
        details = kept_details(scorer, predictions, truth, guesses, pictures, preparation.mean)
        details["trained_on"] = kept_fingerprints(*train)
        return details

    details = signals.run_interruptible(SCORED, score, None)
    if details is None:
        what = "only some of the scores" if record["test"] else "no scores"
        record["test_notes"].append(
            f"the run was asked to end, which left time for {what} of the test; it has them all once it is resumed"
        )
    return record, details


_FEWEST_INDEPENDENT = 12
"""Independent rows below which an interval would say nothing of other periods.

Of random walks of 30 to 300 steps 99 % count as fewer, of series of 100 whose neighbors correlate by .7 one in twenty.
"""


def drift_note(
    scorer: Scorer, predictions: NDArray[Any], truth: NDArray[Any], times: NDArray[Any] | None
) -> str | None:
    """Say that errors of neighboring times are so alike that the test says little of later times.

    Args:
        scorer: of the run.
        predictions: (rows, classes) probabilities, or (rows, 1) standardized numbers.
        truth: encoded targets of the rows.
        times: (rows,) their times; None where the test rows have no order.

    Returns:
        One sentence, or None where that isn't so.
    """
    if times is None:
        return None
    errors = scorer.errors(predictions, truth)
    worth, correlation = independent_rows(errors, times)
    if not correlation or worth >= _FEWEST_INDEPENDENT:
        return None
    number = max(1, round(worth))
    wanders = "; a target that wanders is better predicted as its change from row to row"
    return (
        f"errors of neighboring test rows are alike (correlation {correlation:.2f}), so the test period is worth about "
        f"{number} independent row{'s' * (number > 1)}: scores of later rows may be far from these, and no interval is "
        f"given; --cv scores several periods{wanders if scorer.task == 'regression' else ''}"
    )


def _linear_notes(guesses: Mapping[str, Guess], shape: tuple[int, ...]) -> list[str]:
    """Say which rows a linear model was fitted to, if not to all."""
    linear, (rows, features) = guesses.get(LINEAR), shape
    if linear is None:
        return [
            f"no linear model is fitted: {rows:,} rows of {features:,} inputs would take it too long"
        ]
    used = linear.rows if isinstance(linear, LinearModel) else rows
    return (
        []
        if used == rows
        else [f"the linear model is fitted to {used:,} of {rows:,} rows, drawn at random"]
    )


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
