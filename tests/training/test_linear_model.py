"""A linear model is kept where it is better than the network, and is the one that others would fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from senn.training import TrainConfig, linear_model, train
from senn.training.batches import Rows
from senn.training.linear_model import PENALTIES, linear_path

WIDE = TrainConfig(epochs=8, members=3)


def rows(task, columns=6, count=200):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, columns, generator=generator, dtype=torch.float64)
    y = x[:, :3].sum(1) + 0.5 * torch.randn(count, generator=generator, dtype=torch.float64)
    weight = torch.rand(count, generator=generator, dtype=torch.float64)
    y = (y > 0).long() if task == "classification" else y[:, None]
    return Rows(x=x, y=y, weight=weight / weight.mean())


def test_it_is_logistic_regression():
    given = rows("classification")
    for penalty, model in zip(PENALTIES, linear_path(given, 2, "classification"), strict=True):
        # Of two outputs, each has half of the slope, and half of the squares is half of its square.
        other = LogisticRegression(C=2 / (penalty * len(given)), tol=1e-9, max_iter=1000)
        other.fit(given.x, given.y, sample_weight=given.weight)
        slope, start = model.body[0].weight, model.body[0].bias
        assert np.allclose((slope[1] - slope[0]).detach(), other.coef_[0], atol=1e-4)
        assert (start[1] - start[0]).item() == pytest.approx(other.intercept_[0], abs=1e-4)


def test_it_is_ridge_regression():
    given = rows("regression")
    for penalty, model in zip(PENALTIES, linear_path(given, 1, "regression"), strict=True):
        other = Ridge(alpha=penalty / 2 * len(given))
        other.fit(given.x, given.y[:, 0], sample_weight=given.weight)
        assert np.allclose(model.body[0].weight[0].detach(), other.coef_, atol=1e-4)
        assert model.body[0].bias.item() == pytest.approx(other.intercept_, abs=1e-4)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_it_is_kept_for_many_columns_and_few_rows(task):
    given = rows(task, columns=150, count=240)
    x, y = given.x.float(), given.y if task == "classification" else given.y.float()
    found = train(x, y, task=task, outputs=2 if task == "classification" else 1, recipe=WIDE)
    assert found.architecture == ()
    assert found.members == 1
    assert found.kept.startswith("a linear model is kept")
    assert found.history[-1]["kept"] == found.kept
    assert found.model(x).shape == (240, 2 if task == "classification" else 1)
    small = train(
        x,
        y,
        task=task,
        outputs=2 if task == "classification" else 1,
        recipe=TrainConfig(epochs=2, hidden=(4,), grow=False),
    )
    assert small.architecture == (4,)


def test_it_is_not_kept_where_a_network_is_better():
    x = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] * x[:, 1] > 0).long()
    found = train(x, y, task="classification", outputs=2, recipe=TrainConfig(epochs=30, members=1))
    assert found.architecture != ()


def test_an_interrupt_while_it_is_fitted_costs_nothing(monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    given = rows("classification", columns=150, count=240)
    monkeypatch.setattr(linear_model, "_descend", interrupted)
    recipe = TrainConfig(epochs=2, members=1)
    found = train(given.x.float(), given.y, task="classification", outputs=2, recipe=recipe)
    assert found.architecture != ()
    assert not found.interrupted
