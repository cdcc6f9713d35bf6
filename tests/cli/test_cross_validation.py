"""`senn fit --cv`: folds that follow the options, their scores, and an interruption between them."""

import json
import os
import signal

import numpy as np
import pandas as pd
import pytest
from cli_cases import refused

from senn.cli.cross_validation import summary
from senn.cli.fit_table import prepare
from senn.cli.main import main
from senn.errors import SennError
from senn.runs import FitOptions, RunFolder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a table of 60 rows: classes, groups of five rows, days."""
    folder = tmp_path_factory.mktemp("folds")
    draw = np.random.default_rng(0)
    frame = pd.DataFrame(draw.normal(size=(60, 2)).round(3), columns=["a", "b"])
    frame["who"] = np.repeat(np.arange(12), 5)
    frame["day"] = pd.date_range("2022-01-01", periods=60).strftime("%Y-%m-%d")
    frame["kind"] = np.where(np.arange(60) % 3 == 0, "rare", "usual")
    frame.sample(frac=1, random_state=0).to_csv(folder / "all.csv", index=False)
    return folder


def prepared(home, **options):
    return prepare(FitOptions(data=str(home / "all.csv"), target="kind", **options))


def command(home, out, *options):
    argv = ["fit", home / "all.csv", "--target", "kind", "--epochs", 1, "--cv", 2, "--json"]
    argv += ["--column", "who=dropped", "--column", "day=dropped", "--max-params", 60]
    return [str(one) for one in [*argv, "--out", home / out, *options]]


def test_every_row_is_tested_once_on_a_network_of_all_others(home):
    made = prepared(home, cv=5)
    assert [len(part.test) for part in made.folds] == [12] * 5
    tested = pd.concat([part.test for part in made.folds])
    assert sorted(tested.index) == sorted(made.source.table.frame.index)
    for number, part in enumerate(made.folds):
        assert not set(part.test.index) & set(part.train.index)
        assert (part.test["kind"] == "rare").sum() == 4
        fold = made.fold(number)
        # Medians are those of the fold's own training rows.
        numbers = fold.encoder.transform(part.train)[:, fold.encoder.features.index("a")]
        assert np.sort(numbers)[(len(numbers) - 1) // 2] == 0
        assert fold.scorer.positive == made.scorer.positive


def test_groups_and_times_hold_in_folds(home):
    for part in prepared(home, cv=4, group="who").folds:
        assert not set(part.train["who"]) & set(part.test["who"])
        fit = part.train.drop(part.train.index[part.validation])
        assert not set(fit["who"]) & set(part.train.iloc[part.validation]["who"])
    ends = []
    for part in prepared(home, cv=3, time="day").folds:
        assert part.train["day"].max() < part.test["day"].min()
        ends.append(part.test["day"].max())
    assert ends == sorted(ends)
    assert ends[-1] == "2022-03-01"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cv": 31}, "--cv 31 needs at least 62 rows, two for each fold, and there are 60"),
        ({"cv": 13, "group": "who"}, "--cv 13 needs at least 13 different values of column 'who'"),
        ({"cv": 9, "time": "day"}, "--cv 9 would leave 6 rows to train on in a fold"),
        ({"cv": 2, "test": "all.csv"}, "--cv can't be combined with --test"),
    ],
)
def test_folds_that_make_no_sense_are_refused(home, monkeypatch, options, words):
    monkeypatch.chdir(home)
    with pytest.raises(SennError, match=words):
        prepared(home, **options)


def test_a_number_of_folds_is_from_two(home, capsys):
    for text in ("1", "x"):
        argv = ["fit", home / "all.csv", "--target", "kind", "--cv", text]
        assert f"'{text}' is not a number of folds" in refused(capsys, argv)


def test_means_and_spread_are_those_of_the_folds():
    shared = {"train_rows": 9, "test_rows": 3, "architecture": [2], "best_epoch": 1, "seconds": 1.0}
    folds = [
        {**shared, "test": {"r2": r2, "mae": mae}, "baselines": {}, "parameters": size}
        for r2, mae, size in ((0.5, 1.0, 10), (0.7, None, 20))
    ]
    found = summary(folds)
    assert found["mean"] == {"r2": pytest.approx(0.6), "mae": None, "parameters": 15.0}
    assert found["spread"]["r2"] == pytest.approx(np.std([0.5, 0.7], ddof=1))


def same(results):
    """Results less what differs from run to run."""
    folds = [{**fold, "seconds": 0} for fold in results["cross_validation"]["folds"]]
    return folds, results["test"], results["files"]["model.safetensors"]


def test_finished_folds_outlive_an_interruption(home, capsys, monkeypatch):
    assert main(command(home, "whole")) == 0
    whole = json.loads((home / "whole" / "results.json").read_text())
    save = RunFolder.save_folds

    def interrupted(folder, folds):
        save(folder, folds)
        if len(folds) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunFolder, "save_folds", interrupted)
    capsys.readouterr()
    assert main(command(home, "halves")) == 130
    assert capsys.readouterr().err == (
        f"senn: interrupted; 1 of 2 folds are kept; to resume: senn fit --resume {home / 'halves'}\n"
    )
    assert main(["show", str(home / "halves")]) == 0
    assert main(["fit", "--resume", str(home / "halves"), "--json"]) == 0
    resumed = json.loads((home / "halves" / "results.json").read_text())
    assert same(resumed) == same(whole)


def test_the_run_is_the_one_without_folds(home):
    with_folds, plain = prepared(home, cv=3), prepared(home)
    assert with_folds.digest() == plain.digest()
    assert with_folds.recipe == plain.recipe
    limited = prepared(home, cv=3, max_seconds=40.0)
    assert limited.recipe.max_seconds == limited.fold(0).recipe.max_seconds == 10.0


def test_forged_folds_are_refused_in_a_sentence(home, capsys, monkeypatch):
    save = RunFolder.save_folds

    def forged(folder, folds):
        save(folder, [{**folds[0], "test": {"accuracy": "x"}}])
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunFolder, "save_folds", forged)
    assert main(command(home, "forged")) == 130
    assert "'test' can't be 'x'" in refused(capsys, ["fit", "--resume", home / "forged", "--quiet"])


def test_the_table_of_folds_is_printed_and_shown(home, capsys):
    argv = ["fit", str(home / "all.csv"), "--target", "a", "--column", "b=dropped", "--cv", "2"]
    assert main([*argv, "--epochs", "1", "--out", str(home / "numbers")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert main(["show", str(home / "numbers")]) == 0
    shown = capsys.readouterr().out.splitlines()
    first = next(at for at, line in enumerate(printed) if line.startswith("cross-validation "))
    table = printed[first : first + 7]
    assert [line.split("  ")[0] for line in table] == [
        "cross-validation",
        "fold 1",
        "fold 2",
        "mean",
        "standard deviation",
        "mean guess, mean",
        "linear model, mean",
    ]
    assert table == shown[1:8]
