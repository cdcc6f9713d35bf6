"""What the callbacks for loops of others share: when, on which batches, and what is told."""

import copy
import io
import logging
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from senn import SennError
from senn.pytree import Arguments
from senn.training import Callback, TrainConfig
from senn.training.growth_session import GrowthSession

X = torch.randn(96, 2, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0, 0] * X[:, 1, 1] > 0).long()
W = torch.linspace(0.5, 1.5, 96)
EARLY = TrainConfig(addition_rounds=(0.3, 0.6), pruning_rounds=(), growth_steps=20)


class Two(nn.Module):
    """Takes two inputs."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 2), nn.Linear(2, 2)

    def forward(self, left, right):
        return self.last(self.first(torch.cat([left, right], 1)).relu())


KINDS = {
    "tuple": lambda x: (x[:, 0], x[:, 1]),
    "mapping": lambda x: {"left": x[:, 0], "right": x[:, 1]},
    "arguments": lambda x: Arguments(x[:, 0], right=x[:, 1]),
}


def begun(kind="tuple", state=None, model=None, steps=20, recipe=EARLY, **options):
    torch.manual_seed(0)
    model = model or Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    session = GrowthSession(
        recipe, prepare=lambda rows: (KINDS[kind](X[rows]), Y[rows], W[rows]), **options
    )
    session.start(model, optimizer, steps=steps, samples=96, state=state)
    return session, optimizer


def steps(session, optimizer, first, last):
    """The loop of others."""
    for step in range(first, last + 1):
        rows = slice(16 * (step % 6), 16 * (step % 6) + 16)
        optimizer.zero_grad()
        F.cross_entropy(session.grower.model(X[rows, 0], X[rows, 1]), Y[rows]).backward()
        optimizer.step()
        if session.needs_batch(step):
            session.add_batch(rows, step)
            session.grow(step)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_bit_for_bit(kind):
    whole, optimizer = begun(kind)
    steps(whole, optimizer, 1, 9)
    model, trained = copy.deepcopy(whole.grower.model), copy.deepcopy(optimizer.state_dict())
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    steps(whole, optimizer, 10, 20)
    events = [record["event"] for record in whole.history]
    assert events.count("growth_round") == 2
    assert events[-1] == "growth"
    other, optimizer = begun(
        kind, torch.load(file, weights_only=True), model
    )  # plain values and tensors alone
    optimizer.load_state_dict(trained)
    steps(other, optimizer, 10, 20)
    assert other.history == whole.history
    one, another = other.grower.model.state_dict(), whole.grower.model.state_dict()
    assert one.keys() == another.keys()
    assert all(torch.equal(one[name], another[name]) for name in one)


def test_batches_are_kept_only_when_a_round_is_near():
    session, optimizer = begun(
        recipe=TrainConfig(
            addition_rounds=(0.5,), pruning_rounds=(), growth_steps=20, max_scoring_samples=40
        )
    )
    near = []
    for step in range(1, 21):
        if session.needs_batch(step):
            near.append(step)
        steps(session, optimizer, step, step)
    # the first says how many samples a batch has: three of 16 are the fewest that hold 40
    assert near == [1, 8, 9, 10]
    (record,) = [one for one in session.history if one["event"] == "growth_round"]
    assert (record["step"], record["n_samples_seen"]) == (10, 48)


def test_what_is_kept_is_a_copy():
    session, _ = begun()
    x = X[:16].clone()
    session.prepare = lambda rows: ((x[:, 0], x[:, 1]), Y[:16])
    session.add_batch(None, 1)
    x.zero_()
    (held,) = session.state_dict()["held"]
    assert torch.equal(held["args"][0], X[:16, 0])


def test_a_step_that_was_jumped_over_has_its_round_later():
    session, optimizer = begun()
    steps(session, optimizer, 1, 5)
    steps(session, optimizer, 8, 8)
    assert [one["step"] for one in session.history if one["event"] == "growth_round"] == [8]


def test_a_loop_without_a_planned_end_has_rounds_for_ever():
    session, optimizer = begun(steps=float("inf"))
    steps(session, optimizer, 1, 50)
    assert [one["step"] for one in session.history if one["event"] == "growth_round"] == [
        6,
        12,
        24,
        48,
    ]


def test_listeners_hear_what_the_history_has():
    class Listener(Callback):
        def __init__(self):
            self.heard = []
            for event in ("start", "growth_round", "growth", "rollback", "fault", "end"):
                setattr(self, f"on_{event}", self.heard.append)

    listener = Listener()
    session, optimizer = begun(callbacks=[listener], loss=lambda y, t: 1 / 0)
    steps(session, optimizer, 1, 6)
    session.close(6)
    assert [record["event"] for record in listener.heard] == ["start", "fault", "end"]
    assert listener.heard == session.history


def test_what_makes_no_sense_is_refused():
    with pytest.raises(
        SennError, match="this isn't the state of a run that grew: KeyError: 'steps'"
    ):
        begun(state={})
    with pytest.raises(SennError, match="nothing grows before training has begun"):
        GrowthSession().state_dict()


def test_what_fails_every_time_is_warned_of_once(caplog):
    caplog.set_level(logging.WARNING, logger="senn")
    session, optimizer = begun(loss=lambda y, t: 1 / 0)
    steps(session, optimizer, 1, 20)
    assert [record["step"] for record in session.history if record["event"] == "fault"] == [6, 12]
    assert caplog.text.count("the round was skipped") == 1


def test_a_recipe_that_is_none_is_refused():
    with pytest.raises(
        SennError, match=r"recipe must be a senn.training.TrainConfig or None, not 'x'"
    ):
        GrowthSession("x")


@dataclass
class Pair:
    x: torch.Tensor
    label: torch.Tensor


@pytest.mark.parametrize(
    ("batch", "is_kept"),
    [
        ((X[:16], {"label": Y[:16]}), True),
        (([X[:16], X[:16]], (Y[:16], Y[:16])), True),
        ((Pair(X[:16], Y[:16]), Y[:16]), False),
    ],
    ids=["mapping of targets", "list of inputs", "dataclass"],
)
def test_nested_batches_are_kept_in_a_state_where_a_file_can_hold_them(batch, is_kept):
    session, _ = begun()
    session.prepare = lambda rows: rows
    session.add_batch(batch, 1)
    saved = session.state_dict()
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert len(loaded["held"]) == is_kept
    other, _ = begun(state=loaded)
    held = other._started.batches.take()
    for one in held:
        assert pytree.tree_structure(one) == pytree.tree_structure(batch)
