"""A skorch net grows while it is fitted."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_wine
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

pytest.importorskip("skorch")

from skorch import NeuralNetClassifier, NeuralNetRegressor

from senn import SennError, load, save
from senn.integrations.skorch import SelfExpansion
from senn.training import TrainConfig

X, Y = load_wine(return_X_y=True)
X = X.astype(np.float32)
EARLY = TrainConfig(addition_rounds=(0.1, 0.3), pruning_rounds=(0.7,))


def small(outputs, last):
    return nn.Sequential(nn.Linear(13, 2), nn.ReLU(), nn.Linear(2, outputs), *last)


def kinds(net):
    return [record["event"] for record in dict(net.callbacks_)["grow"].history_]


@pytest.mark.parametrize("probabilities", [True, False])
def test_a_classifier_grows_in_a_pipeline(probabilities):
    options = {} if probabilities else {"criterion": nn.CrossEntropyLoss}
    torch.manual_seed(0)
    net = NeuralNetClassifier(
        small, module__outputs=3, module__last=[nn.Softmax(-1)] if probabilities else [], max_epochs=8, lr=0.02,
        optimizer=torch.optim.Adam, batch_size=32, verbose=0, callbacks=[("grow", SelfExpansion(EARLY))], **options,
    )  # fmt: skip
    pipeline = clone(make_pipeline(StandardScaler(), net)).fit(X, Y)
    fitted = pipeline[-1]
    assert fitted.module_[0].out_features > 2 if isinstance(fitted.module_[0], nn.Linear) else True
    assert sum(p.numel() for p in fitted.module_.parameters()) > sum(
        p.numel() for p in small(3, []).parameters()
    )
    assert kinds(fitted).count("growth_round") == 3
    assert not {"fault", "rollback"} & {*kinds(fitted)}
    assert pipeline.score(X, Y) > 0.9
    assert np.array_equal(pickle.loads(pickle.dumps(pipeline)).predict(X), pipeline.predict(X))


def test_a_regressor_grows_by_its_criterion_and_is_fitted_again():
    y = (X[:, 0] * X[:, 6])[:, None]
    y, x = (y - y.mean()) / y.std(), StandardScaler().fit_transform(X)
    net = NeuralNetRegressor(
        small, module__outputs=1, module__last=[], max_epochs=6, lr=0.02, optimizer=torch.optim.Adam, batch_size=32,
        verbose=0, train_split=None, callbacks=[("grow", SelfExpansion(EARLY))],
    )  # fmt: skip
    histories = []
    for _ in range(2):
        torch.manual_seed(0)
        net.fit(x, y)
        histories.append(dict(net.callbacks_)["grow"].history_)
    assert "growth" in kinds(net)
    assert histories[0] == histories[1]


def test_two_in_one_net_are_refused():
    net = NeuralNetClassifier(
        small, module__outputs=3, module__last=[], verbose=0, callbacks=[SelfExpansion()] * 2
    )
    with pytest.raises(SennError, match="one loop takes one SelfExpansion, and was given several"):
        net.fit(X, Y)


def test_a_recipe_that_is_none_is_refused():
    net = NeuralNetClassifier(
        small, module__outputs=3, module__last=[], verbose=0, callbacks=[SelfExpansion("x")]
    )
    with pytest.raises(
        SennError, match=r"recipe must be a senn.training.TrainConfig or None, not 'x'"
    ):
        net.fit(X, Y)


def test_a_grown_net_loads_into_a_fresh_small_one(tmp_path):
    def fresh():
        torch.manual_seed(0)
        return NeuralNetClassifier(
            small, module__outputs=3, module__last=[], criterion=nn.CrossEntropyLoss, max_epochs=6, lr=0.02, verbose=0,
            optimizer=torch.optim.Adam, batch_size=32, callbacks=[("grow", SelfExpansion(EARLY))],
        )  # fmt: skip

    x = StandardScaler().fit_transform(X)
    net = fresh().fit(x, Y)
    assert "growth" in kinds(net)
    save(tmp_path / "grown", net.module_)
    net.save_params(f_params=tmp_path / "params.pt")
    other = fresh().initialize()
    load(tmp_path / "grown", into=other.module_)
    assert np.array_equal(other.predict_proba(x), net.predict_proba(x))
    other.load_params(f_params=tmp_path / "params.pt")  # as it is of that size now
    with pytest.raises(RuntimeError, match="size mismatch"):
        fresh().initialize().load_params(f_params=tmp_path / "params.pt")
    other = pickle.loads(pickle.dumps(net))
    other.partial_fit(x, Y)
    begun = dict(other.callbacks_)["grow"].history_[0]
    assert begun["parameters"] == sum(p.numel() for p in net.module_.parameters())
    assert {*other.module_.parameters()} == {
        p for one in other.optimizer_.param_groups for p in one["params"]
    }
