"""Ascent of candidates: uphill on the fit fold, and nothing else touched."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from senn.candidates.candidate_config import CandidateConfig
from senn.candidates.gain_ascent import GainObjective, optimize_candidates
from senn.graph import analyze
from senn.grower import Grower
from senn.kfac.capture import capture
from senn.kfac.factors import kronecker_factors
from senn.kfac.loss_metric import LossMetric
from senn.nn import MLP
from senn.policies import PaperPolicy
from senn.scoring.formulas import residual_cross, width_gain_bound
from senn.scoring.pool import select
from senn.surgery import apply_moves, calibrate_batch_norm


class Forked(nn.Module):
    """Two maps read the first layer's units, one of them through a normalisation."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(5, 3), nn.BatchNorm1d(3)
        self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.left(h) + self.right(torch.relu(self.norm(h)))


class Tokens(nn.Module):
    """Each unit is read at four places: p = 4 columns a unit."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 3), nn.Linear(12, 2)

    def forward(self, x):
        tokens = torch.stack([x, x.flip(1), x * 2, x.roll(1, 1)], 1)
        return self.last(torch.relu(self.first(tokens)).flatten(1))


MODELS = {
    "relu": lambda: MLP(5, (3, 4), 2),
    "rational": lambda: MLP(5, (3,), 2, activation="rational"),
    "batch norm": lambda: MLP(5, (3, 3), 2, norm="batch"),
    "two consumers": Forked,
    "four columns": Tokens,
}


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 5, generator=generator)
    y = torch.stack([(x[:, 0] * x[:, 1]).sin(), x[:, 2].abs()], 1)
    return x, y


def make(name):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return MODELS[name]()


def sampled(model, data, ascent, units=8):
    """The candidates of a round."""
    recipe = CandidateConfig(units=units, ascent_steps=ascent)
    grower = Grower(
        model, None, F.mse_loss, PaperPolicy(), moves=("width",), candidate_config=recipe, seed=3
    )
    grower.score_candidates([data])
    return grower.candidate_set


def objective_of(model, data, candidates=None, weights=None, units=12):
    """An objective over sampled candidates, and the candidates."""
    x, y = data
    graph = analyze(model, x[:4])
    candidates = candidates or sampled(model, data, 0, units)
    signs = torch.Generator().manual_seed(9)
    return GainObjective(
        model=model,
        graph=graph,
        candidates=candidates,
        inputs=x,
        targets=y,
        metric=LossMetric(F.mse_loss),
        generator=signs,
        weights=weights,
    ), candidates


def bounds(model, data, candidates):
    """D' of each space's candidates one by one: the model widened by one unit, its moments, the formula."""
    x, y = data
    graph, metric, result = analyze(model, x[:4]), LossMetric(F.mse_loss), {}

    def rows(net, names):
        return capture(net, names, x, y, metric, generator=torch.Generator().manual_seed(9)).rows

    for group in graph.groups:
        names = [coupled.module for coupled in group.dims_of("consumer")]
        plain, found = rows(model, names), []
        for unit in range(candidates.widen[group.name].units):
            trial = copy.deepcopy(model)
            calibrate_batch_norm(
                trial,
                apply_moves(trial, [select(candidates.widen[group.name], [unit], group)], graph),
                x,
            )
            wide, total = rows(trial, names), 0.0
            for name in names:
                old, a, dz = (
                    plain[name].a.double(),
                    wide[name].a.double(),
                    plain[name].output_grad.double(),
                )
                new = a[:, ~a[:, :, None].isclose(old[:, None], atol=1e-5).all(0).any(1)]
                known = kronecker_factors(
                    old, dz, plain[name].pseudo_grad, locations=plain[name].locations
                )
                cross = residual_cross(
                    dz.mT @ new / len(dz), known.G, known.A, old.mT @ new / len(dz)
                )
                total += float(
                    width_gain_bound(
                        cross, new.mT @ new / len(dz), known.S, locations=known.locations
                    )
                )
            found.append(total)
        result[group.name] = torch.tensor(found, dtype=torch.float64)
    return result


@pytest.mark.parametrize("name", MODELS)
def test_the_hill_is_the_bound_of_theorem_3_2(name, data):
    model = make(name)
    objective, candidates = objective_of(model, data)
    score, slopes = objective.value_and_grad(objective.start)
    for group, expected in bounds(model, data, candidates).items():
        torch.testing.assert_close(score[group], expected, rtol=5e-3, atol=1e-8)
        assert all(bool(slope.any()) for slope in slopes[group].values())


@pytest.mark.parametrize("name", MODELS)
def test_gains_rise(name, data):
    model = make(name)
    objective, candidates = objective_of(model, data)
    low, high = (
        bounds(model, data, candidates),
        bounds(
            model,
            data,
            optimize_candidates(objective, candidates, CandidateConfig(ascent_steps=15)),
        ),
    )
    for group in low:
        assert (high[group] > low[group] * 0.999).float().mean() > 0.9
        assert high[group].median() > 1.2 * low[group].median()


def test_held_out_samples_stay_unseen(data):
    x, y = data
    model = make("relu")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))
    moved, fitted = y.clone(), y.clone()
    moved[order[len(x) // 2 :]] += 5.0
    fitted[order[: len(x) // 2]] *= y[order[: len(x) // 2]]
    plain, same, other = (sampled(model, (x, targets), 5).widen for targets in (y, moved, fitted))
    for group, move in plain.items():
        for name, value in move.values.items():
            assert torch.equal(value, same[group].values[name])
    assert not torch.equal(
        plain["body.0"].values["body.0.weight"], other["body.0"].values["body.0.weight"]
    )


def test_nothing_else_is_touched(data):
    model = make("batch norm").train()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    sampled(model, data, 4)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_sample_of_weight_zero_is_a_missing_one(data):
    x, y = data
    model = make("rational")
    few, candidates = objective_of(model, (x[:40], y[:40]))
    weights = torch.cat([torch.full((40,), 2.0), torch.zeros(40)])
    weighted, _ = objective_of(model, data, candidates, weights)
    expected, score = few.value_and_grad(few.start)[0], weighted.value_and_grad(weighted.start)[0]
    torch.testing.assert_close(score["body.0"], expected["body.0"], rtol=1e-3, atol=1e-9)


def test_pre_activations_keep_their_scale(data):
    objective, candidates = objective_of(make("relu"), data)
    after = (
        optimize_candidates(
            objective, candidates, CandidateConfig(ascent_steps=10, ascent_step_size=5.0)
        )
        .widen["body.0"]
        .values
    )
    before = objective.spreads(objective.start)["body.0"]
    assert bool(
        (objective.spreads({"body.0": dict(after)})["body.0"] / before).log10().abs().max() < 1.001
    )
