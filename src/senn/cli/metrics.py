"""Scores of a network's outputs, by scikit-learn."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

from senn.training import Metric

CALIBRATION_BINS = 15
"""Bins of equal width of the expected calibration error, as in Guo et al. 2017."""

Scores = dict[str, float | None]


def class_scores(chances: NDArray[Any], truth: NDArray[Any], positive: int = 1) -> Scores:
    """Score probabilities of classes.

    Args:
        chances: (rows, classes) probabilities.
        truth: (rows,) numbers of the true classes.
        positive: number of the class whose recall and F1 count where there are two.

    Returns:
        `accuracy`, `balanced_accuracy`, F1 and the area under the ROC curve (of the positive class of two; else their
        means over classes, `f1_macro` and `roc_auc_ovr`), `recall` of the positive class of two, `log_loss` in nats and
        `ece`, the expected calibration error; None where one isn't defined.
    """
    classes = chances.shape[1]
    best = chances.argmax(axis=1)
    scores: Scores = {"accuracy": float(sk.accuracy_score(truth, best))}
    # Warnings say that a class isn't among the rows: a score is None then, or leaves the class out.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores["balanced_accuracy"] = float(sk.balanced_accuracy_score(truth, best))
        if classes == 2:
            which = {"pos_label": positive, "zero_division": 0}
            scores["f1"] = float(sk.f1_score(truth, best, **which))
            scores["recall"] = float(sk.recall_score(truth, best, **which))
            scores["roc_auc"] = _defined(truth == positive, chances[:, positive])
        else:
            scores["f1_macro"] = float(sk.f1_score(truth, best, average="macro", zero_division=0))
            scores["roc_auc_ovr"] = _defined(truth, chances)
        scores["log_loss"] = float(sk.log_loss(truth, chances, labels=range(classes)))
    scores["ece"] = calibration_error(chances, truth)
    return scores


def _defined(truth: NDArray[Any], chances: NDArray[Any]) -> float | None:
    try:
        value = float(sk.roc_auc_score(truth, chances, multi_class="ovr"))
    except ValueError:  # a class isn't among the rows
        return None
    return None if math.isnan(value) else value


def calibration_error(chances: NDArray[Any], truth: NDArray[Any]) -> float:
    """Compute the expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 3).

    Args:
        chances: (rows, classes) probabilities.
        truth: (rows,) numbers of the true classes.

    Returns:
        Mean over the rows of the gap between accuracy and mean probability of the predicted class, in bins of that
        probability; 0 is best.

    >>> calibration_error(np.array([[0.8, 0.2]] * 5), np.array([0, 0, 0, 0, 1])).__round__(9)
    0.0
    """
    gap = (chances.argmax(axis=1) == truth) - chances.max(axis=1)
    return float(np.abs(np.bincount(calibration_bins(chances), gap)).sum() / len(truth))


def calibration_bins(chances: NDArray[Any]) -> NDArray[np.intp]:
    """Return the bin of each row, by the probability of the predicted class, (rows,)."""
    # The upper end belongs to the bin, as in the paper.
    bins = np.ceil(chances.max(axis=1) * CALIBRATION_BINS) - 1
    numbers: NDArray[np.intp] = np.clip(bins, 0, CALIBRATION_BINS - 1).astype(np.intp)
    return numbers


def number_scores(values: NDArray[Any], truth: NDArray[Any], scale: float) -> Scores:
    """Score predictions of a standardized number.

    Args:
        values: (rows, 1) predictions, in standard deviations.
        truth: (rows, 1) numbers, likewise.
        scale: standard deviation of the target.

    Returns:
        `r2`, None for rows of one value, and `rmse` and `mae` in the target's unit.
    """
    # In standard deviations, whose squares don't overflow.
    varies = bool((truth != truth[0]).any())
    return {
        "r2": float(sk.r2_score(truth, values)) if varies else None,
        "rmse": float(sk.root_mean_squared_error(truth, values)) * scale,
        "mae": float(sk.mean_absolute_error(truth, values)) * scale,
    }


def positive_class(labels: tuple[Any, ...], counts: NDArray[Any]) -> int:
    """Choose the class of two that scores such as F1 are about.

    Args:
        labels: the two classes, sorted.
        counts: (2,) rows of each.

    Returns:
        The larger of two numbers or truth values, as scikit-learn has it, and "yes" or "true"; of other texts, whose
        order says nothing, the rarer class.
    """
    if not isinstance(labels[0], str) or str(labels[1]).strip().lower() in ("yes", "true", "1"):
        return 1
    return int(counts[1] <= counts[0])


def metric_value(metric: Metric, values: NDArray[Any], truth: NDArray[Any]) -> float | None:
    """Compute a metric of probabilities, or of standardized numbers; None where it isn't defined.

    Args:
        metric: the score.
        values: (rows, classes) probabilities, or (rows, 1) standardized numbers.
        truth: encoded targets of the rows.
    """
    if metric.task == "regression":
        values, truth = (
            part.astype(np.float64) * metric.scale + metric.mean for part in (values, truth)
        )
    value = metric.of(values, truth)
    return value if math.isfinite(value) else None
