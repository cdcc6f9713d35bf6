"""Births: the natural step that new units begin with, what it promises, and what came of it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tests.helpers.growth_cases import FEW, Take, X, Y, net, train
from torch import nn
from torch.nn import functional as F

import senn
from senn.scoring import births, greedy
from senn.scoring.balance import balance, existing_ratio
from senn.scoring.births import Birth


class Stepped(Take):
    """`Take`, whose births are stepped."""

    birth = "stepped"


def grown(model, policy, x=X, y=Y, **options):
    options = {"candidate_config": FEW, **options}
    grower = senn.Grower(model, policy=policy, **options)
    return grower, grower.grow([(x, y)])


class TwoBranches(nn.Module):
    """Two groups of units that one map reads side by side, the first ones last."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 2), nn.Linear(64, 2)
        self.last = nn.Linear(4, 1, bias=bias)

    def units(self, x):
        return torch.cat([self.second(x), self.first(x)], 1).tanh()

    def forward(self, x):
        return self.last(self.units(x))


class EachPlace(Stepped):
    """Two units for every place, in one round."""

    def choose(self, candidates, accepted):
        taken = [one.place for one in accepted]
        fit = [one for one in candidates if one.kind == "widen" and taken.count(one.place) < 2]
        return fit[0] if fit else None


@pytest.mark.parametrize("bias", [True, False])
def test_a_step_of_full_length_is_the_dense_projection_of_the_gradient(monkeypatch, bias):
    """Squared error: on the fitting rows z moves by minus dz, projected on what is new in the units' activations.

    For all new columns of a map together, whichever groups they belong to.
    """
    for module in ("gains", "account_steps", "residual_statistics"):
        monkeypatch.setattr(getattr(senn.scoring, module), "DAMPING", 1e-12)
    monkeypatch.setattr(senn.scoring.residual_statistics, "UNIT_DAMPING", 1e-12)
    seen = []

    def perform(self: Birth, loss, *, stepped):
        batch = loss.__self__.last_batch
        fit = slice(0, batch.count // 2)
        x, target = batch.inputs[fit], batch.targets[fit]
        before, silent = self.model(x), (self.model.last.weight == 0).flatten()
        self.give(1.0)
        a = self.model.units(x)
        assert silent.sum() == 4
        old = torch.cat([a[:, ~silent], torch.ones(len(a), int(bias))], 1)
        new = a[:, silent] - old @ torch.linalg.lstsq(old, a[:, silent]).solution
        projected = new @ torch.linalg.lstsq(new, before - target).solution
        seen.append((self.model(x) - before, -projected))
        return 1.0, 0.0

    monkeypatch.setattr(Birth, "perform", perform)
    torch.manual_seed(0)
    model = TwoBranches(bias).double()
    grown(model, EachPlace("widen"), X.double(), Y[:, None].double(), loss=F.mse_loss)
    ((moved, truth),) = seen
    torch.testing.assert_close(moved, truth, rtol=1e-5, atol=1e-6)


def test_a_map_may_gain_columns_and_lose_outputs_in_one_round():
    """Two units come below a map whose own units go: its columns have a step for the outputs that stay."""

    class Both(Stepped):
        def choose(self, candidates, accepted):
            wanted = ("widen", "0") if len(accepted) < 2 else ("prune", "2")
            fit = [one for one in candidates if (one.kind, one.place) == wanted]
            return fit[0] if fit and len(accepted) < 3 else None

    model = net(hidden=6, layers=2)
    train(model, torch.optim.Adam(model.parameters(), 3e-3), 30)
    _, events = grown(model, Both("widen"), moves=("width", "prune"))
    assert [(one.kind, one.place) for one in events] == [("widen", "0"), ("prune", "2")]
    assert model[2].weight.shape == (5, 8)
    assert (events[0].step_length > 0) == bool(model[2].weight[:, 6:].any())
    assert events[0].step_length > 0


def conv() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 3, 2, stride=2),
        nn.ReLU(),
        nn.Conv2d(3, 4, 3, stride=2),
        nn.Flatten(),
        nn.Linear(196, 10),
    )


@pytest.mark.parametrize(
    ("make", "policy"),
    [
        (net, Stepped("widen", 3)),
        (conv, Stepped("widen", 2, place="1")),
        (conv, Stepped("widen", 2, place="3")),
        (lambda: net(layers=2), Stepped("insert", 2, detail="residual", place="2")),
        (lambda: net(layers=2), Stepped("insert", detail="identity", place="2")),
        (conv, Stepped("insert", detail="residual", place="5")),
    ],
    ids=["units", "before transposed", "before strided", "residual", "identity", "convolution"],
)
def test_a_birth_lowers_the_loss_keeps_its_promise_and_is_undone_bit_by_bit(make, policy):
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    train(model, optimizer, 100)
    before = copy.deepcopy(model.state_dict())
    grower, events = grown(model, policy, optimizer=optimizer)
    event = events[0]
    assert event.loss_after < event.loss_before
    assert 0 < event.expected_decrease < event.loss_before
    assert 0 < event.step_length <= births.STEP_FRACTION
    assert event.output_change < 1e-4  # of the silent addition, which is verified first
    event.undo()
    assert grower.events == []
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_silent_birth_promises_the_same_and_changes_nothing():
    _, (event,) = grown(net(), Stepped("widen", 3))
    model = net()
    outputs = model(X)
    _, (other,) = grown(model, Take("widen", 3))
    assert other.expected_decrease == event.expected_decrease
    assert other.step_length == 0
    torch.testing.assert_close(model(X), outputs)
    assert senn.Grower(net(), policy=Stepped("widen"), birth="silent").birth == "silent"


