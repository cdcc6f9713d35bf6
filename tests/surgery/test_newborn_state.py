"""Second moments of new entries: found by a trial, filled from old entries, warmed by their own gradients."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from surgery_cases import X64 as X
from surgery_cases import Y64 as Y
from surgery_cases import evaluate, net, train, widen
from torch import Tensor, nn, optim
from torch.nn import functional as F

from senn.graph import analyze
from senn.surgery import Widen, transaction
from senn.surgery.newborn_state import GradientMoments, warm_second_moments
from senn.surgery.optimizer_layers import OptimizerLayers
from senn.surgery.second_moments import find_second_moments

Values = Mapping[nn.Parameter, Tensor]
Moments = dict[nn.Parameter, GradientMoments]


class Rotated(optim.Optimizer):
    """Squares gradients in another basis, as SOAP does."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = evaluate(closure)
        for p in self.param_groups[0]["params"]:
            state, size = self.state[p], p.shape[-1]
            turn = torch.linalg.qr(torch.ones(size, size).tril()).Q.to(p)
            g = p.grad @ turn[:size, :size]
            state.setdefault("v", torch.zeros_like(p)).lerp_(g.square(), 0.1)
            p.sub_((g / state["v"].sqrt().clamp(min=1e-8)) @ turn.T, alpha=0.01)
        return loss


