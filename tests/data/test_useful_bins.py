"""Which columns of numbers get bins, and how fine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from senn import SENNRegressor
from senn.cli.main import main
from senn.data.tabular import useful_bins
from senn.data.tabular.feature_columns import fit_columns
from senn.data.tabular.table_columns import Column, NumberColumn
from senn.data.tabular.table_encoder import TableEncoder
from senn.data.tabular.target import Task
from senn.data.tabular.useful_bins import with_useful_bins
from senn.training import TrainConfig


def table(rows: int, seed: int = 0) -> tuple[pd.DataFrame, NDArray[Any]]:
    """A column whose fine structure counts, one that is bent, a straight one, one of noise, and a word."""
    draw = np.random.default_rng(seed)
    frame = pd.DataFrame(draw.uniform(0, 1, (rows, 4)), columns=["fine", "bent", "straight", "noise"])  # fmt: skip
    frame["word"] = draw.choice(["a", "b"], rows)
    y = np.sin(2 * np.pi * 8 * frame["fine"]) + 4 * (frame["bent"] - 0.5) ** 2 + frame["straight"]
    y = y + (frame["word"] == "a") + draw.normal(0, 0.3, rows)
    return frame, ((y - y.mean()) / y.std()).to_numpy()


def bins(columns: tuple[Column, ...]) -> dict[str, int]:
    return {
        one.name: max(0, len(one.edges) - 1) for one in columns if isinstance(one, NumberColumn)
    }


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_bins_go_where_they_tell_about_the_target(task: Task) -> None:
    frame, y = table(3000)
    target = y if task == "regression" else np.digitize(y, [-0.5, 0.5])
    columns = fit_columns(frame, task=task)
    assert set(bins(columns).values()) == {8}
    found = bins(with_useful_bins(columns, frame, lambda rows: target[rows], task=task))
    assert found == {"fine": 32, "bent": 8, "straight": 0, "noise": 0}


def test_few_rows_keep_their_bins() -> None:
    frame, y = table(600)
    columns = fit_columns(frame, task="regression")
    found = bins(with_useful_bins(columns, frame, lambda rows: y[rows], task="regression"))
    assert found == {"fine": 24, "bent": 8, "straight": 8, "noise": 8}  # 24: 25 rows for each


def test_a_limit_of_the_inputs_holds() -> None:
    frame, y = table(3000)
    columns = fit_columns(frame, task="regression", max_inputs=40)
    found = with_useful_bins(columns, frame, lambda rows: y[rows], task="regression", max_inputs=40)
    # 36 inputs at first; 16 of them are left out
    assert bins(columns) == dict.fromkeys(["fine", "bent", "straight", "noise"], 8)
    assert bins(found) == {"fine": 8, "bent": 8, "straight": 0, "noise": 0}


def test_residuals_are_those_of_ridge_regression_on_the_other_folds() -> None:
    from sklearn.linear_model import Ridge

    draw = np.random.default_rng(1)
    x, y, weight = draw.normal(size=(53, 3)), draw.normal(size=(53, 2)), draw.uniform(0.5, 2, 53)
    test = useful_bins._Test(pd.DataFrame(x), y, weight)
    weight /= weight.mean()
    for fold in range(5):
        held_out = np.arange(53) % 5 == fold
        ones = np.column_stack([np.ones(53), x])
        ridge = Ridge(useful_bins.RIDGE, fit_intercept=False)
        ridge.fit(ones[~held_out], y[~held_out], weight[~held_out])
        expected = y[held_out] - ridge.predict(ones[held_out])
        np.testing.assert_allclose(test._residuals(x, y)[held_out], expected, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 300),
    kind=st.sampled_from(["constant", "class", "wild"]),
    seed=st.integers(0, 9),
)
def test_any_target_is_taken(rows: int, kind: str, seed: int) -> None:
    frame, y = table(rows + 1, seed)
    frame.loc[0, "fine"] = np.nan
    task: Task = "classification" if kind == "class" else "regression"
    y = {"constant": np.zeros(rows + 1), "class": (y > 0).astype(int), "wild": 1e30 * y**9}[kind]
    columns = fit_columns(frame, task=task)
    found = with_useful_bins(columns, frame, lambda chosen: y[chosen], task=task)
    assert [one.name for one in found] == [one.name for one in columns]
    if kind == "constant":
        assert found == columns


def test_the_command_and_the_estimators_choose_alike() -> None:
    frame, y = table(2500)
    encoder = TableEncoder.fit(frame.assign(target=y), target="target", task="regression")
    model = SENNRegressor(recipe=TrainConfig(epochs=1, members=1)).fit(frame, y)
    assert bins(encoder.columns) == bins(model.columns_)
    assert bins(encoder.columns)["fine"] == 32
    assert bins(encoder.columns)["noise"] == 0


def test_a_dry_run_tells_how_many_bins_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame, y = table(2500)
    frame.assign(target=y).to_csv(tmp_path / "table.csv", index=False)
    assert main(["fit", str(tmp_path / "table.csv"), "--target", "target", "--dry-run"]) == 0
    # of 2,000 training rows
    assert "number: fine (32 bins), bent (8 bins), straight, noise\n" in capsys.readouterr().out


def test_rows_that_hang_together_have_equal_bins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame, y = table(2500)
    recipe, groups = TrainConfig(epochs=1, members=1), np.arange(2500) // 10
    model = SENNRegressor(recipe=recipe).fit(frame, y, groups=groups)
    latest = SENNRegressor(recipe=recipe, validation="last").fit(frame, y)
    assert {*bins(model.columns_).values()} == {*bins(latest.columns_).values()} == {8}
    frame.assign(day=groups, target=y).to_csv(tmp_path / "table.csv", index=False)
    argv = ["fit", str(tmp_path / "table.csv"), "--target", "target", "--group", "day", "--dry-run"]
    assert main(argv) == 0
    told = "number: fine (8 bins), bent (8 bins), straight (8 bins), noise (8 bins)\n"
    assert told in capsys.readouterr().out
