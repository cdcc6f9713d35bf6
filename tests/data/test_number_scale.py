"""How columns of numbers are read: robust scale, smooth clip, bins between quantiles."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

from senn.data.tabular.column_kinds import column_from_dict, column_to_dict
from senn.data.tabular.number_scale import NumberScale, most_bins
from senn.data.tabular.table_encoder import TableEncoder

NORMAL = np.random.default_rng(0).normal(size=4000)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


def test_normal_numbers_are_scaled_by_their_deviation():
    scale = NumberScale.fit(3 + 7 * NORMAL)
    assert scale.median == pytest.approx(3, abs=0.4)
    assert scale.scale == pytest.approx(7, rel=0.03)
    assert scale.bins == 0


def test_encoding_is_written_out():
    scale = NumberScale(median=2.0, scale=4.0, edges=(0.0, 1.0, 3.0, 7.0))
    found = scale.encode(np.array([-9.0, 2.0, 5.0, 14.0]))
    exact = [
        [-2.75 / (1 + (2.75 / 3) ** 2) ** 0.5, -1, -1, -1],
        [0, 1, 0, -1],
        [0.75 / (1 + 0.25**2) ** 0.5, 1, 1, 0],
        [3 / 2**0.5, 1, 1, 1],
    ]
    np.testing.assert_allclose(found, exact, rtol=1e-12)


def test_a_few_wild_numbers_hardly_change_how_the_others_are_read():
    wild = NORMAL.copy()
    wild[:4] = 1e6, -9999, 1e300, -1e300
    clean, dirty = (NumberScale.fit(values, 8).encode(NORMAL[4:]) for values in (NORMAL, wild))
    # only the outermost bins end at the wild numbers
    assert np.abs(dirty[:, 2:-1] - clean[:, 2:-1]).max() < 0.02
    assert np.abs(dirty[:, 0] - clean[:, 0]).max() < 0.02


@given(
    st.lists(FINITE, min_size=1, max_size=60),
    st.lists(FINITE, min_size=1, max_size=9),
    st.integers(0, 12),
)
@example([1.7e308, -1.7e308, 0.0, 1.0], [1.7e308], 8)
@example([0.0, 5e-324, 1e-323, 1.5e-323, 1.0], [5e-324], 4)
def test_any_numbers_are_read_in_their_order_and_within_bounds(values, others, bins):
    scale = NumberScale.fit(np.array(values), bins)
    x = scale.encode(np.sort(np.array(values + others)))
    assert x.shape == (len(values) + len(others), 1 + scale.bins)
    assert np.isfinite(x).all()
    assert np.abs(x[:, 0]).max() <= 3
    assert scale.bins == 0 or np.abs(x[:, 1:]).max() <= 1
    assert (np.diff(x, axis=0) >= -1e-12).all()  # rounding of the root


@settings(deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=1, max_size=40), st.integers(0, 8), st.data())
def test_a_whole_weight_counts_as_so_many_rows(values, bins, data):
    counts = data.draw(st.lists(st.integers(1, 5), min_size=len(values), max_size=len(values)))
    weighted = NumberScale.fit(np.array(values, float), bins, np.array(counts, float))
    assert weighted == NumberScale.fit(np.repeat(np.array(values, float), counts), bins)


def test_sparse_columns_have_a_scale_of_what_is_not_zero():
    for share, spread in [(0.1, 1 / 3.290), (0.03, 1 / 4.653), (0.002, 0.5)]:
        column = np.zeros(1000)
        column[: round(1000 * share)] = 1
        assert NumberScale.fit(column).scale == pytest.approx(spread)
    assert NumberScale.fit(np.full(9, 4.0)) == NumberScale(median=4.0, scale=1.0)


def test_bins_write_any_curve_over_the_quantiles_as_a_sum():
    scale = NumberScale.fit(NORMAL, 8)
    x, curve = scale.encode(NORMAL), np.sin(2 * NORMAL)
    assert LinearRegression().fit(x, curve).score(x, curve) > 0.8
    assert LinearRegression().fit(x[:, :1], curve).score(x[:, :1], curve) < 0.4


def test_heavy_tails_are_told_by_more_bins():
    assert NumberScale.fit(NORMAL, 8).bins == 8
    assert NumberScale.fit(np.exp(2.5 * NORMAL), 8).bins == 32


@pytest.mark.parametrize(
    ("rows", "columns", "regression", "classification"),
    [
        (30, 1, 1, 1),
        (100, 4, 1, 4),
        (250, 4, 5, 8),
        (10_000, 4, 8, 8),
        (10_000, 200, 4, 8),
        (2000, 2000, 0, 0),
    ],
)
def test_few_rows_and_many_columns_get_few_bins(rows, columns, regression, classification):
    assert most_bins(rows, columns, "regression") == regression
    assert most_bins(rows, columns, "classification") == classification


def test_columns_keep_their_bins_through_json():
    frame = pd.DataFrame({"a": NORMAL, "b": np.exp(3 * NORMAL), "y": NORMAL > 0})
    encoder = TableEncoder.fit(frame, "y")
    assert [len(column.features()) for column in encoder.columns] == [9, 129]
    assert encoder.features[:3] == ["a", "a bin 1", "a bin 2"]
    again = TableEncoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
    np.testing.assert_array_equal(again.transform(frame), encoder.transform(frame))


def test_columns_of_version_0_1_are_read_as_they_were():
    record = {
        "kind": "number",
        "name": "a",
        "median": 2.0,
        "mean": 3.0,
        "scale": 4.0,
        "indicator": False,
        "note": "",
    }
    column = column_from_dict(record)
    assert column.encode(pd.Series([3.0, 11.0, 4003.0])).tolist() == [[0.0], [2.0], [1000.0]]
    assert {**column_to_dict(column), "style": None, "edges": None} == {
        **record,
        "style": None,
        "edges": None,
    }


def test_numbers_far_outside_training_are_told():
    frame = pd.DataFrame({"a": np.arange(200.0), "y": np.arange(200) % 2})
    encoder = TableEncoder.fit(frame, "y")
    near, far = ([-150.0, 1000.0, None], [5.0, -9999.0, 1e6])
    assert not any("outside" in one for one in encoder.surprises(pd.DataFrame({"a": near})))
    assert encoder.surprises(pd.DataFrame({"a": far})) == [
        "column 'a': 2 of 3 cells lie far outside 0 to 199, the first being '-9999.0', as no cell in training"
    ]