def test_a_promise_is_no_more_than_the_loss():
    for seed in range(3):
        _, events = grown(net(8, seed=seed), None, max_width=60)
        assert sum(event.expected_decrease for event in events) < events[0].loss_before


def test_two_places_of_one_round_share_one_measured_decrease():
    policy = Stepped("widen", 6)
    seen = []
    policy.choose = lambda candidates, accepted: next(
        (
            one
            for one in candidates
            if one.kind == "widen" and one.place not in {other.place for other in accepted}
        ),
        None,
    )
    model = net(layers=2)
    original = Birth.search
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Birth, "search", lambda self, loss: seen.append(original(self, loss)) or seen[-1]
        )
        _, events = grown(model, policy)
    assert len(events) == 2
    ((_, decrease),) = seen
    assert sum(one.expected_decrease for one in events) == pytest.approx(decrease)


def test_what_came_of_units_is_the_loss_without_them_and_looking_changes_nothing():
    model = net()
    grower, (event,) = grown(model, Stepped("widen", 3))
    before = copy.deepcopy(model.state_dict())
    grower.score_candidates([(X, Y)])
    # Nothing has been trained since: without the units the loss is what it was before them.
    assert event.realized_decrease == pytest.approx(event.loss_before - event.loss_after, rel=0.1)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_what_came_is_known_after_a_resume():
    events = []
    for resumed in (False, True):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        grower, _ = grown(model, Stepped("widen", 3), optimizer=optimizer)
        if resumed:
            state = grower.state_dict()
            grower = senn.Grower(model, optimizer, policy=Stepped("widen", 3), candidate_config=FEW)
            grower.load_state_dict(state)
        train(model, optimizer, 5)
        grower.score_candidates([(X, Y)])
        events.append(grower.events[0].realized_decrease)
    assert events[0] == events[1] > 0


@pytest.mark.parametrize(("activation", "is_balanced"), [(nn.ReLU, True), (nn.Tanh, False)])
def test_only_units_that_are_homogeneous_are_balanced(activation, is_balanced):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 3), activation(), nn.Linear(3, 10))
    incoming, outgoing = model[0].weight.norm(dim=1), model[2].weight.norm(dim=0)
    grown(model, Stepped("widen", 4))
    ratio = model[0].weight.norm(dim=1) / model[2].weight.norm(dim=0)
    same = torch.allclose(ratio[3:], incoming.median() / outgoing.median(), rtol=1e-3)
    assert same == is_balanced


def test_a_group_without_weights_on_one_side_stays():
    assert not balance([], existing_ratio([]), lambda: 0.0)


@pytest.mark.parametrize(
    ("loss", "length"),
    [
        (lambda length: (length - 0.3) ** 2, 0.3),
        (lambda length: (length - 2) ** 2, 1.0),
        (lambda length: length, 0.0),
        (lambda length: math.nan if length else 1.0, 0.0),
        (lambda length: math.nan if length > 0.4 else 1 - length, 0.25),
        (lambda length: 1.0, 0.0),
        (lambda length: 1 - length if length < 0.003 else 1e6, 2**-10),
        (lambda length: (length - 1e-5) ** 2, 1e-5),
    ],
)
def test_the_search_finds_the_lowest_point_within_the_step(loss, length):
    assert births._search(loss, loss(0.0)) == (
        pytest.approx(length),
        pytest.approx(loss(0.0) - loss(length)),
    )


def test_a_birth_that_all_rows_contradict_is_silent(monkeypatch):
    monkeypatch.setattr(Birth, "search", lambda self, loss: (1.0, 1e6))
    model = net()
    outputs = model(X)
    _, (event,) = grown(model, Stepped("widen", 3))
    assert event.step_length == 0
    torch.testing.assert_close(model(X), outputs)


def test_of_two_units_with_one_gain_the_one_is_chosen_of_which_more_is_new():
    # rows: gain, lower bound, held-out gain, standard error; the last unit doesn't hold out
    figures = torch.tensor([[1.0, 1.0, 4.0], [0.1, 0.6, 4.0], [0.8, 0.7, 0.1], [0.1, 0.1, 0.2]])
    worth = greedy._worth(figures.double(), "held_out_gain")
    torch.testing.assert_close(worth, torch.tensor([0.07, 0.36, -0.1]).double())
