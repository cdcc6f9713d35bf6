"""Heavy-tailed numbers are learned by their inverse hyperbolic sine, and everything around is in their own unit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error

from senn import SENNRegressor
from senn.nn import MLP, Ensemble, SinhOutput
from senn.training import Metric, TrainConfig, train


def table(rows=1500):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 4))
    signal = x[:, 0] * x[:, 1] + np.sin(2 * x[:, 2]) + 0.1 * rng.normal(size=rows)
    return x, np.exp(2.5 * signal)


def quick(**settings):
    return TrainConfig(**{"epochs": 12, "members": 1, "grow": False, **settings})


def test_what_a_few_numbers_would_decide_is_learned():
    x, y = table()
    found = {}
    for way in ("arcsinh", "none"):
        model = SENNRegressor(recipe=quick(target_transform=way), random_state=0)
        found[way] = mean_absolute_error(y[1000:], model.fit(x[:1000], y[:1000]).predict(x[1000:]))
    assert found["arcsinh"] < 0.6 * found["none"]


@pytest.mark.parametrize(("members", "kind"), [(1, SinhOutput), (3, Ensemble)])
def test_it_is_chosen_for_heavy_tails_alone(members, kind):
    x, y = table(400)
    model = SENNRegressor(recipe=quick(members=members), random_state=0).fit(x, y)
    assert type(model.model_) is kind
    assert len(model.architecture_) == 2
    plain = SENNRegressor(recipe=quick(members=members), random_state=0).fit(x, np.log(y))
    assert not any(type(one) is SinhOutput for one in plain.model_.modules())
    # intervals and importances are of the numbers themselves
    ends = model.predict_interval(x, coverage=0.8)
    assert 0.6 < np.mean((ends[:, 0] <= y) & (y <= ends[:, 1])) <= 1.0
    assert model.feature_importances_.shape == (4,)


def test_validation_figures_are_of_the_numbers_themselves():
    x, y = (torch.from_numpy(one).float() for one in table(600))
    y = ((y - y.mean()) / y.std())[:, None]
    metric = Metric(name="neg_mean_absolute_error", task="regression", mean=3.0, scale=2.0)
    rows = torch.arange(500, 600)
    recipe = quick(monitor=metric)
    found = train(x, y, task="regression", outputs=1, recipe=recipe, validation=rows)
    outputs, truth = found.model(x[rows]).detach(), y[rows]
    assert found.validation[metric.name] == pytest.approx(metric(outputs, truth), rel=1e-4)
    assert found.validation["loss"] == pytest.approx(
        float((outputs - truth).square().mean()), rel=1e-3
    )
    told = {one["epoch"]: one for one in found.history if one["event"] == "epoch"}
    assert told[found.best_epoch]["validation_metric"] == pytest.approx(
        found.validation[metric.name], rel=1e-4
    )
    assert torch.allclose(found.unseen[0], outputs, rtol=1e-4)
    assert torch.allclose(found.unseen[1], truth, rtol=1e-3, atol=1e-5)


def test_it_goes_on_with_further_rows():
    x, y = table(800)
    model = SENNRegressor(recipe=quick(members=2), random_state=0).fit(x[:400], y[:400])
    before = mean_absolute_error(np.arcsinh(y), np.arcsinh(model.predict(x)))
    for _ in range(12):
        model.partial_fit(x, y)
    after = mean_absolute_error(np.arcsinh(y), np.arcsinh(model.predict(x)))
    assert after < before
    first = model.model_.members[0]
    assert type(first) is SinhOutput
    assert type(first.network) is MLP
