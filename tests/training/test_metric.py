"""Scores of scikit-learn on a network's outputs, and the epoch that they choose."""

import math

import pytest
import torch
from sklearn import metrics as sk

from senn.errors import SennError
from senn.training import Metric, TrainConfig, train
from senn.training.batches import Inputs, Rows
from senn.training.validation import monitored, rank, validate

DRAW = torch.Generator().manual_seed(0)


def rare(rows=300):
    x = torch.randn(rows, 3, generator=DRAW)
    return x, (x[:, 0] + x[:, 1] > 1.5).long()


@pytest.mark.parametrize("name", ["f1", "roc_auc", "neg_log_loss", "recall", "matthews_corrcoef"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_metric_is_that_of_scikit_learn(name, weighted):
    logits = torch.randn(50, 2, generator=DRAW)
    y = torch.randint(2, (50,), generator=DRAW)
    weight = torch.rand(50, generator=DRAW) if weighted else None
    value = Metric(name=name, task="classification")(logits, y, weight)
    chances = logits.double().softmax(1).numpy()
    expected = {
        "f1": lambda **kw: sk.f1_score(y, chances.argmax(1), **kw),
        "roc_auc": lambda **kw: sk.roc_auc_score(y, chances[:, 1], **kw),
        "neg_log_loss": lambda **kw: -sk.log_loss(y, chances, **kw),
        "recall": lambda **kw: sk.recall_score(y, chances.argmax(1), **kw),
        "matthews_corrcoef": lambda **kw: sk.matthews_corrcoef(y, chances.argmax(1), **kw),
    }[name]
    weights = {} if weight is None else {"sample_weight": weight.double().numpy()}
    assert value == pytest.approx(expected(**weights))


def test_the_positive_class_may_be_the_first():
    logits, y = torch.randn(50, 2, generator=DRAW), torch.randint(2, (50,), generator=DRAW)
    value = Metric(name="f1", task="classification", positive=0)(logits, y)
    assert value == pytest.approx(sk.f1_score(y, logits.argmax(1), pos_label=0))


@pytest.mark.parametrize(
    ("name", "task", "classes", "words"),
    [
        ("f7", "classification", 2, "isn't one of scikit-learn's; for 2 classes there are .*f1, "),
        ("f1", "classification", 3, "doesn't suit 3 classes .* f1_macro"),
        ("r2", "classification", 2, "is one of numbers"),
        ("rand_score", "classification", 2, "isn't one of scikit-learn's"),
        ("accuracy", "regression", 2, "doesn't suit numbers .* neg_mean_absolute_error"),
        ("f1", "regression", 2, "doesn't suit numbers"),
    ],
)
def test_what_does_not_suit_is_refused_with_what_does(name, task, classes, words):
    with pytest.raises(SennError, match=words):
        Metric(name=name, task=task, classes=classes)


def test_what_is_not_defined_is_nan_and_ranks_last():
    auc = Metric(name="roc_auc", task="classification")
    assert math.isnan(auc(torch.randn(4, 2), torch.zeros(4, dtype=torch.long)))
    undefined = rank({"loss": 0.1, "roc_auc": math.nan}, "roc_auc")
    assert undefined > rank({"loss": 9.0, "roc_auc": 0.2}, "roc_auc")
    assert undefined < rank({"loss": 0.2, "roc_auc": math.nan}, "roc_auc")


def test_the_metric_chooses_the_epoch_and_is_recorded():
    x, y = rare()
    f1 = Metric(name="f1", task="classification")
    recipe = TrainConfig(hidden=(4,), grow=False, epochs=4, monitor=f1)
    result = train(x, y, task="classification", outputs=2, recipe=recipe)
    epochs = [record for record in result.history if record["event"] == "epoch"]
    best = max(record["validation_metric"] for record in epochs)
    assert result.validation["f1"] == best
    assert (
        "f1"
        not in train(
            x,
            y,
            task="classification",
            outputs=2,
            recipe=TrainConfig(hidden=(4,), grow=False, epochs=1),
        ).validation
    )


def test_two_networks_are_level_within_the_noise_of_the_metric():
    x, y = rare()
    rows = Rows(x=x, y=y)
    f1 = Metric(name="f1", task="classification")

    def judged(scale):
        model = torch.nn.Linear(3, 2)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[0.0, 0, 0], [1.0, scale, 0]]))
            model.bias.copy_(torch.tensor([1.5, 0.0]))
        loss = lambda output, y, weight: torch.nn.functional.cross_entropy(output, y)  # noqa: E731
        return validate(model, rows, Inputs(), loss, "classification", f1)

    right, near, wrong = judged(1.0), judged(1.02), judged(-1.0)
    assert near.is_level_with(right, "f1")
    assert not wrong.is_level_with(right, "f1")


def test_what_is_monitored_by_default_depends_on_the_rows():
    few, many = (Rows(x=torch.zeros(n, 1), y=torch.zeros(n)) for n in (10, 1000))
    assert [monitored(TrainConfig(), rows) for rows in (None, few, many)] == [
        "loss",
        "loss",
        "score",
    ]
    with pytest.raises(
        SennError, match=r"monitor must be 'loss', 'score', a senn\.training\.Metric"
    ):
        TrainConfig(monitor="f1")
