"""What a score is worth: the same score of a constant guess, and of a linear model on the same inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge

MOST_NUMBERS = 4_000_000
"""Inputs that a linear model is fitted to, at most: rows times features. Twice as many take twice the seconds."""

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


def linear(x: NDArray[Any], y: NDArray[Any], classes: int | None, seed: int = 0) -> Guess:
    """Fit scikit-learn's logistic or ridge regression with its default penalty.

    Args:
        x: (rows, features) encoded inputs to train on.
        y: (rows,) numbers of the classes, or (rows, 1) standardized numbers.
        classes: number of classes; None for numbers.
        seed: of the rows that are drawn where there are more than `MOST_NUMBERS` inputs.
    """
    rows = max(200, MOST_NUMBERS // max(x.shape[1], 1))
    if len(x) > rows:
        chosen = np.random.default_rng(seed).permutation(len(x))[:rows]
        x, y = x[chosen], y[chosen]
    inputs = x.astype(np.float64)
    if classes is None:
        ridge = Ridge().fit(inputs, y[:, 0].astype(np.float64))
        return lambda x: np.asarray(ridge.predict(x.astype(np.float64)))[:, None]
    present = np.unique(y)
    if len(present) < 2:
        return constant(y, classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a few hundred iterations didn't suffice
        model = LogisticRegression(max_iter=300).fit(inputs, y)

    def predict(x: NDArray[Any]) -> NDArray[Any]:
        chances = np.zeros((len(x), classes))
        chances[:, present] = model.predict_proba(x.astype(np.float64))
        return chances

    return predict
