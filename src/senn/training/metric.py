"""Scores of scikit-learn, by the names of its scorers, on what a network returns."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from senn.errors import SennError

_UNSUITED = (ValueError, TypeError, AttributeError)
"""Errors by which scikit-learn's scorers refuse targets or predictions of another kind."""

_EXAMPLE_ROWS = 4
"""Rows of each class in the example that a metric is tried on."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Score by a name of `sklearn.metrics.get_scorer`, of which more is better; called with outputs and targets.

    Attributes:
        name: `f1`, `roc_auc`, `neg_mean_absolute_error`, ...
        task: `classification` or `regression`.
        classes: number of classes; of no meaning for regression.
        positive: number of the class that a score of two classes, such as `f1`, counts as positive.
        mean: added to the numbers of a standardized target, so that the score is in its own unit.
        scale: unit of the standardized target.
        restore: makes standardized targets (n, k) of transformed ones, as which a network learns them; None where it
            learns them as they are.

    Raises:
        SennError: scikit-learn has no such score, or it doesn't suit the task; the sentence names those that do.

    Example:
        >>> import torch
        >>> from senn.training import Metric
        >>> f1 = Metric(name="f1", task="classification")
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0], [2.0, 0.0]])
        >>> f1(logits, torch.tensor([0, 1, 0, 0]))
        0.6666666666666666
    """

    name: str
    task: str
    classes: int = 2
    positive: int = 1
    mean: float = 0.0
    scale: float = 1.0
    restore: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        reason = self._complaint()
        if reason is not None:
            suitable = ", ".join(name for name in _names() if self._suits(name))
            raise SennError(
                f"the metric {self.name!r} {reason}; for {self._what()} there are {suitable}"
            )

    def __call__(self, outputs: Tensor, targets: Tensor, weight: Tensor | None = None) -> float:
        """Score outputs of a network.

        Args:
            outputs: (n, classes) logits, or (n, k) standardized numbers.
            targets: (n,) long classes, or (n, k) standardized numbers.
            weight: (n,) non-negative; None for equal weights.

        Returns:
            The score; NaN where it isn't defined, as a ROC curve of a single class.
        """
        values = outputs.detach()
        if self.restore is not None:
            values, targets = self.restore(values), self.restore(targets)
        values = values.double().cpu()
        weights = None if weight is None else weight.double().cpu().numpy()
        if self.task == "classification":
            return self.of(values.softmax(-1).numpy(), targets.cpu().numpy(), weights)
        truth = targets.double().cpu().numpy()
        return self.of(
            values.numpy() * self.scale + self.mean, truth * self.scale + self.mean, weights
        )

    def of(
        self, predictions: NDArray[Any], truth: NDArray[Any], weight: NDArray[Any] | None = None
    ) -> float:
        """Score probabilities of classes, or numbers in their own unit.

        Args:
            predictions: (n, classes) probabilities, or (n, k) numbers.
            truth: (n,) classes, or (n, k) numbers.
            weight: (n,) non-negative; None for equal weights.

        Returns:
            The score; NaN where it isn't defined.
        """
        if self.task == "classification" and self.classes == 2 and self.positive == 0:
            # scikit-learn's positive class is the last one.
            predictions, truth = predictions[:, ::-1], 1 - truth
        try:
            return self._score(self.name, predictions, truth, weight)
        except ValueError:
            return math.nan

    def _score(
        self,
        name: str,
        predictions: NDArray[Any],
        truth: NDArray[Any],
        weight: NDArray[Any] | None = None,
    ) -> float:
        weights = {} if weight is None else {"sample_weight": weight}
        flat = (
            predictions[:, 0]
            if self.task == "regression" and predictions.shape[1] == 1
            else predictions
        )
        true = truth[:, 0] if truth.ndim == 2 and truth.shape[1] == 1 else truth
        # Undefined scores of a few rows come with a warning each; NaN says as much.
        with warnings.catch_warnings(), _sklearn_without_checks():
            warnings.simplefilter("ignore")
            return float(_scorer(name)(_stand_in(self.task, self.classes), flat, true, **weights))

    def _example(self) -> tuple[NDArray[Any], NDArray[Any]]:
        if self.task == "regression":
            truth = np.linspace(1.0, 2.0, _EXAMPLE_ROWS * 2)[:, None]
            return truth + 0.01, truth
        truth = np.repeat(np.arange(self.classes), _EXAMPLE_ROWS)
        chances = np.full((len(truth), self.classes), 0.5 / self.classes)
        chances[np.arange(len(truth)), truth] += 0.5
        # One miss: precision and likelihood ratios of a perfect guess may be infinite.
        chances[0] = chances[-1]
        return chances, truth

    def _complaint(self) -> str | None:
        if self.name not in _names():
            return "isn't one of scikit-learn's"
        try:
            value = self._score(self.name, *self._example())
        except _UNSUITED as error:
            return f"doesn't suit {self._what()} ({str(error).splitlines()[0].rstrip('.')})"
        if not self._suits(self.name):
            return f"is one of numbers, not of {self._what()}"
        return f"isn't defined for {self._what()}" if math.isnan(value) else None

    def _suits(self, name: str) -> bool:
        try:
            # Errors of numbers can be computed of the numbers of classes too, but mean nothing.
            if self.task == "classification" and self._score_of_numbers(name):
                return False
            return not math.isnan(self._score(name, *self._example()))
        except _UNSUITED:
            return False

    def _score_of_numbers(self, name: str) -> bool:
        numbers = replace(self, task="regression", name="r2")
        try:
            numbers._score(name, *numbers._example())
        except _UNSUITED:
            return False
        return True

    def _what(self) -> str:
        return f"{self.classes} classes" if self.task == "classification" else "numbers"


