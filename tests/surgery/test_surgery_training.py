"""What stands around an optimizer goes on after surgery: schedulers, averages, scalers, hooks, saved states."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from surgery_cases import X64 as X
from surgery_cases import Y64 as Y
from surgery_cases import mlp, net, train, widen
from torch import nn, optim
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from senn.graph import analyze
from senn.surgery import Insert, transaction

SCHEDULERS: dict[str, Callable[[optim.Optimizer], Any]] = {
    "one-cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=12),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 8),
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 3), lr_scheduler.ExponentialLR(o, 0.8)], [4]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "swa": lambda o: optim.swa_utils.SWALR(o, 0.001, anneal_epochs=5),
}


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_go_on(name: str) -> None:
    rates: dict[bool, list[list[float]]] = {}
    for grow in (True, False):
        model, graph = net()
        layers = list(model.children())
        optimizer = optim.AdamW(
            [
                {"params": layers[0].parameters(), "lr": 0.02},
                {"params": nn.Sequential(*layers[1:]).parameters()},
            ]
        )
        scheduler = SCHEDULERS[name](optimizer)
        rates[grow] = []
        for step in range(10):
            if grow and step == 5:
                transaction(
                    model, [widen(model, graph, "0", 2)], graph, optimizer=optimizer, probe=X
                )
            weight = model[0].weight
            now = weight.detach().clone()
            train(model, optimizer, 1)
            moved = (weight.detach() - now).abs().max()
            assert (moved > 0) == (optimizer.param_groups[0]["lr"] > 0)
            scheduler.step(*([1.0] if name == "plateau" else []))
            rates[grow].append([group["lr"] for group in optimizer.param_groups])
    assert rates[True] == rates[False]


@pytest.mark.parametrize("use_buffers", [False, True])
def test_averaged_models_grow_along(use_buffers: bool) -> None:
    model = mlp([3, 5, 2], batch_norm=True)
    graph = analyze(model, X.float())
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=use_buffers)
    optimizer = optim.Adam(model.parameters(), lr=0.05)
    x, y = X.float(), Y.float()

    def step() -> None:
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        average.update_parameters(model)

    step(), step()
    average.eval()
    old, kept = average(x), average.module[0].weight.detach().clone()
    move = widen(model, graph, "0", 2)
    layer = nn.Sequential(nn.Linear(3, 3), nn.PReLU(3, init=1.0))
    B = layer[0].weight.detach().double()
    insert = Insert("0", layer, B.inverse(), -B.inverse() @ layer[0].bias.detach().double())
    receipt = transaction(
        model, [move, insert], graph, optimizer=optimizer, averaged=[average], probe=x
    )
    assert int(average.n_averaged) == 2
    assert torch.allclose(average(x), old, atol=1e-4)
    assert list(average.module.state_dict()) == list(model.state_dict())
    receipt.undo()
    assert torch.equal(average.module[0].weight, kept)
    transaction(model, [move], graph, optimizer=optimizer, averaged=[average], probe=x)
    assert torch.equal(average.module[0].weight[:5], kept)
    before = average.module[0].weight.detach().clone()
    step()
    torch.testing.assert_close(average.module[0].weight, 0.5 * (before + model[0].weight))
    assert int(average.n_averaged) == 3


def test_grad_scaler_goes_on() -> None:
    model, graph = net()
    optimizer, scaler = (
        optim.Adam(model.parameters(), lr=0.01),
        torch.amp.GradScaler("cpu", init_scale=1024.0),
    )
    losses = []
    for step in range(6):
        if step == 3:
            transaction(model, [widen(model, graph, "0", 2)], graph, optimizer=optimizer, probe=X)
        optimizer.zero_grad()
        loss = (model(X) - Y).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)
    assert scaler.get_scale() == 1024.0


def test_wrapped_optimizers_hooks_and_schedulers_are_not_stepped_by_the_surgery() -> None:
    class Wrapper:
        def __init__(self, optimizer: optim.Optimizer) -> None:
            self.optimizer = optimizer

    model, graph = net()
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    calls = []
    scheduler = lr_scheduler.StepLR(optimizer, 1)
    train(model, optimizer, 1)
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    counted = scheduler.state_dict()
    state = torch.get_rng_state()
    transaction(model, [widen(model, graph, "0", 2)], graph, optimizer=Wrapper(optimizer), probe=X)
    assert calls == []
    assert scheduler.state_dict() == counted
    assert torch.equal(torch.get_rng_state(), state)
    assert [p.shape for p in optimizer.param_groups[0]["params"]] == [
        p.shape for p in model.parameters()
    ]


def test_state_dict_goes_into_a_fresh_optimizer_of_the_grown_model() -> None:
    model, graph = net()
    optimizer = optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    train(model, optimizer, 2)
    transaction(model, [widen(model, graph, "0", 2)], graph, optimizer=optimizer)
    transaction(
        model, [Insert("2", nn.Linear(7, 7), torch.eye(7))], analyze(model, X), optimizer=optimizer
    )
    train(model, optimizer, 1)
    twin = copy.deepcopy(model)
    fresh = optim.AdamW(twin.parameters(), lr=0.01)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(model, optimizer, 3) == train(twin, fresh, 3)
