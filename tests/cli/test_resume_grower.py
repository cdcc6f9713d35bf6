"""A grower that goes on after a break decides as one that had none, bit for bit."""

import copy
import functools
import math

import pytest
import torch
from growth_cases import FEW, X, Y, net
from surgery_cases import everything
from torch import nn

import senn
from senn.nn import Residual

POLICY = senn.PricePolicy(kappa=0.002)


def mixer() -> nn.Module:
    torch.manual_seed(0)
    stem = [
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
    ]
    branch = nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 6))
    return nn.Sequential(*stem, nn.Linear(108, 6), nn.Tanh(), Residual(branch), nn.Linear(6, 10))


def grown(model: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer, senn.Grower]:
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    return (
        model,
        optimizer,
        senn.Grower(model, optimizer, policy=POLICY, candidate_config=FEW, seed=3),
    )


def rounds(
    model: nn.Module, optimizer: torch.optim.Optimizer, grower: senn.Grower, numbers: range
) -> None:
    """Five steps and a round, several times."""
    for number in numbers:
        draw = torch.Generator().manual_seed(number)
        for _ in range(5):
            rows = torch.randint(len(X), (64,), generator=draw)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X[rows]), Y[rows]).backward()
            optimizer.step()
        grower.grow([(X[:300], Y[:300])], ("prune",) if number % 3 == 2 else None)


def broken_off(model: nn.Module, optimizer: torch.optim.Optimizer, grower: senn.Grower):
    """Another grower with what can be kept of the first one."""
    twin = copy.deepcopy(model)
    other = type(optimizer)(twin.parameters(), 3e-3)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    fresh = senn.Grower(twin, other, policy=POLICY, candidate_config=FEW, seed=8)
    fresh.load_state_dict(copy.deepcopy(grower.state_dict()))
    return twin, other, fresh


@pytest.mark.parametrize(
    "build", [lambda: net(layers=2), mixer], ids=["perceptron", "convolution and block"]
)
def test_what_follows_a_break_is_what_would_have_followed(build):
    model, optimizer, grower = grown(build())
    rounds(model, optimizer, grower, range(4))
    assert {event.kind for event in grower.events} >= {"widen"}
    held = everything(model), torch.get_rng_state().tolist()
    twin = broken_off(model, optimizer, grower)
    assert (everything(model), torch.get_rng_state().tolist()) == held
    rounds(model, optimizer, grower, range(4, 8))
    rounds(*twin, range(4, 8))
    fresh = twin[2]
    assert len(fresh.events) > 2
    assert repr([event.state() for event in fresh.events]) == repr(
        [event.state() for event in grower.events]
    )
    assert repr(fresh.last_round) == repr(grower.last_round)
    added = [event for event in fresh.events[:-4] if event.kind != "prune"]
    assert added
    assert all(event.realized_decrease is not None for event in added)
    assert [group.name for group in fresh.graph.groups] == [
        group.name for group in grower.graph.groups
    ]
    ours, theirs = twin[0].state_dict(), model.state_dict()
    assert [*ours] == [*theirs]
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert fresh.state_dict()["generator"].equal(grower.state_dict()["generator"])


def test_a_state_is_a_copy():
    model, optimizer, grower = grown(net(layers=2))
    rounds(model, optimizer, grower, range(1))
    state = grower.state_dict()
    before = copy.deepcopy(state)
    rounds(model, optimizer, grower, range(1, 4))
    assert repr(state) == repr(before)
    assert all(
        torch.equal(one["factor"], before["known"][name]["factor"])
        for name, one in state["known"].items()
    )
    assert state["known"]
    assert math.isfinite(state["eta"])


@functools.cache
def grower_of_two_rounds():
    model, optimizer, grower = grown(net(layers=2))
    rounds(model, optimizer, grower, range(2))
    return grower


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("known"),
        lambda state: state.update(open=[99]),
        lambda state: state.update(generator=torch.zeros(3, dtype=torch.uint8)),
        lambda state: state.update(rounds=None),
        lambda state: state["events"][0].update(color=1),
        lambda state: state["last_round"].update(accepted=[1]),
        lambda state: state.update(known={"0": {"factor": 1}}),
    ],
)
def test_what_is_no_state_is_refused_and_nothing_changes(change):
    grower = grower_of_two_rounds()
    before = repr(grower.state_dict())
    state = grower.state_dict()
    change(state)
    with pytest.raises(senn.SennError, match="isn't the state of a Grower"):
        grower.load_state_dict(state)
    assert repr(grower.state_dict()) == before


@pytest.mark.parametrize("observed", [0, 2])
def test_batches_that_raise_change_nothing(observed):
    """Neither the model nor what is known of it: the round that follows is the one that would have come anyway."""
    ours, theirs = grown(net(layers=2)), grown(net(layers=2))
    for model, optimizer, grower in (ours, theirs):
        rounds(model, optimizer, grower, range(2))
        for number in range(observed):
            grower.observe(X[50 * number :][:80], Y[50 * number :][:80])
    model, _, grower = ours

    def batches(last):
        yield X[:200], Y[:200]
        yield X[200:400], Y[200:400]
        yield from last()

    def broken():
        raise OSError("the disk is gone")

    for last, error in (
        (broken, OSError),
        (lambda: [(X[:9], Y[:8])], senn.SennError),
        (lambda: [3], senn.SennError),
    ):
        held, state = everything(model), repr(grower.state_dict())
        with pytest.raises(error):
            grower.grow(batches(last))
        assert everything(model) == held
        assert repr(grower.state_dict()) == state
    for one in (ours, theirs):
        one[2].grow([(X[:300], Y[:300])])
    assert repr(ours[2].last_round) == repr(theirs[2].last_round)
    assert repr([event.state() for event in grower.events]) == repr(
        [event.state() for event in theirs[2].events]
    )
