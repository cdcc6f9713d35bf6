"""What a round says of its candidates, and of what it can't look at."""

import copy
import dataclasses
import json
import pickle

import pytest
import torch
from graph_nets import Net
from growth_cases import X, Y, net
from torch import nn
from torch.nn import functional as F

import senn
from senn.cli.show import _change
from senn.errors import SennError


def test_a_growth_round_says_what_was_taken_and_what_was_refused_by_how_much():
    grower = senn.Grower(net(), samples=len(X), moves=("width",))
    events = grower.grow([(X, Y)])
    found = grower.last_round
    assert found is not None
    assert (
        sum(one.candidate.units for one in found.accepted)
        == sum(event.units for event in events)
        > 0
    )
    assert all(one.margin > 0 for one in found.accepted)
    assert found.refused
    assert all(one.margin <= 0 for one in found.refused)
    margins = [one.margin for one in found.refused]
    assert margins == sorted(margins, reverse=True)
    one = found.refused[0]
    sure = one.candidate.expected_decrease - one.candidate.held_out_stderr / (
        2 * one.candidate.loss_per_nat
    )
    assert one.margin == pytest.approx(sure - one.price)
    assert sum(found.eta_by_map.values()) == pytest.approx(found.eta)
    assert found.n_samples_seen == found.samples == len(X)
    assert found.architecture == (events[0].width_before,) != grower.architecture
    assert json.loads(json.dumps(found.as_dict())) == found.as_dict()


def test_a_round_that_refuses_everything_says_so_too():
    grower = senn.Grower(
        net(), samples=len(X), policy=senn.PricePolicy(kappa=100.0), moves=("width", "depth")
    )
    assert grower.grow([(X, Y)]) == []
    assert grower.last_round is not None
    assert grower.last_round.accepted == ()
    assert {one.candidate.kind for one in grower.last_round.refused} == {
        "widen"
    }  # layers were not even drawn


@pytest.mark.parametrize(
    ("x", "y", "loss", "message"),
    [
        (
            torch.zeros(20, 3),
            Y[:20],
            F.cross_entropy,
            "the model's forward pass fails on this batch: RuntimeError: mat1",
        ),
        (
            X[:20],
            Y[:20] + 9,
            F.cross_entropy,
            "the loss cross_entropy fails on outputs.*out of bounds",
        ),
        (
            X[:20],
            Y[:20] + 9,
            lambda y, t: F.cross_entropy(y, t),
            r"fails on outputs of shape \(20, 10\) and targets",
        ),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_and_growth_goes_on(x, y, loss, message):
    torch.manual_seed(0)
    grower = senn.Grower(net(), loss=loss)
    grower.grow([(X, Y)])
    with pytest.raises(SennError, match=message):
        grower.grow([(x, y)])
    grower.grow([(X, Y)])
    assert grower.rounds == 2


def test_a_printed_event_has_the_sign_of_its_attributes():
    event = senn.Grower(net(), samples=len(X), moves=("width",)).grow([(X, Y)])[0]
    assert event.expected_decrease > 0
    assert f"promised {event.expected_decrease:+.3g} nats" in str(event)
    state = {**event.state(), "kind": "prune", "expected_decrease": -0.25}
    assert "cost 0.25 nats" in str(senn.GrowthEvent.from_state(state))


def test_a_shown_run_has_the_sign_of_the_record():
    assert "realized +0.5" in _change(
        {"step": 3, "text": "widen 0: 2 -> 3", "realized_decrease": 0.5}
    )


class Choosing(senn.Policy):
    """Accepts one candidate of its offer, made into something by a function."""

    def __init__(self, made):
        self.made = made

    def choose(self, candidates, accepted):
        return None if accepted else self.made(candidates[-1])


@pytest.mark.parametrize(
    "made",
    [dataclasses.replace, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))],
    ids=["equal", "copy", "pickle"],
)
def test_a_policy_may_return_an_equal_candidate(made):
    found = [
        senn.Grower(net(), policy=Choosing(one), samples=len(X)).grow([(X, Y)])
        for one in (lambda one: one, made)
    ]
    assert [event.as_dict() for event in found[0]] == [event.as_dict() for event in found[1]] != []


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            lambda one: "widen",
            r"the policy chose 'widen', which is none of the \d+ candidates that it was offered",
        ),
        (
            lambda one: dataclasses.replace(one, place="9"),
            r"the policy chose \w+ of 9: .*, which is none of the \d+ cand",
        ),
        (lambda one: 0, "the policy chose 0, which is none"),
    ],
)
def test_a_choice_that_was_not_offered_is_refused(made, message):
    model = net()
    grower = senn.Grower(model, policy=Choosing(made), samples=len(X))
    with pytest.raises(SennError, match=message):
        grower.grow([(X, Y)])
    assert grower.events == []
    grower.policy = senn.PricePolicy()
    assert grower.grow([(X, Y)])


