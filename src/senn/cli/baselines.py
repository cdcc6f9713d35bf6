"""What a score is worth: the same score of a constant guess, and of a linear model on the same inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge

from senn.training.trained_run import probabilities

MOST_NUMBERS = 4_000_000
"""Inputs that a linear model is fitted to, at most: rows times features. Twice as many take twice the seconds."""
MOST_PRODUCTS = 40_000_000
"""Products of a step of logistic regression, at most: rows times features times classes."""
_FEWEST_PER_FEATURE = 5
"""Rows for each feature below which a linear model of drawn rows would be far below one of all rows."""

Guess = Callable[[NDArray[Any]], NDArray[Any]]
"""Maps encoded inputs (rows, features) to probabilities (rows, classes) or standardized numbers (rows, 1)."""


def constant(y: NDArray[Any], classes: int | None) -> Guess:
    """Fit the best guess that looks at no input: the shares of the classes, or the mean.

    Args:
        y: (rows,) numbers of the classes, or (rows, 1) standardized numbers, to train on.
        classes: number of classes; None for numbers.
    """
    if classes is None:
        guess = np.full((1, 1), y.astype(np.float64).mean())
    else:
        counts = np.bincount(y, minlength=classes).astype(np.float64)
        guess = (counts / counts.sum())[None]
    return lambda x: np.repeat(guess, len(x), axis=0)


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearModel:
    """A fitted linear model.

    Attributes:
        weight: (features, outputs).
        bias: (outputs,).
        is_classifier: True if outputs are logits of classes.
        rows: number of rows that it was fitted to; 0 if that isn't known.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    is_classifier: bool
    rows: int = 0

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return probabilities (rows, classes) or standardized numbers (rows, 1)."""
        outputs = x.astype(np.float64) @ self.weight + self.bias
        return probabilities(outputs) if self.is_classifier else outputs

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able record, which `from_dict` reads."""
        return {"weight": self.weight.tolist(), "bias": self.bias.tolist()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], *, is_classifier: bool) -> LinearModel:
        """Read a record.

        Args:
            record: `weight` and `bias`.
            is_classifier: True if outputs are logits of classes.
        """
        weight, bias = (np.asarray(record[name], dtype=np.float64) for name in ("weight", "bias"))
        return cls(weight=weight, bias=bias, is_classifier=is_classifier)


_NEVER = -1e4
"""Logit of a class without a training row: its probability is 0."""


def linear(
    x: NDArray[Any], y: NDArray[Any], classes: int | None, seed: int = 0
) -> LinearModel | None:
    """Fit scikit-learn's logistic or ridge regression with its default penalty.

    Args:
        x: (rows, features) encoded inputs to train on.
        y: (rows,) numbers of the classes, or (rows, 1) standardized numbers.
        classes: number of classes; None for numbers.
        seed: of the rows that are drawn where all would take too long.

    Returns:
        The model; None where it would take too long for all rows, and drawn ones would be too few for its features.
    """
    features = max(x.shape[1], 1)
    most = min(MOST_NUMBERS // features, MOST_PRODUCTS // (features * (classes or 1)))
    if len(x) > most:
        if most < _FEWEST_PER_FEATURE * features:
            return None
        chosen = np.random.default_rng(seed).permutation(len(x))[:most]
        x, y = x[chosen], y[chosen]
    inputs = x.astype(np.float64)
    if classes is None:
        ridge = Ridge().fit(inputs, y[:, 0].astype(np.float64))
        weight, bias = ridge.coef_[:, None], np.atleast_1d(ridge.intercept_)
        return LinearModel(weight=weight, bias=bias, is_classifier=False, rows=len(x))
    present = np.unique(y)
    weight, bias = np.zeros((x.shape[1], classes)), np.full(classes, _NEVER)
    bias[present] = 0.0
    if len(present) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a few hundred iterations didn't suffice
            model = LogisticRegression(max_iter=300).fit(inputs, y)
        # Of two classes scikit-learn has the logit of the second alone.
        fitted = present[1:] if len(present) == 2 else present
        weight[:, fitted], bias[fitted] = model.coef_.T, model.intercept_
    return LinearModel(weight=weight, bias=bias, is_classifier=True, rows=len(x))
