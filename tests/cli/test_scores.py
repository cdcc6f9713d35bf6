"""Scores, intervals and baselines, against scikit-learn on the very resamples; which class scores are about."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

from senn.cli import baselines
from senn.cli.baselines import LinearModel, constant, linear
from senn.cli.fit_results import drift_note
from senn.cli.intervals import (
    class_intervals,
    exact_interval,
    independent_rows,
    intervals,
    number_intervals,
)
from senn.cli.metrics import calibration_error, class_scores, number_scores, positive_class
from senn.cli.score_lines import confusion_lines, score_table
from senn.cli.scorer import Scorer
from senn.data import Target
from senn.errors import SennError

DRAW = np.random.default_rng(0)


def guesses(classes, rows=60):
    """Probabilities with ties, and true classes that they are right about more often than not."""
    truth = DRAW.integers(0, classes, rows)
    logits = DRAW.normal(size=(rows, classes)).round(1) + 1.5 * np.eye(classes)[truth]
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True), truth


@pytest.mark.parametrize(("classes", "positive"), [(2, 1), (2, 0), (4, 1)])
def test_weighted_scores_of_classes_are_those_of_scikit_learn_on_repeated_rows(classes, positive):
    chances, truth = guesses(classes)
    weights = np.stack([np.ones(60), DRAW.multinomial(60, np.full(60, 1 / 60))]).astype(float)
    weighed = class_intervals(chances, truth, positive)
    for at, weight in enumerate(weights):
        rows = np.repeat(np.arange(60), weight.astype(int))
        exact = class_scores(chances[rows], truth[rows], positive)
        assert list(exact) == list(weighed)
        for name, value in exact.items():
            assert weighed[name](weights)[at] == pytest.approx(value, abs=1e-12), name


def test_weighted_scores_of_numbers_are_those_of_scikit_learn_on_repeated_rows():
    truth = DRAW.normal(size=(50, 1))
    values = truth + 0.5 * DRAW.normal(size=(50, 1))
    weights = DRAW.multinomial(50, np.full(50, 1 / 50), size=3).astype(float)
    weighed = number_intervals(values, truth, scale=7.0)
    for at, weight in enumerate(weights):
        rows = np.repeat(np.arange(50), weight.astype(int))
        for name, value in number_scores(values[rows], truth[rows], 7.0).items():
            assert weighed[name](weights)[at] == pytest.approx(value), name


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(60):
        hits = (np.random.default_rng(seed).random(80) < 0.7).astype(float)
        low, high = intervals({"mean": lambda w, h=hits: w @ h / w.sum(1)}, 80)["mean"]
        covered += low <= 0.7 <= high
    assert 52 <= covered <= 60


def test_rows_of_one_cluster_are_drawn_together():
    value = np.repeat(DRAW.normal(size=20), 10)
    mean = {"mean": lambda weights: weights @ value / weights.sum(axis=1)}
    alone = intervals(mean, 200)["mean"]
    together = intervals(mean, 200, np.repeat(np.arange(20), 10))["mean"]
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])


def test_a_perfect_accuracy_is_not_said_to_be_certain():
    truth = np.array([0, 1] * 18)
    scorer = Scorer(task="classification", labels=("a", "b"))
    found = scorer.intervals(np.eye(2)[truth], truth)
    # 1 - 0.025 ** (1 / 36)
    assert found["accuracy"] == pytest.approx([0.9026, 1.0], abs=1e-4)
    assert found["f1"] is None
    assert exact_interval(np.ones(6, bool), np.array([0, 0, 0, 1, 1, 1]))[0] == pytest.approx(
        0.025**0.5
    )


def test_scores_that_are_not_defined_are_none():
    chances, _ = guesses(3)
    scores = class_scores(chances, np.zeros(60, int))
    assert scores["roc_auc_ovr"] is None
    assert number_scores(np.zeros((4, 1)), np.ones((4, 1)), 1.0)["r2"] is None
    assert number_scores(np.zeros((4, 1)), np.ones((4, 1)), 1.0)["rmse"] == 1.0


def test_calibration_error_of_an_overconfident_guess():
    chances = np.array([[0.9, 0.1]] * 10)
    truth = np.array([0] * 6 + [1] * 4)
    assert calibration_error(chances, truth) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("labels", "counts", "positive"),
    [
        ((0, 1), (10, 90), 1),
        ((False, True), (10, 90), 1),
        (("no", "yes"), (10, 90), 1),
        (("fraud", "ok"), (4, 96), 0),
        (("ill", "well"), (60, 40), 1),
    ],
)
def test_scores_are_about_the_class_that_people_mean(labels, counts, positive):
    assert positive_class(labels, np.array(counts)) == positive


def test_baselines_are_fitted_to_training_rows_alone():
    x = DRAW.normal(size=(300, 3)).astype(np.float32)
    y = (x[:, 0] > 0.8).astype(np.int64)
    assert constant(y, 2)(x[:2]) == pytest.approx(np.tile([1 - y.mean(), y.mean()], (2, 1)))
    assert sk.accuracy_score(y, linear(x, y, 2)(x).argmax(1)) > 0.95
    numbers = 3 * x[:, :1] + 1
    assert constant(numbers, None)(x[:1]) == pytest.approx(numbers.mean(), rel=1e-5)
    assert sk.r2_score(numbers, linear(x, numbers, None)(x)) > 0.999
    # A class without a training row has no probability, and a single one is guessed.
    assert linear(x, y * 2, 3)(x)[:, 1].max() == 0
    assert linear(x, y * 0, 2)(x[:3]).argmax(1).tolist() == [0, 0, 0]


@pytest.mark.parametrize("classes", [2, 4])
def test_the_linear_model_is_scikit_learns_and_outlives_its_record(classes):
    x = DRAW.normal(size=(200, 3)).astype(np.float32)
    y = (x @ DRAW.normal(size=(3, classes)) + DRAW.normal(size=(200, classes))).argmax(1)
    model = linear(x, y, classes)
    expected = LogisticRegression(max_iter=300).fit(x.astype(np.float64), y).predict_proba(x)
    assert model(x) == pytest.approx(expected, abs=1e-6)
    again = LinearModel.from_dict(json.loads(json.dumps(model.to_dict())), is_classifier=True)
    assert again(x).tolist() == model(x).tolist()


def test_a_linear_model_that_would_take_too_long_is_left_out_or_drawn(monkeypatch):
    monkeypatch.setattr(baselines, "MOST_NUMBERS", 100)
    x, y = DRAW.normal(size=(60, 2)), DRAW.normal(size=(60, 1))
    assert linear(x, y, None).rows == 50
    assert linear(x[:50], y[:50], None).rows == 50
    assert linear(DRAW.normal(size=(60, 9)), y, None) is None
    assert linear(DRAW.normal(size=(11, 9)), y[:11], None).rows == 11


def test_errors_that_wander_are_worth_few_rows_and_a_score_of_them_has_no_interval():
    draw = np.random.default_rng(0)
    steps, when = draw.normal(size=(120, 1)), np.arange(120)
    scorer = Scorer(task="regression", scale=2.0)
    assert independent_rows(steps[:, 0], when) == (120, 0.0)
    # Several rows of one time are one; their order in the table doesn't matter.
    order = draw.permutation(240)
    walk = np.repeat(steps.cumsum(0), 2, axis=0)[order]
    worth, correlation = independent_rows(walk[:, 0], np.repeat(when, 2)[order])
    assert worth < 8
    assert correlation > 0.85
    note = drift_note(scorer, np.zeros((120, 1)), steps.cumsum(0), when)
    assert "the test period is worth about" in note
    assert "better predicted as its change" in note
    assert drift_note(scorer, np.zeros((120, 1)), steps, when) is None
    assert drift_note(scorer, np.zeros((120, 1)), steps.cumsum(0), None) is None


class TestScorer:
    def test_a_metric_by_name_is_among_the_scores(self):
        target = Target.fit("y", pd.Series(["fraud"] * 3 + ["ok"] * 57))
        scorer = Scorer.of(target, np.array([0] * 3 + [1] * 57), "average_precision")
        chances, truth = guesses(2)
        expected = sk.average_precision_score(truth == 0, chances[:, 0])
        assert scorer.scores(chances, truth)["average_precision"] == pytest.approx(expected)
        assert scorer.record() == {"metric": "average_precision", "positive": "fraud"}
        low, high = scorer.intervals(chances, truth)["average_precision"]
        assert low < expected < high

    def test_a_metric_of_numbers_is_in_their_own_unit(self):
        cells = pd.Series(DRAW.normal(50.0, 10.0, 40))
        target = Target.fit("y", cells)
        truth = target.encode(cells)
        scorer = Scorer.of(target, truth, "neg_mean_absolute_percentage_error")
        value = scorer.scores(np.zeros((40, 1)), truth)["neg_mean_absolute_percentage_error"]
        expected = -sk.mean_absolute_percentage_error(cells, np.full(40, cells.mean()))
        assert value == pytest.approx(expected, rel=1e-5)

    def test_a_metric_of_positive_numbers_is_refused_for_others(self):
        cells = pd.Series([-2.0, 2.0, 3.5, 4.0])
        target = Target.fit("y", cells)
        scorer = Scorer.of(target, target.encode(cells), "neg_mean_squared_log_error")
        with pytest.raises(SennError, match="isn't defined for this target"):
            scorer.check(target.encode(cells))

    def test_confusion_has_true_classes_by_rows(self):
        scorer = Scorer(task="classification", labels=("a", "b"))
        chances = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
        counts = scorer.confusion(chances, np.array([0, 0, 1]))
        assert counts == [[1, 1], [0, 1]]
        assert confusion_lines(counts, ("a", "b")) == [
            "true class, taken for  a  b",
            "a                      1  1",
            "b                      0  1",
        ]


def test_the_table_names_the_class_and_leaves_out_what_there_is_not():
    record = {"test": {"accuracy": 0.5, "f1": None}, "positive": "ill"}
    assert score_table(record, "8 rows") == [
        "test (8 rows)  network",
        "accuracy           0.5",
        "f1 of 'ill'          -",
    ]
    assert score_table({"test": {}}, "8 rows") == ["test (8 rows): not scored"]