def test_candidates_that_are_offered_together_have_different_keys():
    found = senn.Grower(net(), samples=len(X)).score_candidates([(X, Y)])
    keys = [one.key for one in found]
    assert len(set(keys)) == len(keys) > len({(one.kind, one.place) for one in found})


def test_an_identity_insertion_is_worth_the_same_in_rotated_outputs():
    """The map behind it has rotated outputs, which the next map turns back: only coordinates change."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1500, 3, generator=g, dtype=torch.float64)
    y = (x[:, 0] + x[:, 1] * x[:, 2] > 0).long() + (x[:, 2] > 1).long()
    turned = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64)).Q
    gains = []
    for rotation in (torch.eye(3, dtype=torch.float64), turned):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 3)).double()
        with torch.no_grad():
            model[1].weight.copy_(rotation @ model[1].weight)
            model[1].bias.copy_(rotation @ model[1].bias)
            model[2].weight.copy_(model[2].weight @ rotation.mT)
        grower = senn.Grower(model, samples=10**7, moves=("depth",), ignore=["0", "2"])
        found = grower.score_candidates([(x, y)])
        gains.append([one.gain for one in found if one.place == "1" and "identity" in one.detail])
    assert gains[0]
    assert gains[1] == pytest.approx(gains[0], rel=0.02)


def gated(m, x):
    """A gated residual: one weight makes the stream's units, two rows each, and reads them."""
    hidden = m.embed(x)
    return m.head((hidden + F.glu(m.gate(hidden))).mean(1))


def mixer(m, x):
    """A token mixer without a norm: the channels of `embed` are locations of `first` and `second`."""
    hidden = m.embed(x)
    return m.head((hidden + m.second(m.first(hidden.mT).relu()).mT).mean(1))


def per_head(m, x):
    """One map for all heads, which are its locations."""
    heads = m.embed(x).unflatten(-1, (-1, 2))
    return m.head(m.second(m.first(heads).relu()).flatten(2).mean(1))


ROLES = {
    gated: {"embed": (3, 4), "gate": (4, 8), "head": (4, 2)},
    mixer: {"embed": (3, 4), "first": (6, 5), "second": (5, 6), "head": (4, 2)},
    per_head: {"embed": (3, 4), "first": (2, 5), "second": (5, 2), "head": (4, 2)},
}


@pytest.mark.parametrize("forward", ROLES)
def test_a_weight_or_a_dimension_may_have_two_roles(forward):
    torch.manual_seed(0)
    model = Net(forward, **ROLES[forward]).double()
    x = torch.randn(96, 6, 3, dtype=torch.float64)
    y = (x[:, 0, 0] * x[:, 1, 1] > 0).long()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    grower = senn.Grower(
        model,
        optimizer,
        policy=senn.PaperPolicy(tau=1e-3, alpha=1e-6),
        samples=10_000,
        moves=("width",),
        candidate_config=senn.CandidateConfig(units=16, data_direction_fraction=0.0),
        max_width=12,
    )
    bought = []
    for _ in range(2):
        before = model(x).detach()
        bought += grower.grow([(x, y)])
        assert torch.allclose(model(x), before, rtol=0, atol=1e-12)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert bought


def test_locations_that_are_units_are_no_place_for_gradient_ascent():
    config = senn.CandidateConfig(ascent_steps=1)
    grower = senn.Grower(Net(mixer, **ROLES[mixer]), samples=96, candidate_config=config)
    batch = torch.randn(96, 6, 3), torch.arange(96) % 2
    with pytest.raises(SennError, match="to which the units of embed are locations"):
        grower.grow([batch])
