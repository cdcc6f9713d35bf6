"""Models and inputs that can't be grown are refused by one sentence, and models of any inputs and outputs are grown."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import senn
from senn import batch
from senn.structure import analyse, layer_rule


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))


X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
BAD = {
    "meta": (lambda: net().to("meta"), "0.weight is on the meta device"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), "has no shape yet"),
    "scripted": (lambda: torch.jit.script(net()), "compiled by TorchScript"),
    "scripted part": (
        lambda: nn.Sequential(torch.jit.script(nn.Linear(3, 4))),
        "The module 0 is compiled by TorchScript",
    ),
    "compiled": (lambda: torch.compile(net()), "is a OptimizedModule: give the module inside"),
    "data parallel": (lambda: nn.DataParallel(net()), "is a DataParallel: give the module inside"),
    "sparse": (lambda: _sparse(), "0.weight is sparse"),
    "function": (lambda: torch.relu, "needs an nn.Module"),
}


def _sparse() -> nn.Module:
    model = net()
    model[0].weight = nn.Parameter(model[0].weight.detach().to_sparse())
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BAD)
def test_models_that_cannot_change_are_refused_by_name(name):
    build, sentence = BAD[name]
    with pytest.raises(senn.SennError, match=sentence):
        analyse(build(), X)


def test_inputs_elsewhere_and_without_samples_are_refused():
    with pytest.raises(senn.SennError, match="example inputs are on meta, the model is on cpu"):
        analyse(net(), X.to("meta"))
    with pytest.raises(senn.SennError, match="hold no sample"):
        analyse(net(), {"input": X[:0]})


def test_one_sample_shows_the_same_spaces():
    assert [space.width for space in analyse(net(), X[:1]).spaces] == [4]


def test_a_forward_that_draws_random_numbers_can_grow():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(torch.relu(self.a(x + 0.1 * torch.randn_like(x))))

    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert [space.name for space in analyse(Noisy(), X).spaces] == ["a"]
    model = Noisy()
    torch.set_rng_state(before)
    analyse(model, X)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_layer_of_an_own_kind_takes_a_rule_of_three_lines():
    class Mine(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

        def forward(self, x):
            return torch.sort(x @ self.weight, dim=0)[0] + self.bias

    model = nn.Sequential(nn.Linear(3, 4), Mine(4, 5), nn.ReLU(), nn.Linear(5, 2))
    assert [space.name for space in analyse(model, X).spaces] == ["0"]

    @layer_rule(Mine)
    def rule(visit):
        visit.reads("weight", dim=0)
        visit.makes("weight", dim=1)
        visit.makes("bias", dim=0)

    assert {space.name: space.width for space in analyse(model, X).spaces} == {"0": 4, "1": 5}


def test_nestings_keep_their_kind():
    tree = {"a": (X, [X[0], None]), "b": batch.Arguments(X, scale=2.0)}
    doubled = batch.map_tensors(lambda x: 2 * x, tree)
    assert torch.equal(doubled["a"][1][0], 2 * X[0])
    assert doubled["a"][1][1] is None
    assert doubled["b"].kwargs == {"scale": 2.0}
    assert len(batch.tensors(tree)) == 3
    assert batch.count(tree) == 4
    assert batch.take({"x": X, "mask": torch.ones(3, 3)}, slice(0, 2), 4)["mask"].shape == (3, 3)
    with pytest.raises(senn.UnsupportedError, match="returns a tuple with 2 tensors"):
        batch.prediction((X, X))
