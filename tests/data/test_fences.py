"""Numbers to predict that are far outside all others count as the outermost that are believed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from senn.data.tabular.target import Target, fences
from senn.integrations.sklearn import SENNRegressor


@pytest.mark.parametrize(
    "numbers",
    [
        lambda z: z,
        lambda z: np.exp(z),
        lambda z: np.where(np.arange(len(z)) % 200 == 0, 50.0, 0.0),
        lambda z: np.round(z),
        lambda z: z * 1e307,
    ],
)
def test_usual_numbers_are_all_believed(numbers):
    values = numbers(np.random.default_rng(0).normal(size=3000))
    assert fences(values) == (values.min(), values.max())


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
def test_fences_lie_within_the_numbers_and_around_their_median(values):
    array = np.asarray(values)
    low, high = fences(array)
    assert array.min() <= low <= high <= array.max()


def test_a_wild_target_is_clipped_for_training_alone():
    draw = np.random.default_rng(0)
    cells = pd.Series(draw.normal(size=500))
    clean = Target.fit("y", cells)
    cells[3], cells[4] = 1e9, -1e7
    target = Target.fit("y", cells)
    assert (target.low, target.high) == (cells.drop([3, 4]).min(), cells.drop([3, 4]).max())
    assert target.scale < 1.5 * clean.scale
    encoded = target.encode(cells)
    trained = target.training_part(encoded)
    assert encoded[3] > 1e7
    assert trained[3] == pytest.approx(target.standard_bounds[1])
    np.testing.assert_array_equal(trained[5:], encoded[5:])
    assert target.decode(np.array([[1e9]])) == [pytest.approx(target.high)]
    assert target.original(cells).scale > 1e6


def test_a_wild_target_does_not_ruin_a_fit():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(800, 3))
    y = x[:, 0] + np.sin(2 * x[:, 1])
    wild = y[:400].copy()
    wild[[5, 7]] = 1e6, -9999
    clean = SENNRegressor(random_state=0, max_epochs=40, grow=False).fit(x[:400], y[:400])
    with pytest.warns(UserWarning, match="2 targets lie far outside all others"):
        dirty = SENNRegressor(random_state=0, max_epochs=40, grow=False).fit(x[:400], wild)
    assert dirty.score(x[400:], y[400:]) > clean.score(x[400:], y[400:]) - 0.1 > 0.5