class Late(optim.Optimizer):
    """AdaShift: squares the gradient of some steps ago, and keeps all of them until then."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = evaluate(closure)
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if not state:
                state |= {"kept": [], "v": torch.zeros_like(p)}
            state["kept"].append(p.grad.clone())
            if len(state["kept"]) > 5:
                g = state["kept"].pop(0)
                state["v"].lerp_(g.square(), 0.1)
                p.sub_(g / (state["v"].sqrt() + 1e-8), alpha=0.01)
        return loss


FOUND: list[tuple[type[optim.Optimizer], dict[str, Any], set[Any]]] = [
    (optim.Adam, {"amsgrad": True}, {("exp_avg_sq", ()), ("max_exp_avg_sq", ())}),
    (optim.AdamW, {"fused": True, "weight_decay": 0.5}, {("exp_avg_sq", ())}),
    (optim.NAdam, {}, {("exp_avg_sq", ())}),
    (optim.RAdam, {}, {("exp_avg_sq", ())}),
    (optim.RMSprop, {"centered": True, "momentum": 0.5}, {("square_avg", ())}),
    (optim.Adagrad, {}, {("sum", ())}),
    (optim.Adadelta, {}, {("square_avg", ())}),
    (optim.Adafactor, {}, {("row_var", (1,)), ("col_var", (0,))}),
    (Late, {}, {("v", ())}),
    *((kind, {}, set()) for kind in (optim.SGD, optim.Adamax, optim.Rprop, optim.ASGD)),
]


@pytest.mark.parametrize(("kind", "options", "expected"), FOUND)
def test_second_moments_are_found_by_a_trial(kind: Any, options: Any, expected: Any) -> None:
    model, _ = net()
    optimizer = kind(model.parameters(), **options)
    train(model, optimizer, 8)
    before = copy.deepcopy(optimizer.state_dict())
    weight = model[0].weight
    found = find_second_moments(OptimizerLayers(optimizer), [weight]).get(weight, [])
    state = optimizer.state.get(weight, {})
    named = {(key, one.over) for one in found for key in state if state[key] is one.values}
    assert named == expected
    torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)


def test_an_average_in_another_basis_is_found_and_filled_with_its_mean() -> None:
    model, graph = net()
    optimizer = Rotated(model.parameters())
    train(model, optimizer, 3)
    (moment,) = find_second_moments(OptimizerLayers(optimizer), [model[0].weight])[model[0].weight]
    assert moment.mixed
    old = optimizer.state[model[0].weight]["v"].clone()
    transaction(model, [widen(model, graph, "0", 2)], graph, optimizer=optimizer)
    new = optimizer.state[model[0].weight]["v"]
    assert torch.equal(new[:5], old)
    torch.testing.assert_close(new[5:], old.mean().expand(2, 3))


def test_new_rows_and_columns_start_at_the_means_of_old_ones() -> None:
    model, graph = net()
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    train(model, optimizer, 3)
    old = optimizer.state[model[2].weight]["exp_avg_sq"].clone()
    moves = [widen(model, graph, "0", 2), widen(model, graph, "2", 3)]
    transaction(model, moves, graph, optimizer=optimizer)
    new = optimizer.state[model[2].weight]["exp_avg_sq"]
    rows, columns = old.shape
    assert torch.equal(new[:rows, :columns], old)
    torch.testing.assert_close(new[rows:, :columns], old.mean(0).expand(3, -1))
    torch.testing.assert_close(new[:rows, columns:], old.mean(1, keepdim=True).expand(-1, 2))
    torch.testing.assert_close(new[rows:, columns:], old.mean().expand(3, 2))
    assert optimizer.state[model[2].weight]["step"] == 3


@pytest.mark.parametrize("kind", [optim.Adam, optim.Adafactor])
@pytest.mark.parametrize("noise", [0.0, 0.25, 7.0])
def test_a_warm_average_has_the_level_of_the_old_ones(kind: Any, noise: float) -> None:
    """The old entries hold E[g]^2 + noise Var[g], or where there is no variance a third of E[g]^2."""
    layer = nn.Linear(6, 5, bias=False, dtype=torch.float64)
    optimizer = kind(layer.parameters(), lr=0.01)
    F.mse_loss(layer(torch.randn(4, 6, dtype=torch.float64)), torch.zeros(4, 5)).backward()
    optimizer.step()
    mean, variance = torch.rand(2, 5, 6, dtype=torch.float64) + 0.5
    squares = mean.square() + noise * variance if noise else mean.square() / 3
    state = optimizer.state[layer.weight]
    if kind is optim.Adam:
        state["exp_avg_sq"].copy_(squares)
        state["exp_avg_sq"][3:] = 0
    else:
        state["row_var"].copy_(squares.mean(1, keepdim=True))
        state["row_var"][3:] = 0
    mask = torch.zeros(5, 6, dtype=torch.bool)
    mask[3:] = True
    moments = GradientMoments(mean=mean, variance=variance if noise else torch.zeros(5, 6))
    weight = layer.weight
    warm_second_moments(OptimizerLayers(optimizer), {weight: mask}, lambda _: {weight: moments})
    found = state["exp_avg_sq"] if kind is optim.Adam else state["row_var"]
    expected = squares if kind is optim.Adam else squares.mean(1, keepdim=True)
    torch.testing.assert_close(found, expected)


def test_gradients_are_measured_again_where_the_first_steps_of_new_entries_lead() -> None:
    model, graph = net()
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    train(model, optimizer, 20)
    receipt = transaction(model, [widen(model, graph, "0", 2)], graph, optimizer=optimizer)
    before = [p.detach().clone() for p in model.parameters()]
    seen: list[Values] = []

    def measure(values: Values) -> Moments:
        seen.append(values)
        return {
            p: GradientMoments(mean=torch.full_like(p, len(seen)), variance=torch.zeros_like(p))
            for p in values
        }

    receipt.warm_second_moments(optimizer, measure)
    at_birth, moved = seen
    assert all(map(torch.equal, before, model.parameters()))
    assert all(torch.equal(values, p) for p, values in at_birth.items())
    assert {*at_birth} == {*moved} == {model[0].weight, model[0].bias, model[2].weight}
    for p, values in moved.items():
        is_column = p is model[2].weight
        old, new = (values - p).detach().split(5, dim=int(is_column))
        assert not old.any()
        assert (new < 0).all()
    # four times the square that old entries have
    v = optimizer.state[model[0].weight]["exp_avg_sq"]
    torch.testing.assert_close(v[5:], (4 * v[:5].mean()).expand(2, 3))


def test_entries_without_a_gradient_keep_the_mean_of_old_ones() -> None:
    model, graph = net()
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    train(model, optimizer, 3)
    receipt = transaction(model, [widen(model, graph, "0", 2)], graph, optimizer=optimizer)
    v = optimizer.state[model[0].weight]["exp_avg_sq"].clone()

    def measure(parameters: Values) -> Moments:
        moments = {
            p: GradientMoments(mean=torch.ones_like(p), variance=torch.ones_like(p))
            for p in parameters
        }
        for part in (moments[model[0].weight].mean, moments[model[0].weight].variance):
            part[5:] = 0
        return moments

    receipt.warm_second_moments(optimizer, measure)
    torch.testing.assert_close(optimizer.state[model[0].weight]["exp_avg_sq"], v)


@pytest.mark.parametrize("kind", [optim.Adam, optim.RMSprop, optim.Adafactor, optim.Adagrad])
def test_undo_after_warming_gives_everything_back(kind: Any) -> None:
    model, graph = net()
    optimizer = kind(model.parameters(), lr=0.01)
    train(model, optimizer, 3)
    weights, state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    receipt = transaction(model, [widen(model, graph, "0", 2)], graph, optimizer=optimizer)
    receipt.warm_second_moments(optimizer, lambda values: _measured(model, X, Y, values))
    receipt.undo()
    torch.testing.assert_close(model.state_dict(), weights, rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state_dict(), state, rtol=0, atol=0)


def _measured(model: nn.Module, x: Tensor, y: Tensor, values: Values) -> Moments:
    own = [p.detach().clone() for p in values]
    with torch.no_grad():
        for p, value in values.items():
            p.copy_(value)
    each = [
        torch.autograd.grad(F.mse_loss(model(x[part]), y[part]), [*values])
        for part in torch.arange(len(x)).split(max(len(x) // 16, 1))
    ]
    with torch.no_grad():
        for p, value in zip(values, own, strict=True):
            p.copy_(value)
    stacked = [torch.stack(one) for one in zip(*each, strict=True)]
    return {
        p: GradientMoments(mean=one.mean(0), variance=one.var(0))
        for p, one in zip(values, stacked, strict=True)
    }


@pytest.mark.parametrize(
    ("kind", "lr"), [(optim.Adam, 1e-2), (optim.NAdam, 1e-2), (optim.RMSprop, 2e-3)]
)
def test_late_growth_does_not_throw_the_loss_back(kind: Any, lr: float) -> None:
    """Against a twin that doesn't grow; averages of zero throw the loss back by a fifth or far more."""
    chance = torch.Generator().manual_seed(1)
    x = torch.randn(256, 6, generator=chance)
    y = torch.sin(2 * x[:, :1] * x[:, 1:2]) + 0.3 * x[:, 2:3]
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1))
    optimizer = kind(model.parameters(), lr=lr)
    graph = analyze(model, x)
    worst = {}

    def losses(one: nn.Module, its: Any, steps: int) -> Tensor:
        found = []
        for _ in range(steps):
            loss = F.mse_loss(one(x), y)
            its.zero_grad()
            loss.backward()
            its.step()
            found.append(loss.detach())
        return torch.stack(found)

    losses(model, optimizer, 1200)
    twin = losses(*copy.deepcopy((model, optimizer)), 40)
    rows = {"0.weight": torch.randn(8, 6, generator=chance), "0.bias": torch.zeros(8)}
    for how in ("zero", "warm"):
        grown, its = copy.deepcopy((model, optimizer))
        receipt = transaction(grown, [Widen("0", 8, rows)], graph, optimizer=its)
        if how == "warm":
            receipt.warm_second_moments(its, lambda values, g=grown: _measured(g, x, y, values))
        else:
            for p in (grown[0].weight, grown[0].bias, grown[2].weight):
                for moment in find_second_moments(OptimizerLayers(its), [p])[p]:
                    part = moment.values[:, 12:] if p is grown[2].weight else moment.values[12:]
                    part.zero_()
        worst[how] = float((losses(grown, its, 40) / twin).max())
    assert worst["warm"] < 1.1
    assert worst["zero"] > 1.15
