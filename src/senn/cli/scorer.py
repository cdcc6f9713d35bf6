"""Scores of predictions on test rows, with intervals, baselines and a confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix

from senn.cli import baselines
from senn.cli.baselines import Guess
from senn.cli.intervals import (
    class_intervals,
    exact_interval,
    intervals,
    metric_interval,
    number_intervals,
)
from senn.cli.metrics import (
    Scores,
    class_scores,
    metric_value,
    number_scores,
    positive_class,
)
from senn.cli.score_lines import CONSTANT, LATEST, LINEAR
from senn.data import Target
from senn.errors import SennError
from senn.training import Metric, Task
from senn.training.trained_run import probabilities

MOST_CLASSES = 100
"""Classes of which the confusion matrix is kept: it has a number for each pair."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scorer:
    """What predictions of one target are scored by.

    Attributes:
        task: `classification` or `regression`.
        labels: classes in order; empty for numbers.
        scale: standard deviation of the training rows' targets, for numbers.
        positive: number of the class that scores of two classes are about.
        metric: score that the user names; None for none.
        bounds: least and largest number that is predicted, standardized; None for classes, and for no bounds.
    """

    task: Task
    labels: tuple[Any, ...] = ()
    scale: float = 1.0
    positive: int = 1
    metric: Metric | None = None
    bounds: tuple[float, float] | None = None

    @classmethod
    def of(cls, target: Target, y: NDArray[Any], metric: str | None) -> Scorer:
        """Build the scorer of a table's target.

        Args:
            target: column that is predicted.
            y: encoded targets of the training rows, by which the positive class of two is chosen.
            metric: name of a score of scikit-learn's; None for none.

        Raises:
            SennError: there is no such score, or it doesn't suit the target.
        """
        positive = 1
        if len(target.labels) == 2:
            positive = positive_class(target.labels, np.bincount(y, minlength=2))
        return cls.with_positive(target, positive, metric)

    @classmethod
    def with_positive(cls, target: Target, positive: int, metric: str | None) -> Scorer:
        """Build the scorer of a target whose positive class is known.

        Args:
            target: column that is predicted.
            positive: number of the class that scores of two classes are about.
            metric: name of a score of scikit-learn's; None for none.

        Raises:
            SennError: there is no such score, or it doesn't suit the target.
        """
        chosen, classes = None, len(target.labels)
        if metric is not None:
            chosen = Metric(
                name=metric,
                task=target.task,
                classes=max(classes, 2),
                positive=positive,
                mean=target.mean,
                scale=target.scale,
            )
        return cls(
            task=target.task,
            labels=target.labels,
            scale=target.scale,
            positive=positive,
            metric=chosen,
            bounds=target.standard_bounds,
        )

    def check(self, truth: NDArray[Any]) -> None:
        """Refuse a metric that isn't defined for these targets, as one of positive numbers for others.

        Args:
            truth: encoded targets.

        Raises:
            SennError: naming the metric.
        """
        if self.metric is None or self.task == "classification":
            return
        if metric_value(self.metric, truth.astype(np.float64), truth) is None:
            raise SennError(f"the metric {self.metric.name!r} isn't defined for this target")

    def predictions(self, values: NDArray[Any]) -> NDArray[Any]:
        """Turn a network's outputs into what is scored: probabilities, or numbers within their bounds."""
        if self.task == "classification":
            return probabilities(values)
        return values if self.bounds is None else values.clip(*self.bounds)

    def scores(self, predictions: NDArray[Any], truth: NDArray[Any]) -> Scores:
        """Score predictions.

        Args:
            predictions: (rows, classes) probabilities, or (rows, 1) standardized numbers.
            truth: encoded targets of the rows.

        Returns:
            Scores by name; None for one that isn't defined.
        """
        if self.task == "classification":
            scores = class_scores(predictions, truth, self.positive)
        else:
            scores = number_scores(predictions, truth.astype(np.float64), self.scale)
        if self.metric is not None and self.metric.name not in scores:
            scores[self.metric.name] = metric_value(self.metric, predictions, truth)
        return scores

    def intervals(
        self,
        predictions: NDArray[Any],
        truth: NDArray[Any],
        clusters: NDArray[Any] | None = None,
    ) -> dict[str, list[float] | None]:
        """Compute intervals of 95 % of all scores.

        Args:
            predictions: (rows, classes) probabilities, or (rows, 1) standardized numbers.
            truth: encoded targets of the rows.
            clusters: (rows,) number of the rows that belong together; None where each stands for itself.
        """
        if self.task == "classification":
            scores = class_intervals(predictions, truth, self.positive)
        else:
            scores = number_intervals(predictions, truth, self.scale)
        found = intervals(scores, len(truth), clusters)
        if found.get("accuracy", ()) is None:
            found["accuracy"] = exact_interval(predictions.argmax(axis=1) == truth, clusters)
        if self.metric is not None and self.metric.name not in found:
            found[self.metric.name] = metric_interval(self.metric, predictions, truth, clusters)
        return found

    def errors(self, predictions: NDArray[Any], truth: NDArray[Any]) -> NDArray[np.float64]:
        """Return a number for each row that says how it was missed, (rows,).

        Args:
            predictions: (rows, classes) probabilities, or (rows, 1) standardized numbers.
            truth: encoded targets of the rows.

        Returns:
            Predicted less true number, or the probability that the true class lacks.
        """
        if self.task == "regression":
            return np.asarray((predictions - truth)[:, 0], dtype=np.float64)
        lacking: NDArray[np.float64] = 1.0 - predictions[np.arange(len(truth)), truth]
        return lacking

    def confusion(self, predictions: NDArray[Any], truth: NDArray[Any]) -> list[list[int]] | None:
        """Count the rows of each class that are taken for each class, true classes by rows.

        Args:
            predictions: (rows, classes) probabilities.
            truth: (rows,) numbers of the true classes.

        Returns:
            Counts in the order of the labels; None for numbers, and for more than `MOST_CLASSES`.
        """
        count = len(self.labels)
        if not 0 < count <= MOST_CLASSES:
            return None
        counts = confusion_matrix(truth, predictions.argmax(axis=1), labels=range(count))
        return [[int(one) for one in row] for row in counts]

    def baselines(
        self, train: tuple[NDArray[Any], NDArray[Any]], latest: float | None = None
    ) -> dict[str, Guess]:
        """Fit a constant guess and a linear model to the training rows.

        Args:
            train: encoded inputs (rows, features) and targets of the training rows.
            latest: standardized number that the latest of them have; None where they have no order.

        Returns:
            The guesses by name; without a linear model where that would take too long.
        """
        classes = len(self.labels) or None
        guesses = {CONSTANT: baselines.constant(train[1], classes)}
        if latest is not None and self.task == "regression":
            guesses[LATEST] = baselines.constant(np.full((1, 1), latest), None)
        if (linear := baselines.linear(*train, classes)) is not None:
            guesses[LINEAR] = linear
        return guesses

    def baseline_scores(
        self, guesses: Mapping[str, Guess], test: tuple[NDArray[Any], NDArray[Any]]
    ) -> dict[str, Scores]:
        """Score baselines.

        Args:
            guesses: by name.
            test: encoded inputs and targets of the test rows.
        """
        return {name: self.scores(guess(test[0]), test[1]) for name, guess in guesses.items()}

    def record(self) -> dict[str, Any]:
        """Return what tells how the scores are meant, JSON-able."""
        of = self.labels[self.positive] if len(self.labels) == 2 else None
        return {"metric": self.metric and self.metric.name, "positive": of}


def named_positive(record: Mapping[str, Any], labels: tuple[Any, ...]) -> int:
    """Find the positive class that a record names.

    Args:
        record: content of `results.json`.
        labels: classes in order.
    """
    found = record.get("positive")
    return labels.index(found) if len(labels) == 2 and found in labels else 1
