"""The bench of sizes on tables: its short form."""

import numpy as np
import pandas as pd
import pytest
from table_sizes import folds, main


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """A folder with a small table whose numbers, words and gaps are like those of the ten."""
    generator = np.random.default_rng(0)
    number = generator.normal(size=150)
    frame = pd.DataFrame({"number": number, "word": generator.choice(["a", "b", None], 150)})
    frame.loc[3, "number"] = np.nan
    frame["survived"] = np.where(number > 0, "yes", "no")
    (tmp_path / "tables").mkdir()
    frame.to_csv(tmp_path / "tables" / "titanic.csv.gz", index=False)
    monkeypatch.setenv("SENN_DATA", str(tmp_path))
    return tmp_path


def test_tuning_looks_at_no_row_of_the_test_folds():
    frame = pd.DataFrame({"row": np.arange(90.0)})
    y = np.arange(90) % 2
    plain, tuned = (folds(frame, y, is_regression=False, tuning=tuning) for tuning in (False, True))
    for (x, _, tests, _), (inner, _, scored, targets) in zip(plain, tuned, strict=True):
        assert (len(x), len(tests), len(inner), len(scored)) == (60, 30, 48, 12)
        assert targets.mean() == pytest.approx(0.5)
        # inputs are standardized by their own training rows: what is left of them is the order
        whole = np.sort(np.concatenate([inner, scored]).ravel())
        steps, expected = np.diff(whole), np.diff(np.sort(x.ravel()))
        np.testing.assert_allclose(steps / steps[0], expected / expected[0])


def test_every_fit_is_a_record_that_is_not_fitted_again(tables, tmp_path, capsys):
    out = tmp_path / "found.json"
    recipe = '{"epochs": 2, "hidden": [4], "addition_rounds": [0.5]}'
    argv = [
        "--tables",
        "titanic",
        "--arms",
        "grown",
        "8",
        "128-128",
        "--folds",
        "1",
        "--seeds",
        "1",
    ]
    assert main([*argv, "--recipe", recipe, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    found = pd.read_json(out, orient="index")
    assert sorted(found["arm"]) == ["128-128", "8", "grown"]
    assert (
        found.set_index("arm")["parameters"]["8"] < found.set_index("arm")["parameters"]["128-128"]
    )
    assert found["score"].between(0, 1).all()
    written = out.read_text()
    assert main([*argv, "--recipe", recipe, "--out", str(out)]) == 0
    assert out.read_text() == written
    assert capsys.readouterr().out == told