def as_metric(monitor: Any) -> Metric | None:
    """Return what a configuration monitors if it is a metric, else None."""
    return monitor if isinstance(monitor, Metric) else None


def _names() -> list[str]:
    scorers = _sklearn().get_scorer_names()
    # Scores of clusters compare labels with labels, and say nothing of a classifier's mistakes.
    return [name for name in scorers if name not in _OF_CLUSTERS]


_OF_CLUSTERS = frozenset(
    {
        "adjusted_mutual_info_score", "adjusted_rand_score", "completeness_score", "fowlkes_mallows_score",
        "homogeneity_score", "mutual_info_score", "normalized_mutual_info_score", "rand_score", "v_measure_score",
    }
)  # fmt: skip


def _scorer(name: str) -> Callable[..., float]:
    found: Callable[..., float] = _sklearn().get_scorer(name)
    return found


def _sklearn() -> Any:
    # Imported at first use: training itself works without scikit-learn.
    try:
        import sklearn.metrics
    except ImportError as error:
        raise SennError(
            "a metric by name needs scikit-learn: pip install 'senn[sklearn]'"
        ) from error
    return sklearn.metrics


def _sklearn_without_checks() -> Any:
    """Return a context in which scikit-learn doesn't check arguments that are right: it takes longer than the score."""
    import sklearn

    return sklearn.config_context(skip_parameter_validation=True, assume_finite=True)


@cache
def _stand_in(task: str, classes: int) -> Any:
    """Make an estimator of scikit-learn that predicts what it is given, as scorers ask one."""
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

    if task == "regression":

        class Numbers(RegressorMixin, BaseEstimator):  # type: ignore[misc]
            def fit(self, X: Any, y: Any) -> Any:
                return self

            def predict(self, X: Any) -> Any:
                return X

        return Numbers()

    class Chances(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        classes_ = np.arange(classes)

        def fit(self, X: Any, y: Any) -> Any:
            return self

        def predict_proba(self, X: Any) -> Any:
            return X

        def predict(self, X: Any) -> Any:
            return X.argmax(axis=1)

    return Chances()


RESAMPLES = 100
"""Bootstrap resamples by which two networks' scores are compared: their standard deviation is right to 7 %."""


def difference_noise(metric: Metric, pair: tuple[Tensor, Tensor], targets: Tensor) -> float:
    """Estimate the standard error of the difference of two networks' scores on the same rows, by the bootstrap.

    Args:
        metric: the score.
        pair: (n, ...) outputs of each network.
        targets: their targets.

    Returns:
        Standard deviation of the paired differences over resamples of the rows; NaN if none is defined.
    """
    generator = torch.Generator().manual_seed(0)
    differences = []
    for _ in range(RESAMPLES):
        rows = torch.randint(len(targets), (len(targets),), generator=generator).to(targets.device)
        ours, theirs = (metric(outputs[rows], targets[rows]) for outputs in pair)
        differences.append(ours - theirs)
    known = [value for value in differences if not math.isnan(value)]
    return float(np.std(known)) if known else math.nan
