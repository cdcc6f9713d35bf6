"""Gradients of new units, measured on minibatches of a round's last batch."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

import senn
from senn.scoring.gradient_moments import MINIBATCHES, gradient_moments
from senn.surgery.optimizer_layers import OptimizerLayers
from senn.surgery.second_moments import find_second_moments


def data() -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(320, 4, generator=chance, dtype=torch.float64)
    return x, (x[:, 0] * x[:, 1] > 0).long()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Dropout(), nn.Linear(3, 2)
    ).double()


def test_mean_and_variance_are_those_of_the_gradients_of_minibatches() -> None:
    model, (x, y) = net(), data()
    model(x)  # running statistics
    grower = senn.Grower(model, None, F.cross_entropy, moves=("width",))
    grower.observe(x, y)
    session = grower._session
    assert session is not None
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    weights = [model[0].weight, model[4].bias]
    values = {p: p.detach() for p in weights}
    found = gradient_moments(session, values)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    batch = session.last_batch
    assert batch is not None
    model.eval()
    parts = zip(
        batch.inputs.split(320 // MINIBATCHES), batch.targets.split(320 // MINIBATCHES), strict=True
    )
    each = [torch.autograd.grad(F.cross_entropy(model(a), b), weights) for a, b in parts]
    for p, gradients in zip(weights, zip(*each, strict=True), strict=True):
        stacked = torch.stack(gradients)
        torch.testing.assert_close(found[p].mean, stacked.mean(0))
        torch.testing.assert_close(found[p].variance, stacked.var(0))
    moved = gradient_moments(session, {weights[0]: values[weights[0]] + 1})
    assert (moved[weights[0]].mean != found[weights[0]].mean).all()


def test_a_round_warms_second_moments_and_undo_takes_them_back() -> None:
    model, (x, y) = net(), data()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    grower = senn.Grower(
        model,
        optimizer,
        F.cross_entropy,
        samples=10**6,
        moves=("width",),
    )
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    events = grower.grow([(x[:160], y[:160]), (x[160:], y[160:])])
    assert events
    weight = model[4].weight
    (moment,) = find_second_moments(OptimizerLayers(optimizer), [weight])[weight]
    # each new entry has its own, where surgery alone would give all of a row the same
    new = moment.values[:, 3:]
    assert (new > 0).all()
    assert not torch.allclose(new, moment.values[:, :3].mean(1, keepdim=True).expand_as(new))
    events[0].undo()
    torch.testing.assert_close(model.state_dict(), before[0], rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state_dict(), before[1], rtol=0, atol=0)
