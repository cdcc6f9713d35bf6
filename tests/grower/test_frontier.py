"""Accuracy against size: pruned by the score on a copy, block by block, and never trained."""

import copy
import json
import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import senn
from senn import SennError
from senn.events import Frontier, FrontierPoint
from senn.surgery import Prune, transaction


def regression(units=12, rows=400, seed=0):
    """A hidden layer whose readout is the least-squares one, its rows, and its loss."""
    torch.manual_seed(seed)
    x = torch.randn(rows, 5)
    y = (x[:, :1] * x[:, 1:2]).tanh() + 0.1 * torch.randn(rows, 1)
    model = nn.Sequential(nn.Linear(5, units), nn.ReLU(), nn.Linear(units, 1)).double()
    x, y = x.double(), y.double()
    with torch.no_grad():
        fit(model, x, y)
    return model, x, y


def fit(model, x, y):
    """Refit the readout by least squares."""
    columns = torch.cat([model[:2](x), torch.ones(len(x), 1, dtype=x.dtype)], 1)
    readout = torch.linalg.lstsq(columns, y).solution
    model[2].weight.copy_(readout[:-1].T)
    model[2].bias.copy_(readout[-1])


def mse(x, y):
    return lambda net: {"loss": F.mse_loss(net(x), y).item()}


def test_where_the_loss_is_quadratic_the_expected_rise_is_the_true_one():
    model, x, y = regression()
    found = senn.frontier(model, F.mse_loss, [(x, y)], mse(x, y), step=0.01)
    first = found.points[0].figures["loss"]
    assert [point.removed for point in found.points] == list(range(12))
    for point in found.points[1:]:
        rise = point.figures["loss"] - first
        assert point.expected_rise == pytest.approx(rise, rel=0.02)


def test_what_stays_takes_over_as_well_as_a_new_fit_would():
    model, x, y = regression()
    seen = []

    def figures(net):
        refitted = copy.deepcopy(net)
        fit(refitted, x, y)
        seen.append(mse(x, y)(refitted)["loss"])
        return mse(x, y)(net)

    found = senn.frontier(model, F.mse_loss, [(x, y)], figures, step=0.25)
    assert [point.removed for point in found.points] == [0, 3, 6, 9]
    assert [point.figures["loss"] for point in found.points] == pytest.approx(seen, rel=1e-3)


def test_the_cheapest_unit_is_that_without_which_a_new_fit_is_best():
    model, x, y = regression(units=6)
    graph, losses = senn.analyze(model, x[:4]), []
    for unit in range(6):
        smaller = copy.deepcopy(model)
        transaction(smaller, [Prune("0", (unit,), {})], graph)
        with torch.no_grad():
            fit(smaller, x, y)
        losses.append(mse(x, y)(smaller)["loss"])
    found = senn.frontier(model, F.mse_loss, [(x, y)], mse(x, y), step=1 / 6, most=1 / 6)
    assert found.points[1].figures["loss"] == pytest.approx(min(losses), rel=1e-3)


def test_copies_of_units_go_first_and_cost_nothing():
    model, x, y = regression(units=6)
    with torch.no_grad():
        wide = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 1)).double()
        wide[0].weight.copy_(model[0].weight.repeat(2, 1))
        wide[0].bias.copy_(model[0].bias.repeat(2))
        wide[2].weight.copy_(model[2].weight.repeat(1, 2) / 2)
        wide[2].bias.copy_(model[2].bias)
    found = senn.frontier(wide, F.mse_loss, [(x, y)], mse(x, y), step=0.25)
    losses = [point.figures["loss"] for point in found.points]
    assert losses[1:3] == pytest.approx(losses[:1] * 2, rel=1e-3)
    assert losses[3] > 1.01 * losses[0]


