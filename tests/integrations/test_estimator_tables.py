"""The scikit-learn estimators on tables with columns of any kind, and what they say about their inputs."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.inspection import PartialDependenceDisplay
from sklearn.model_selection import cross_val_score

import senn
from senn.cli.main import main
from senn.errors import SennError
from senn.integrations.sklearn import SENNClassifier, SENNRegressor


def table(rows=240, seed=0):
    """Draw a table of numbers, words, dates and truth values, some missing, and what follows from it."""
    draw = np.random.default_rng(seed)
    town = draw.choice(["Ulm", "Bonn", "Rome"], rows)
    size = draw.normal(size=rows)
    day = pd.Timestamp("2020-01-01") + pd.to_timedelta(draw.integers(0, 700, rows), unit="D")
    open_ = draw.random(rows) < 0.5
    y = 3.0 * (town == "Rome") + size + open_ + 0.1 * draw.normal(size=rows)
    size[::9] = np.nan
    return pd.DataFrame({"town": town, "size": size, "day": day, "open": open_}), y


def quick(kind=SENNRegressor, **options):
    return kind(random_state=0, max_epochs=30, grow=False, **options)


def test_a_data_frame_of_words_dates_and_holes_is_fitted():
    x, y = table()
    model = quick().fit(x, y)
    assert model.score(*table(seed=1)) > 0.7
    assert list(model.feature_names_in_) == list(x.columns)
    assert {column.kind for column in model.columns_} == {"category", "number", "date", "boolean"}
    assert cross_val_score(quick(), x, y, cv=2).mean() > 0.5


def test_the_estimator_fits_the_network_of_the_command(tmp_path):
    x, y = table()
    x = x.assign(day=x["day"].dt.strftime("%Y-%m-%d"))
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    x.assign(y=y).to_csv(train, index=False)
    x[:50].assign(y=y[:50]).to_csv(test, index=False)
    fit = ["fit", str(train), "--target", "y", "--test", str(test), "--seed", "3"]
    assert main([*fit, "--out", str(tmp_path / "run"), "--epochs", "8", "--quiet"]) == 0
    # as the command reads it
    frame = senn.data.read_table(str(train)).frame
    ours = SENNRegressor(random_state=3, max_epochs=8).fit(
        frame.drop(columns="y"), frame["y"].to_numpy()
    )
    theirs = senn.load_run(tmp_path / "run").model
    assert [p.shape for p in ours.model_.parameters()] == [p.shape for p in theirs.parameters()]
    for mine, other in zip(ours.model_.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


def test_arrays_of_text_and_named_categories_are_tables_too():
    x, y = table()
    cells = x[["town", "size"]].to_numpy(dtype=object)
    named = quick().fit(x[["town", "size"]], y)
    plain = quick().fit(cells, y)
    np.testing.assert_array_equal(plain.predict(cells), named.predict(x[["town", "size"]]))
    codes = np.column_stack([x["town"].factorize()[0], x["size"].fillna(0)])
    by_number = quick(categorical_features=[0]).fit(codes, y)
    by_mask = quick(categorical_features=[True, False]).fit(codes, y)
    assert [column.kind for column in by_number.columns_] == ["category", "number"]
    np.testing.assert_array_equal(by_number.predict(codes), by_mask.predict(codes))


def test_a_number_that_is_missing_in_an_array_is_read():
    x, y = table()
    numbers = x[["size"]].to_numpy()
    model = quick().fit(numbers, y)
    assert np.isfinite(model.predict(numbers)).all()
    with pytest.raises(ValueError, match="infinity"):
        model.predict(np.full((2, 1), np.inf))


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (["twon"], "categorical_features names 'twon'.*did you mean 'town'"),
        ([7], "categorical_features names column 7 of 4"),
        ([True], "1 truth values for 4 columns"),
        ("town", "must be names, numbers or a mask"),
    ],
)
def test_categories_that_are_no_columns_are_named(chosen, words):
    with pytest.raises(SennError, match=words):
        quick(categorical_features=chosen).fit(*table())


def test_what_is_left_out_and_what_is_new_is_told():
    x, y = table()
    with pytest.warns(UserWarning, match="column 'note' is always 'x', so it isn't used"):
        model = quick().fit(x.assign(note="x"), y)
    new = x.assign(note="x")
    new.loc[3, "town"] = "Oslo"
    with pytest.warns(UserWarning, match="column 'town': 1 of 240 cells were never seen.*'Oslo'"):
        model.predict(new)
    with pytest.raises(SennError, match="no column is left to predict"), warnings.catch_warnings():
        quick().fit(pd.DataFrame({"a": np.ones(50)}), np.arange(50.0))


def test_a_table_of_polars_is_as_one_of_pandas():
    polars = pytest.importorskip("polars")
    x, y = table()
    x = x.drop(columns="day")
    other = polars.DataFrame({name: x[name].to_list() for name in x.columns})
    np.testing.assert_allclose(quick().fit(other, y).predict(other), quick().fit(x, y).predict(x))


def test_importances_tell_what_matters_and_pictures_of_scikit_learn_work():
    x, y = table()
    model = quick().fit(x.drop(columns="day"), y)
    found = dict(zip(model.feature_names_in_, model.feature_importances_, strict=True))
    assert found["town"] > found["open"] > 0
    assert found["size"] > found["open"]
    PartialDependenceDisplay.from_estimator(
        model,
        x.drop(columns="day").fillna({"size": 0.0}),
        ["size", "town"],
        categorical_features=["town"],
    )
    assert not hasattr(quick(), "feature_importances_")
    assert not hasattr(quick(validation_fraction=0.0).fit(x, y), "feature_importances_")


def test_intervals_hold_as_many_targets_as_they_promise():
    x, y = table(rows=900)
    model = quick().fit(x, y)
    new, truth = table(rows=900, seed=1)
    for coverage in (0.5, 0.9):
        low, high = model.predict_interval(new, coverage).T
        # 90 validation rows: a standard error of .05 of the share itself
        assert ((low <= truth) & (truth <= high)).mean() == pytest.approx(coverage, abs=0.15)
    assert (high - low > 0).all()
    with pytest.raises(SennError, match="needs 999 validation rows at least, and fit held out 90"):
        model.predict_interval(new, 0.999)
    with pytest.raises(SennError, match="coverage must be"):
        model.predict_interval(new, 1.0)
    with pytest.raises(SennError, match="fit held none out"):
        quick(validation_fraction=0.0).fit(x, y).predict_interval(new)


def test_a_network_that_goes_on_has_no_rows_left_that_it_has_not_seen():
    x, y = table()
    model = quick().fit(x, y)
    model.partial_fit(x, y)
    assert not hasattr(model, "feature_importances_")
    with pytest.raises(SennError, match="predict_interval needs rows that training didn't see"):
        model.predict_interval(x)


def test_intervals_of_several_targets_have_the_shape_of_the_targets():
    x, y = table()
    both = np.column_stack([y, -100 * y])
    ends = quick().fit(x, both).predict_interval(x, 0.5)
    assert ends.shape == (len(x), 2, 2)
    assert (ends[:, 1, 1] - ends[:, 1, 0] > ends[:, 0, 1] - ends[:, 0, 0]).all()


def test_the_metric_and_the_time_are_those_asked_for():
    x, y = table()
    classes = np.where(y > 1.5, "high", "low")
    model = quick(SENNClassifier, eval_metric="roc_auc").fit(x, classes)
    assert 0.5 < model.history_[-1]["validation"]["roc_auc"] <= 1
    mae = quick(eval_metric="neg_mean_absolute_error").fit(x, y)
    assert mae.history_[-1]["validation"]["neg_mean_absolute_error"] < 0
    with pytest.raises(SennError, match="'rocauc'"):
        quick(SENNClassifier, eval_metric="rocauc").fit(x, classes)
    with pytest.raises(SennError, match="time_limit must be a number above 0"):
        quick(time_limit=-1).fit(x, y)
    with pytest.raises(SennError, match="only one can be given"):
        quick(time_limit=5, max_seconds=5).fit(x, y)
    assert SENNRegressor(random_state=0, time_limit=0.01).fit(x, y).n_iter_ < 30
