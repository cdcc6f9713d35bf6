"""Intervals of test scores by the bootstrap: what other test rows of the same kind might have given.

Resamples are weights of the rows, so that all of them are scored at once; scikit-learn scores one after the other,
which takes a hundred times as long. Tests compare both.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats

from senn.cli.metrics import CALIBRATION_BINS, calibration_bins, metric_value
from senn.training import Metric

_FEWEST_TIMES = 8

Floats = NDArray[np.float64]
Weighed = Callable[[Floats], Floats]
"""Maps weights (resamples, rows) to a score for each resample."""

LEVEL = 0.95
MOST, FEWEST = 1000, 200
"""Resamples of few and of many rows: the ends of an interval of many rows lie close together."""

_NUMBERS = 2_000_000
"""Weights at once, 16 MB."""

_METRIC_RESAMPLES = 100
"""Resamples of a metric that only scikit-learn has, a call for each."""


def intervals(
    scores: dict[str, Weighed], rows: int, clusters: NDArray[Any] | None = None, seed: int = 0
) -> dict[str, list[float] | None]:
    """Compute percentile bootstrap intervals of 95 % (Efron & Tibshirani 1993, chapter 13).

    Args:
        scores: functions of weights, by name.
        rows: number of test rows.
        clusters: (rows,) whole numbers from 0; rows of one number are drawn together, as those of a patient are no
            independent draws. None where each row is drawn by itself.
        seed: of the draws.

    Returns:
        Lower and upper end by name; None where a score is the same in all resamples, or is defined for less than half.
    """
    resampled: dict[str, list[Floats]] = {name: [] for name in scores}
    for weights in _resamples(rows, clusters, seed):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # means over no class
            for name, score in scores.items():
                resampled[name].append(score(weights))
    return {name: _ends(np.concatenate(values)) for name, values in resampled.items()}


def _ends(values: Floats) -> list[float] | None:
    known = values[np.isfinite(values)]
    # A score that no resample moves, as an accuracy of 1, isn't certain: resamples can't tell.
    if len(known) < len(values) / 2 or known.min() == known.max():
        return None
    tail = (1 - LEVEL) / 2
    return [float(end) for end in np.quantile(known, [tail, 1 - tail])]


def _resamples(rows: int, clusters: NDArray[Any] | None, seed: int) -> Iterator[Floats]:
    """Yield weights (some resamples, rows): how often each row is drawn."""
    generator = np.random.default_rng(seed)
    count = min(MOST, max(FEWEST, 10 * _NUMBERS // rows))
    at_once = max(1, _NUMBERS // rows)
    units = rows if clusters is None else int(clusters.max()) + 1
    chances = np.full(units, 1 / units)
    for first in range(0, count, at_once):
        size = min(at_once, count - first)
        resampled = generator.multinomial(units, chances, size=size).astype(np.float64)
        yield resampled if clusters is None else resampled[:, clusters]


def class_intervals(
    chances: NDArray[Any], truth: NDArray[Any], positive: int = 1
) -> dict[str, Weighed]:
    """Return the scores of `class_scores` as functions of weights.

    Args:
        chances: (rows, classes) probabilities.
        truth: (rows,) numbers of the true classes.
        positive: number of the class whose recall and F1 count where there are two.
    """
    classes, best = chances.shape[1], chances.argmax(axis=1)
    tiny = np.finfo(np.float64).eps
    losses = -np.log(np.clip(chances[np.arange(len(truth)), truth], tiny, 1.0))

    of_truth, of_guess = _indicators(truth, classes), _indicators(best, classes)
    in_bin = _indicators(calibration_bins(chances), CALIBRATION_BINS)
    gap = (best == truth) - chances.max(axis=1)

    def parts(weights: Floats) -> tuple[Floats, Floats, Floats]:
        """Count hits, true and predicted rows of each class, (resamples, classes) each."""
        hits = (weights * (best == truth)) @ of_truth
        return hits, weights @ of_truth, weights @ of_guess

    def f1(weights: Floats) -> Floats:
        hits, true, guessed = parts(weights)
        values = np.where(hits > 0, 2 * hits / (true + guessed), 0.0)
        # scikit-learn leaves out classes that are neither among the rows nor among the guesses.
        known = np.where(true + guessed > 0, values, np.nan)
        return np.asarray(values[:, positive] if classes == 2 else np.nanmean(known, axis=1))

    def recalls(weights: Floats) -> Floats:
        hits, true, _ = parts(weights)
        return hits / true

    def calibration(weights: Floats) -> Floats:
        return np.asarray(np.abs((weights * gap) @ in_bin).sum(axis=1) / weights.sum(axis=1))

    def area(weights: Floats) -> Floats:
        which = [positive] if classes == 2 else range(classes)
        areas = [_area(weights, chances[:, one], truth == one) for one in which]
        return np.asarray(np.mean(areas, axis=0))

    return {
        "accuracy": _mean((best == truth).astype(np.float64)),
        "balanced_accuracy": lambda weights: np.nanmean(recalls(weights), axis=1),
        "f1" if classes == 2 else "f1_macro": f1,
        **({"recall": lambda weights: recalls(weights)[:, positive]} if classes == 2 else {}),
        "roc_auc" if classes == 2 else "roc_auc_ovr": area,
        "log_loss": _mean(losses),
        "ece": calibration,
    }


def _indicators(codes: NDArray[Any], width: int) -> Any:
    """Return a sparse matrix (rows, width) with a single one in each row."""
    ones = np.ones(len(codes))
    return sparse.csr_array((ones, codes, np.arange(len(codes) + 1)), shape=(len(codes), width))


def _mean(values: Floats) -> Weighed:
    return lambda weights: np.asarray(weights @ values / weights.sum(axis=1))


def _area(weights: Floats, score: NDArray[Any], is_true: NDArray[Any]) -> Floats:
    """Compute areas under the ROC curve: the chance that a true row has the higher score, ties by half."""
    values, tier = np.unique(score, return_inverse=True)
    order = np.argsort(tier, kind="stable")
    starts = np.searchsorted(tier[order], np.arange(len(values)))
    true, other = (
        np.add.reduceat(weights[:, order] * mask[order], starts, axis=1)
        for mask in (is_true, ~is_true)
    )
    below = np.cumsum(other, axis=1) - other / 2
    return np.asarray((true * below).sum(axis=1) / (true.sum(axis=1) * other.sum(axis=1)))


def number_intervals(values: NDArray[Any], truth: NDArray[Any], scale: float) -> dict[str, Weighed]:
    """Return the scores of `number_scores` as functions of weights.

    Args:
        values: (rows, 1) predictions, in standard deviations.
        truth: (rows, 1) numbers, likewise.
        scale: standard deviation of the target.
    """
    error, true = (values - truth)[:, 0], truth[:, 0].astype(np.float64)
    square = _mean(error**2)

    def r2(weights: Floats) -> Floats:
        middle = (weights @ true / weights.sum(axis=1))[:, None]
        spread = (weights * (true - middle) ** 2).sum(axis=1) / weights.sum(axis=1)
        return np.asarray(1 - square(weights) / spread)

    return {
        "r2": r2,
        "rmse": lambda weights: np.sqrt(square(weights)) * scale,
        "mae": lambda weights: _mean(np.abs(error))(weights) * scale,
    }


def independent_rows(errors: Floats, times: NDArray[Any]) -> tuple[float, float]:
    """Estimate how many independent rows a series of errors is worth.

    Neighbors that err alike say the same thing again. With a correlation r of neighbors, as of a first-order
    autoregression, n times are worth n (1 - r) / (1 + r) (Bayley & Hammersley 1946).

    Args:
        errors: (rows,) signed errors.
        times: (rows,) their times; errors of one time are averaged.

    Returns:
        That number, and the correlation of neighboring times: 0 where there are too few of them to tell.

    >>> independent_rows(np.array([1.0, -1.0, 1.0, -1.0] * 5), np.arange(20))
    (20.0, 0.0)
    """
    _, codes, counts = np.unique(times, return_inverse=True, return_counts=True)
    series = np.bincount(codes, errors) / counts
    series = series - series.mean()
    total = float(series @ series)
    number = len(series)
    if number < _FEWEST_TIMES or not total:
        return float(number), 0.0
    # Of a mean taken off, a few independent rows look less alike than they are by one in n.
    correlation = min(float(series[1:] @ series[:-1]) / total + 1 / number, 0.999)
    if correlation < 2 / number**0.5:  # as independent rows have by chance, too
        return float(number), 0.0
    return number * (1 - correlation) / (1 + correlation), correlation


def exact_interval(hits: NDArray[Any], clusters: NDArray[Any] | None = None) -> list[float]:
    """Compute the interval of an accuracy by Clopper and Pearson, which holds where all rows are hits, too.

    Args:
        hits: (rows,) bool.
        clusters: as of `intervals`; a cluster counts as a hit if all of its rows are.
    """
    if clusters is not None:
        hits = np.bincount(clusters, ~hits) == 0
    found = stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(LEVEL)
    return [float(found.low), float(found.high)]


def metric_interval(
    metric: Metric, values: NDArray[Any], truth: NDArray[Any], clusters: NDArray[Any] | None = None
) -> list[float] | None:
    """Compute the interval of a metric, by one call of scikit-learn for each resample.

    Args:
        metric: the score.
        values: (rows, classes) probabilities, or (rows, 1) standardized numbers.
        truth: encoded targets of the rows.
        clusters: as of `intervals`.
    """
    resampled: list[float] = []
    for weights in _resamples(len(truth), clusters, seed=0):
        for weight in weights[: _METRIC_RESAMPLES - len(resampled)]:
            rows = np.repeat(np.arange(len(truth)), weight.astype(np.intp))
            value = metric_value(metric, values[rows], truth[rows])
            resampled.append(math.nan if value is None else value)
        if len(resampled) == _METRIC_RESAMPLES:
            break
    return _ends(np.asarray(resampled))
