"""An optimizer, its schedulers, averages and scaler live through surgery."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from exhaustive import some
from surgery_cases import X64 as X
from surgery_cases import Y64 as Y
from surgery_cases import Concat, mlp, net, train, widen
from torch import Tensor, nn, optim

from senn.errors import SennError, SurgeryError, UnsupportedError
from senn.graph import analyze
from senn.surgery import Insert, Prune, transaction

OPTIMIZERS: dict[str, tuple[type[optim.Optimizer], dict[str, Any]]] = {
    "sgd": (optim.SGD, {"lr": 0.1}),
    "sgd-momentum": (optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
    "sgd-nesterov": (optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "foreach": True}),
    "sgd-fused": (optim.SGD, {"lr": 0.05, "momentum": 0.9, "fused": True}),
    "adam": (optim.Adam, {"lr": 0.01}),
    "adam-amsgrad": (optim.Adam, {"lr": 0.01, "amsgrad": True, "foreach": False}),
    "adam-foreach": (optim.Adam, {"lr": 0.01, "foreach": True, "weight_decay": 0.01}),
    "adam-fused": (optim.Adam, {"lr": 0.01, "fused": True}),
    "adam-tensor-lr": (optim.Adam, {"lr": torch.tensor(0.01), "foreach": False}),
    "adamw": (optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    "adamw-fused": (optim.AdamW, {"lr": 0.01, "fused": True, "amsgrad": True}),
    "nadam": (optim.NAdam, {"lr": 0.01}),
    "nadam-foreach": (optim.NAdam, {"lr": 0.01, "foreach": True}),
    "radam": (optim.RAdam, {"lr": 0.01}),
    "radam-foreach": (optim.RAdam, {"lr": 0.01, "foreach": True}),
    "adamax": (optim.Adamax, {"lr": 0.01}),
    "adagrad": (optim.Adagrad, {"lr": 0.05, "initial_accumulator_value": 0.1}),
    "adagrad-fused": (optim.Adagrad, {"lr": 0.05, "fused": True}),
    "adadelta": (optim.Adadelta, {"lr": 1.0}),
    "rmsprop": (optim.RMSprop, {"lr": 0.01, "centered": True, "momentum": 0.5}),
    "rmsprop-foreach": (optim.RMSprop, {"lr": 0.01, "foreach": True}),
    "rprop": (optim.Rprop, {"lr": 0.01}),
    "rprop-foreach": (optim.Rprop, {"lr": 0.01, "foreach": True}),
    "asgd": (optim.ASGD, {"lr": 0.05, "t0": 2}),
    "asgd-foreach": (optim.ASGD, {"lr": 0.05, "foreach": True, "weight_decay": 0.01}),
}
SPECIAL: dict[str, tuple[type[optim.Optimizer], dict[str, Any]]] = {
    "adafactor": (optim.Adafactor, {"lr": 0.05}),
    "adafactor-foreach": (optim.Adafactor, {"lr": 0.05, "foreach": True}),
    "muon": (optim.Muon, {"lr": 0.02}),
    "lbfgs": (optim.LBFGS, {"lr": 0.5, "max_iter": 3}),
}
STARTS = {("Rprop", "step_size"): 0.01, ("Adamax", "exp_inf"): 1e-8}
SECOND_MOMENTS = {
    *("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"),
    *("row_var", "col_var", "variance"),
}


def make(name: str, model: nn.Module) -> optim.Optimizer:
    kind, arguments = {**OPTIMIZERS, **SPECIAL}[name]
    params = [p for p in model.parameters() if kind is not optim.Muon or p.dim() == 2]
    return kind(params, **arguments)


@pytest.mark.parametrize("name", [*OPTIMIZERS, *SPECIAL])
def test_state_follows_by_position_and_training_goes_on(name: str) -> None:
    model, graph = net()
    optimizer = make(name, model)
    train(model, optimizer, 4)
    old = {
        n: (p.detach(), {k: copy.deepcopy(v) for k, v in optimizer.state.get(p, {}).items()})
        for n, p in model.named_parameters()
    }
    group, params = optimizer.param_groups[0], optimizer.param_groups[0]["params"]
    held = [*params]

    moves = [widen(model, graph, "0", 3), Prune("2", (1,))]
    transaction(model, moves, graph, optimizer=optimizer)

    assert optimizer.param_groups[0] is group
    assert group["params"] is params
    named = dict(model.named_parameters())
    assert [id(p) for p in params] == [id(p) for p in held]
    assert set(optimizer.state) <= set(params)
    if name != "lbfgs":
        for n, (p, state) in old.items():
            assert optimizer.state.get(named[n], {}).keys() == state.keys()
            for key, value in state.items():
                check_entries(
                    type(optimizer).__name__,
                    n,
                    key,
                    value,
                    optimizer.state[named[n]][key],
                    p,
                    named[n],
                )
    start = {n: p.detach().clone() for n, p in named.items()}
    after = train(model, optimizer, 1) + train(model, optimizer, 12)
    for p in params:
        n = next(n for n, q in named.items() if q is p)
        assert (p != start[n]).all(), n
    assert after[-1] < after[0]


def check_entries(kind: str, name: str, key: str, old: Any, new: Any, p: Tensor, q: Tensor) -> None:
    """Units 0 to 4 of the first space stay and three follow; unit 1 of the second space goes."""
    if not isinstance(old, Tensor) or old.dim() == 0:
        assert old == new
        return
    kept = {
        "0.weight": (slice(0, 5),),
        "0.bias": (slice(0, 5),),
        "2.weight": ([0, 2, 3], slice(0, 5)),
        "2.bias": ([0, 2, 3],),
    }
    kept["4.weight"] = (slice(None), [0, 2, 3])
    cut = kept.get(name, ())
    where = tuple(c if old.shape[d] == p.shape[d] else slice(None) for d, c in enumerate(cut))
    place = tuple(
        slice(None) if isinstance(c, list) else c for c in where
    )  # after pruning, what stays is everything
    source = tuple(slice(None) if c == slice(0, 5) else c for c in where)
    assert torch.equal(new[place], old[source])
    fresh = torch.ones_like(new, dtype=torch.bool)
    fresh[place] = False
    if kind == "ASGD":
        assert torch.equal(new[fresh], q.detach()[fresh])
    elif key in SECOND_MOMENTS and (kind, key) not in STARTS:
        # means of old entries
        assert (new[fresh] > 0).all()
        assert (new[fresh] <= old.max()).all()
    else:
        assert (new[fresh] == STARTS.get((kind, key), 0.0)).all()


@pytest.mark.parametrize("name", some(OPTIMIZERS, 2))
def test_grown_net_trains_as_if_it_had_been_wide_with_silent_units(name: str) -> None:
    """Silent units (all weights zero, tanh) get no gradient: waking them up is what growth must equal."""
    torch.manual_seed(1)
    small, wide = mlp([3, 4, 2]).double(), mlp([3, 6, 2]).double()
    graph = analyze(small, X)
    with torch.no_grad():
        for p, q in zip(wide.parameters(), small.parameters(), strict=True):
            p.zero_()[tuple(slice(0, size) for size in q.shape)] = q
    optimizers = make(name, small), make(name, wide)
    for model, optimizer in zip((small, wide), optimizers, strict=True):
        train(model, optimizer, 3)
    move = widen(small, graph, "0", 2)
    transaction(small, [move], graph, optimizer=optimizers[0], probe=X)
    with torch.no_grad():
        wide[0].weight[4:] = move.values["0.weight"]
        wide[0].bias[4:] = move.values["0.bias"]
        if name.startswith("asgd"):  # the running average of a unit that is there from now on
            for tensor in ("weight", "bias"):
                p = wide[0].get_parameter(tensor)
                optimizers[1].state[p]["ax"][4:] = p[4:]
        # surgery starts second moments of new entries at the mean of old ones
        for p, q in zip(small.parameters(), wide.parameters(), strict=True):
            state, its = (one.state[r] for one, r in zip(optimizers, (p, q), strict=True))
            for key in SECOND_MOMENTS & state.keys():
                its[key].copy_(state[key])
    losses = [
        train(model, optimizer, 8)
        for model, optimizer in zip((small, wide), optimizers, strict=True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    for p, q in zip(small.parameters(), wide.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", some([*OPTIMIZERS, *SPECIAL], 2))
def test_undo_gives_the_same_objects_back(name: str) -> None:
    model, graph = net()
    optimizer = make(name, model)
    train(model, optimizer, 2)
    params = list(model.named_parameters())
    held = list(optimizer.param_groups[0]["params"])
    states = dict(optimizer.state)
    saved = copy.deepcopy(optimizer.state_dict())
    grads = [p.grad for _, p in params]
    receipt = transaction(
        model, [widen(model, graph, "2", 2), Prune("0", (4, 0))], graph, optimizer=optimizer
    )
    receipt.undo()
    assert [(n, id(p)) for n, p in model.named_parameters()] == [(n, id(p)) for n, p in params]
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], held, strict=True))
    assert list(optimizer.state) == list(states)
    assert all(optimizer.state[p] is state for p, state in states.items())
    assert all(p.grad is grad for (_, p), grad in zip(params, grads, strict=True))
    torch.testing.assert_close(optimizer.state_dict(), saved, rtol=0, atol=0)
    other, _ = net()
    reference = make(name, other)
    train(other, reference, 2)
    assert train(model, optimizer, 2) == train(other, reference, 2)


@pytest.mark.parametrize(
    "name", ["sgd", "sgd-fused", "adam-fused", "adam-foreach", "adafactor", "muon", "lbfgs"]
)
def test_undo_is_refused_after_a_step(name: str) -> None:
    model, graph = net()
    optimizer = make(name, model)
    train(model, optimizer, 1)
    receipt = transaction(model, [widen(model, graph, "2", 2)], graph, optimizer=optimizer)
    train(model, optimizer, 1)
    with pytest.raises(SurgeryError, match="'2' can't be undone: the model has been trained since"):
        receipt.undo()


def test_undo_is_refused_after_loading_an_optimizer_state() -> None:
    model, graph = net()
    optimizer = make("adam", model)
    receipt = transaction(model, [widen(model, graph, "2", 2)], graph, optimizer=optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    with pytest.raises(SurgeryError, match="changed again since"):
        receipt.undo()


def test_a_new_layer_joins_the_group_of_its_map_in_model_order() -> None:
    model, graph = net()
    names = dict(model.named_parameters())
    last = [(n, p) for n, p in names.items() if n.startswith("4")]
    others = [(n, p) for n, p in names.items() if not n.startswith("4")]
    optimizer = optim.SGD([{"params": last, "lr": 0.5}, {"params": others}], lr=0.1)
    transaction(
        model,
        [Insert("2", nn.Sequential(nn.Linear(5, 5, bias=False)), torch.eye(5))],
        graph,
        optimizer=optimizer,
    )
    now = {p: n for n, p in model.named_parameters()}
    expected = ["0.weight", "0.bias", "2.0.weight", "2.1.weight", "2.1.bias"]
    assert [now[p] for p in optimizer.param_groups[1]["params"]] == expected
    assert optimizer.param_groups[1]["param_names"] == expected
    assert optimizer.param_groups[0]["param_names"] == ["4.weight", "4.bias"]


def inserted(groups: list[list[str]], biased: bool = True) -> list[list[str]]:
    """Names in the groups of an optimizer after a layer with a bias and slopes was put before the second map."""
    model, _ = net()
    if not biased:
        model[2].bias = None
    names = dict(model.named_parameters())
    optimizer = optim.SGD([{"params": [names[name] for name in group]} for group in groups], lr=0.1)
    layer = nn.Sequential(nn.Linear(5, 5), nn.PReLU(5)).double()
    transaction(model, [Insert("2", layer)], analyze(model, X), optimizer=optimizer)
    now = {p: n for n, p in model.named_parameters()}
    return [[now[p] for p in group["params"]] for group in optimizer.param_groups]


def test_parameters_of_a_new_layer_join_those_of_their_names() -> None:
    weights, biases = ([f"{layer}.{name}" for layer in "024"] for name in ("weight", "bias"))
    matrices = ["0.weight", "2.0.weight", "2.1.weight", "2.2.weight", "4.weight"]
    assert inserted([weights, biases]) == [matrices, ["0.bias", "2.0.bias", "2.2.bias", "4.bias"]]
    assert inserted([biases[::-1], weights])[1] == matrices
    both = ["2.0.weight", "2.0.bias", "2.1.weight", "2.2.weight"]
    assert inserted([["0.weight", "0.bias"], ["2.weight", "2.bias"]])[1] == [*both, "2.2.bias"]
    assert inserted([weights[1:], ["2.bias"], ["0.bias", "4.bias"]])[1] == [
        "2.0.bias",
        "2.2.bias",
    ]  # the map's own
    assert inserted([weights, ["0.bias", "4.bias"]], False)[1] == [
        "0.bias",
        "2.0.bias",
        "4.bias",
    ]  # all others
    assert inserted([weights, ["0.bias"]], False)[1] == ["0.bias", "2.0.bias"]
    assert inserted([weights, ["0.bias"], ["4.bias"]], False)[0] == [
        "0.weight",
        *both,
        "4.weight",
    ]  # in two groups
    assert inserted([weights])[0] == ["0.weight", *both, "4.weight"]


@pytest.mark.parametrize(
    "name", some([n for n in [*OPTIMIZERS, *SPECIAL] if n != "muon"], 2, first=1)
)
def test_an_inserted_layer_trains(name: str) -> None:
    model, graph = net()
    optimizer = make(name, model)
    train(model, optimizer, 2)
    layer = nn.Sequential(nn.Linear(5, 5), nn.PReLU(5, init=1.0)).double()
    with torch.no_grad():
        layer[0].weight.copy_(torch.eye(5))
        layer[0].bias.zero_()
    before = train(model, optimizer, 1)[0]
    transaction(model, [Insert("2", layer)], graph, optimizer=optimizer, probe=X)
    start = [p.detach().clone() for p in model.parameters()]
    assert list(model.parameters()) == optimizer.param_groups[0]["params"]
    after = train(model, optimizer, 6)
    assert after[-1] < before
    assert all((p != q).any() for p, q in zip(model.parameters(), start, strict=True))


def test_muon_refuses_a_layer_with_vectors() -> None:
    model, graph = net()
    optimizer = make("muon", model)
    with pytest.raises(UnsupportedError, match="Muon can't train the new parameters"):
        transaction(model, [Insert("2", nn.Linear(5, 5), torch.eye(5))], graph, optimizer=optimizer)
    assert optimizer.param_groups[0]["params"] == [p for p in model.parameters() if p.dim() == 2]


def test_an_optimizer_of_another_model_is_refused() -> None:
    model, graph = net()
    with pytest.raises(
        SennError, match=r"doesn't hold the model's parameters \(first: '0.weight'\)"
    ):
        transaction(model, [widen(model, graph, "0", 1)], graph, optimizer=make("adam", net()[0]))
    with pytest.raises(UnsupportedError, match="not a str"):
        transaction(model, [widen(model, graph, "0", 1)], graph, optimizer="adam")


def test_frozen_parameters_may_be_missing_and_a_new_layer_needs_a_group() -> None:
    model, graph = net()
    for p in model[0].parameters():
        p.requires_grad_(False)
    optimizer = optim.Adam([p for p in model.parameters() if p.requires_grad])
    train(model, optimizer, 1)
    transaction(model, [widen(model, graph, "2", 1)], graph, optimizer=optimizer, probe=X)
    with pytest.raises(SennError, match="doesn't hold the weight of '0'"):
        transaction(model, [Insert("0", nn.Linear(3, 3), torch.eye(3))], graph, optimizer=optimizer)
    assert isinstance(model[0], nn.Linear)


def test_state_that_is_not_understood_is_refused_by_name_and_rolled_back() -> None:
    class Odd(optim.SGD):
        def step(self, closure: Any = None) -> Any:
            result = super().step(closure)
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p]["blocks"] = torch.zeros(p.numel() + 1)
            return result

    model, graph = net()
    optimizer = Odd(model.parameters(), lr=0.1)
    train(model, optimizer, 1)
    params, states = list(model.parameters()), dict(optimizer.state)
    with pytest.raises(UnsupportedError, match="'blocks' in the state of Odd has shape"):
        transaction(model, [widen(model, graph, "0", 2)], graph, optimizer=optimizer)
    assert all(p is q for p, q in zip(model.parameters(), params, strict=True))
    assert dict(optimizer.state) == states


def test_an_optimizer_whose_step_needs_arguments_starts_new_entries_at_zero() -> None:
    class Needy(optim.SGD):
        def step(self, inputs: Tensor, targets: Tensor) -> None:
            super().step()

    model, graph = net()
    optimizer = Needy(model.parameters(), lr=0.1, momentum=0.9)
    (model(X) - Y).square().mean().backward()
    optimizer.step(X, Y)
    old = optimizer.state[model[0].weight]["momentum_buffer"].clone()
    transaction(model, [widen(model, graph, "0", 2)], graph, optimizer=optimizer, probe=X)
    new = optimizer.state[model[0].weight]["momentum_buffer"]
    assert torch.equal(new[:5], old)
    assert not new[5:].any()


def test_two_groups_of_one_tensor_carry_state_in_the_middle() -> None:
    torch.manual_seed(0)
    model = Concat().double()
    graph = analyze(model, X)
    optimizer = make("adam", model)
    train(model, optimizer, 2)
    old = optimizer.state[model.fc.weight]["exp_avg"].clone()
    moves = [widen(model, graph, "a", 2), widen(model, graph, "b", 1)]
    transaction(model, moves, graph, optimizer=optimizer, probe=X)
    new = optimizer.state[model.fc.weight]["exp_avg"]
    assert torch.equal(new[:, [0, 1, 2, 3, 6, 7, 8, 9, 10]], old)
    assert not new[:, [4, 5, 11]].any()