class Normed(nn.Module):
    """Two hidden layers with batch norms and dropout."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(4, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Dropout(0.5),
            nn.Linear(10, 8), nn.BatchNorm1d(8, momentum=0.3), nn.ReLU(), nn.Linear(8, 3),
        )  # fmt: skip

    def forward(self, x):
        return self.body(x)


def classes(rows=240):
    torch.manual_seed(1)
    x = torch.randn(rows, 4)
    return x, (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 1).long()


def trained(model, x, y, steps=60):
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def accuracy(x, y):
    @torch.no_grad()
    def figures(net):
        outputs = net(x)
        hits = (outputs.argmax(1) == y).double().mean().item()
        return {"loss": F.cross_entropy(outputs, y).item(), "accuracy": hits}

    return figures


def test_the_model_and_the_random_state_are_left_as_they_were():
    x, y = classes()
    model = trained(Normed(), x, y)
    model.body[0].eval()
    model.body[2].register_forward_hook(lambda *_: None)
    state = copy.deepcopy(model.state_dict())
    gradients = [p.grad.clone() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    before = torch.get_rng_state()

    def figures(net):
        assert net is not model
        assert not any(module.training for module in net.modules())
        torch.rand(3)  # as a loader that shuffles does
        return accuracy(x, y)(net)

    found = senn.frontier(model, F.cross_entropy, [(x, y)], figures)
    assert len(found.points) > 5
    assert torch.equal(torch.get_rng_state(), before)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in state.items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert [module.training for module in model.modules()] == modes
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


def test_batch_norms_of_a_smaller_network_have_the_statistics_of_what_it_computes():
    x, y = classes()
    model = trained(Normed(), x, y)
    seen = []

    def figures(net):
        seen.append(copy.deepcopy(net))
        return accuracy(x, y)(net)

    parts = [(x[:120], y[:120]), (x[120:], y[120:])]
    senn.frontier(model, F.cross_entropy, parts, figures)
    assert torch.equal(seen[0].body[1].running_mean, model.body[1].running_mean)
    for net in seen[1:]:
        with torch.no_grad():
            entering = net.body[0](x)
        torch.testing.assert_close(net.body[1].running_mean, entering.mean(0))
        assert net.body[5].momentum == 0.3
        # variances are a mean of those of the parts, about means of their own
        of_parts = torch.stack([part.var(0) for part in entering.split(120)]).mean(0)
        torch.testing.assert_close(net.body[1].running_var, of_parts)


def test_a_frontier_is_the_same_each_time_and_whatever_context_is_open():
    x, y = classes()
    model = trained(Normed(), x, y)
    one = senn.frontier(model, F.cross_entropy, [(x, y)], accuracy(x, y))
    with torch.no_grad():
        other = senn.frontier(model, F.cross_entropy, [(x, y)], accuracy(x, y))
    with torch.inference_mode():
        third = senn.frontier(model, F.cross_entropy, [(x, y)], accuracy(x, y))
    assert one == other == third


def test_every_layer_keeps_a_unit_and_sizes_fall():
    x, y = classes()
    model = trained(Normed(), x, y)
    found = senn.frontier(model, F.cross_entropy, [(x, y)], accuracy(x, y), step=0.2, most=1.0)
    assert found.units == 18
    assert list(found.points[-1].widths.values()) == [1, 1]
    sizes = [point.parameters for point in found.points]
    assert sizes == sorted(set(sizes), reverse=True)
    removed = [sum(found.points[0].widths.values()) - sum(p.widths.values()) for p in found.points]
    assert [point.removed for point in found.points] == removed


def test_channels_of_convolutions_go_too():
    torch.manual_seed(0)
    x = torch.randn(80, 2, 8, 8)
    y = (x[:, 0].mean((1, 2)) > x[:, 1].mean((1, 2))).long()
    model = trained(senn.nn.ConvNet(2, [(8,), (8,)], 2), x, y)
    found = senn.frontier(model, F.cross_entropy, [(x, y)], accuracy(x, y), step=0.25)
    assert [point.removed for point in found.points] == [0, 4, 8, 12]


def test_most_units_of_a_net_for_digits_can_go_and_chance_takes_the_wrong_ones():
    x, y = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order].float() / 16, y[order].long()
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    trained(model, x[:1300], y[:1300], steps=150)
    figures = accuracy(x[1300:], y[1300:])
    found = senn.frontier(model, F.cross_entropy, [(x[:1300], y[:1300])], figures)
    start, sixty = found.points[0], found.points[6]
    assert found.share_removed(sixty) == pytest.approx(0.6, abs=0.01)
    assert start.figures["accuracy"] > 0.95
    assert start.figures["accuracy"] - sixty.figures["accuracy"] <= 0.012
    smaller = copy.deepcopy(model)
    moves = [Prune(name, tuple(range(38)), {}) for name in ("0", "2")]
    transaction(smaller, moves, senn.analyze(smaller, x[:4]))
    assert figures(smaller)["accuracy"] < start.figures["accuracy"] - 0.1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batches": []}, "no batch was given"),
        ({"step": 0.0}, "step must be a number above 0"),
        ({"most": 1.5}, "most must be a number"),
        ({"evaluate": lambda net: {"accuracy": 1.0}}, "must return the loss"),
        ({"model": nn.Linear(4, 3)}, "no place to grow by prune"),
    ],
)
def test_a_wrong_argument_is_told(change, words):
    x, y = classes()
    given = {"model": Normed(), "batches": [(x, y)], "evaluate": accuracy(x, y)} | change
    with pytest.raises(SennError, match=words):
        senn.frontier(loss=F.cross_entropy, **given)


# -- the record


def frontier_of(costs, units=100, step=10, scores=None):
    """A frontier with these costs of a unit, block by block."""
    points = []
    for block, rise in enumerate([0.0, *(sum(costs[: at + 1]) * step for at in range(len(costs)))]):
        removed = block * step
        figures = {"loss": 1 + rise}
        if scores is not None:
            figures["accuracy"] = scores[block]
        points.append(
            FrontierPoint(
                parameters=10 * (units - removed) + 5,
                removed=removed,
                widths={"0": units - removed},
                figures=figures,
                expected_rise=rise,
            )
        )
    return Frontier(points=tuple(points), units=units, score_name="accuracy" if scores else None)


def power(exponent):
    return [(95.0 - 10 * block) ** -exponent for block in range(9)]


@pytest.mark.parametrize("exponent", [0.5, 3.0, 4.5])
def test_a_power_of_the_number_of_units_is_found(exponent):
    found = frontier_of(power(exponent))
    assert found.cost_exponent == pytest.approx(exponent)
    assert found.units_at(1) == pytest.approx(100)
    assert found.units_at(8) == pytest.approx(100 * 8 ** (1 / exponent))
    assert found.units_at(0.2) * found.units_at(5) == pytest.approx(100**2)


def test_only_the_middle_of_a_frontier_tells_the_power():
    costs = power(3.0)
    costs[:2], costs[-1] = [1e-12, 1e-12], 1e3
    assert frontier_of(costs).cost_exponent == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("costs", "times", "words"),
    [
        (power(3.0)[:5], 2, "fewer than three blocks"),
        ([0.0] * 9, 2, "fewer than three blocks"),
        (power(-1.0), 2, "cost less"),
        (power(3.0), 11, "times_data must be"),
        (power(3.0), math.nan, "times_data must be"),
    ],
)
def test_a_frontier_that_says_nothing_about_other_data_says_so(costs, times, words):
    with pytest.raises(SennError, match=words):
        frontier_of(costs).units_at(times)


def test_the_smallest_network_within_a_loss_is_the_last_before_the_first_that_loses_more():
    scores = [0.9, 0.895, 0.885, 0.91, 0.5]
    found = frontier_of(power(3.0)[:4], scores=scores)
    assert found.smallest(0.01).removed == 10
    assert found.smallest(0.02).removed == 30
    assert found.smallest(0.0).removed == 0
    nan = frontier_of(power(3.0)[:4], scores=[0.9, math.nan, 0.9, 0.9, 0.9])
    assert nan.smallest(0.5).removed == 0


def test_without_a_score_the_loss_says_which_network_is_within():
    found = frontier_of([0.001, 0.002, 0.1])
    assert found.smallest(0.031).removed == 20


def test_a_record_is_read_as_it_was_written():
    found = frontier_of(power(3.0), scores=[0.5] * 10)
    assert Frontier.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    record = found.to_dict()
    record["points"][1]["figures"]["loss"] = None  # as JSON has NaN
    assert math.isnan(Frontier.from_dict(record).points[1].figures["loss"])


def test_a_frontier_is_shown_as_a_table():
    found = frontier_of(power(3.0), scores=[0.5] * 10)
    assert str(found).splitlines()[3] == f"30%  705  {found.points[3].figures['loss']:.4g}  0.5"
    assert found._repr_html_().count("<tr") == 11
