"""Sizes of a model without its numbers, for checkpoints that hold these."""

import copy
import json

import pytest
import torch
from surgery_cases import identity_layer, mlp, widen
from torch import nn

import senn
from senn import SennError
from senn.checkpoint import (
    ModuleSnapshot,
    describe_shapes,
    optimizer_param_names,
    rebind_optimizer,
    resize_like,
    tensor_shapes,
)
from senn.surgery import Insert, transaction

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


class Masked(nn.Module):
    """Has a buffer of its hidden width that isn't in the state, and tied weights."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.twin = nn.Linear(4, 2, bias=False)
        self.twin.weight = self.last.weight
        self.register_buffer("scale", torch.arange(1.0, 5.0), persistent=False)

    def forward(self, x):
        hidden = (self.first(x) * self.scale).relu()
        return self.last(hidden) + self.twin(hidden)


def grown(model):
    """Two units wider; a perceptron with a layer before its second map as well."""
    graph = senn.analyze(model, X)
    moves = [widen(model, graph, graph.groups[0].name, 2)]
    if isinstance(model, nn.Sequential):
        layer, right, shift = identity_layer(5)
        receipt = transaction(model, [Insert("2", layer, right, shift)], graph)
        assert receipt.graph is None
        graph = senn.analyze(model, X)
        moves = [widen(model, graph, graph.groups[0].name, 2)]
    transaction(model, moves, graph)
    return model


@pytest.mark.parametrize("make", [lambda: mlp([3, 5, 4, 2]), Masked], ids=["layers", "buffers"])
def test_a_fresh_model_takes_the_sizes_and_then_the_state(make):
    model, fresh = grown(make()), make()
    old = dict(fresh.named_parameters())
    saved = describe_shapes(model)
    json.dumps({key: value for key, value in saved.items() if key != "buffers"})
    assert tensor_shapes(saved) == {
        name: tuple(tensor.shape) for name, tensor in model.state_dict().items()
    }
    resize_like(fresh, saved)
    kept = [name for name, p in fresh.named_parameters() if name in old and p is old[name]]
    assert kept  # what has its size already stays the same object
    assert all(old[name].shape == dict(model.named_parameters())[name].shape for name in kept)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(X), model(X))
    if isinstance(model, Masked):
        assert fresh.twin.weight is fresh.last.weight
        assert len(fresh.scale) == 6


def test_a_layer_that_was_inserted_takes_the_precision_of_its_map():
    model = grown(mlp([3, 5, 4, 2])).double()
    fresh = mlp([3, 5, 4, 2]).double()
    resize_like(fresh, describe_shapes(model))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(X.double()), model(X.double()))


def test_a_model_of_no_sound_numbers_has_sizes():
    model = mlp([3, 5, 2])
    with torch.no_grad():
        model[0].weight.fill_(torch.nan)
    resize_like(mlp([3, 2, 2]), describe_shapes(model))


def test_all_or_nothing():
    model, other = grown(mlp([3, 5, 4, 2])), mlp([3, 5, 4, 4, 2])
    before, parts = copy.deepcopy(other.state_dict()), [type(m) for m in other.modules()]
    with pytest.raises(SennError, match="don't both have a part"):
        resize_like(other, describe_shapes(model), ModuleSnapshot(other))
    assert [type(m) for m in other.modules()] == parts
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())
    for nonsense in ({}, {"model": 1}, [1]):
        with pytest.raises(
            SennError, match="these aren't the sizes of a model that senn described"
        ):
            resize_like(other, nonsense)


def test_a_grown_model_goes_back():
    model = mlp([3, 5, 4, 2])
    saved, parts, state = (
        describe_shapes(model),
        ModuleSnapshot(model),
        copy.deepcopy(model.state_dict()),
    )
    grown(model)
    with pytest.raises(SennError):
        resize_like(model, saved)
    resize_like(model, saved, parts)
    model.load_state_dict(state)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_an_optimizer_holds_a_regrown_model_in_the_order_of_the_names():
    model, fresh = grown(mlp([3, 5, 4, 2])), mlp([3, 5, 4, 2])
    first = [p for p in model.parameters() if p.dim() > 1]
    optimizer = torch.optim.Adam(
        [{"params": first[::-1]}, {"params": [p for p in model.parameters() if p.dim() == 1]}]
    )
    names = optimizer_param_names(optimizer, model)
    groups = [
        {"params": [*fresh[0].parameters()]},
        {"params": [*fresh[2].parameters(), *fresh[4].parameters()]},
    ]
    other = torch.optim.Adam(groups)
    fresh(X).sum().backward()
    other.step()
    resize_like(fresh, describe_shapes(model))
    lists = [group["params"] for group in other.param_groups]
    rebind_optimizer(other, fresh, names)
    assert optimizer_param_names(other, fresh) == names
    assert all(group["params"] is one for group, one in zip(other.param_groups, lists, strict=True))
    assert {*other.state} <= {*fresh.parameters()}
    other.load_state_dict(optimizer.state_dict())
    with pytest.raises(SennError, match="has 2 groups of parameters, and the saved one had 1"):
        rebind_optimizer(other, fresh, names[:1])
    with pytest.raises(SennError, match=r"held 'nowhere\.weight', which the model doesn't have"):
        rebind_optimizer(other, fresh, [["nowhere.weight"], []])
    assert optimizer_param_names(other, fresh) == names


def test_an_optimizer_that_holds_more_than_the_model_is_left_alone():
    model, stranger = mlp([3, 5, 2]), nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([*model.parameters(), stranger], lr=0.1)
    names = optimizer_param_names(optimizer, model)
    assert names[0][-1] is None
    before = list(optimizer.param_groups[0]["params"])
    rebind_optimizer(optimizer, model, names)
    assert all(a is b for a, b in zip(before, optimizer.param_groups[0]["params"], strict=True))
