"""Validation rows of the estimators: whole groups, or the last rows."""

import numpy as np
import pytest

from senn import SENNClassifier, SENNRegressor
from senn.data import split_groups
from senn.errors import SennError

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(150, 3))
GROUPS = np.array([f"P{at}" for at in DRAW.integers(0, 30, 150)])
SMALL = {"hidden": (4,), "grow": False, "max_epochs": 2, "random_state": 0}


def counts(estimator):
    start = estimator.history_[0]
    return start["train_rows"], start["validation_rows"]


@pytest.mark.parametrize(
    ("make", "y"), [(SENNClassifier, (X[:, 0] > 0).astype(int)), (SENNRegressor, X[:, 0])]
)
def test_groups_stay_together(make, y):
    fitted = make(**SMALL).fit(X, y, groups=GROUPS)
    seed = fitted._recipe().seed
    classes = y if make is SENNClassifier else None
    train, held_out = split_groups(GROUPS, 0.1, seed, classes)
    assert counts(fitted) == (len(train), len(held_out))
    # Rows of weight zero are absent, with their groups.
    weight = np.ones(150)
    weight[:50] = 0
    assert sum(counts(make(**SMALL).fit(X, y, weight, groups=GROUPS))) == 100
    assert counts(make(**SMALL).fit(X, y, groups=np.zeros(150))) == (150, 0)


def test_the_last_rows_are_for_validation():
    y = np.where(np.arange(150) < 135, X[:, 0], 1000.0)
    fitted = SENNRegressor(validation="last", **SMALL).fit(X, y)
    assert counts(fitted) == (135, 15)
    # What was held out was never fitted, so its error is that of numbers far away.
    assert fitted.history_[1]["validation_loss"] > 5 * fitted.history_[1]["train_loss"]


def test_what_can_not_be_is_refused():
    with pytest.raises(SennError, match="validation must be one of 'random', 'last'"):
        SENNRegressor(validation="first").fit(X, X[:, 0])
    with pytest.raises(SennError, match="groups can't be combined"):
        SENNRegressor(validation="last").fit(X, X[:, 0], groups=GROUPS)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        SENNRegressor().fit(X, X[:, 0], groups=GROUPS[:5])
