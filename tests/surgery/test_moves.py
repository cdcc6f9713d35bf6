"""Rounds in which some moves only may happen: `Grower.grow(moves=...)`, and the rounds of a default run."""

import copy
from dataclasses import replace

import pytest
import torch
from growth_cases import FEW, Take, X, Y, net, train
from sklearn.datasets import load_wine
from torch.nn import functional as F

import senn
from senn.errors import SennError, SurgeryError
from senn.policies import Policy, PricePolicy
from senn.training import TrainConfig
from senn.training import train as fit
from senn.training.builders import build_model
from senn.training.incremental import IncrementalTrainer
from senn.training.train_step import TrainStep

CHEAP = PricePolicy(kappa=1e-6, confidence=0.0, layer_cost=1.0, retention_factor=2.0)
"""Buys whatever promises anything."""


class Any(Policy):
    """Takes one candidate, whatever it is, and notes which kinds were on offer."""

    def __init__(self):
        self.offered = []

    def choose(self, candidates, accepted):
        self.offered.append({c.kind for c in candidates})
        return candidates[0] if candidates and not accepted else None


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model, before):
    now = model.state_dict()
    return now.keys() == before.keys() and all(
        torch.equal(now[name], tensor) for name, tensor in before.items()
    )


@pytest.mark.parametrize(
    ("moves", "kinds"),
    [
        (("width",), {"widen"}),
        (("depth",), {"insert"}),
        (("prune",), {"prune"}),
        (("width", "depth"), {"widen", "insert"}),
        (None, {"widen", "insert", "prune"}),
    ],
)
@pytest.mark.parametrize("seen", [False, True])
def test_a_round_offers_its_moves_only(moves, kinds, seen):
    """Also where batches were observed before, with all moves in view."""
    model, policy = net(4), Any()
    grower = senn.Grower(model, policy=policy, candidate_config=FEW)
    if seen:
        grower.observe(X, Y)
    events = grower.grow(None if seen else [(X, Y)], moves)
    assert policy.offered[0] == kinds
    assert {event.kind for event in events} <= kinds
    assert grower.moves == ("width", "depth", "prune")


def test_a_move_that_the_grower_may_not_make_is_not_made():
    policy = Any()
    grower = senn.Grower(net(4), policy=policy, candidate_config=FEW, moves=("width", "prune"))
    grower.grow([(X, Y)], ("width", "depth"))
    assert grower.moves == ("width", "prune")
    assert policy.offered[0] == {"widen"}
    offered = len(policy.offered)
    assert grower.grow([(X, Y)], ("depth",)) == []
    assert len(policy.offered) == offered


@pytest.mark.parametrize("moves", [("shrink",), ("prune", "shrink"), "prune"])
def test_an_unknown_move_is_refused_and_nothing_is_changed(moves):
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    train(model, optimizer, 3)
    grower = senn.Grower(
        model, optimizer, F.cross_entropy, CHEAP, candidate_config=FEW, moves=("width", "prune")
    )
    grower.observe(X, Y)
    before, held = state(model), copy.deepcopy(optimizer.state_dict())
    words = "^moves must be a sequence, each item a name, or None, not 'prune'$"
    if not isinstance(moves, str):
        words = "^moves may hold width, depth, prune, and 'shrink' is none of them$"
    with pytest.raises(SennError, match=words):
        grower.grow([(X, Y)], moves)
    assert same(model, before)
    assert str(optimizer.state_dict()) == str(held)
    assert (grower.moves, grower.rounds, grower.events) == (("width", "prune"), 0, [])
    assert grower.grow()  # what was observed before is still there


def test_a_round_of_removals_never_adds_and_sells_what_is_not_worth_keeping():
    model = net(12)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    train(model, optimizer, 40)
    grower = senn.Grower(
        model, optimizer, F.cross_entropy, CHEAP, candidate_config=FEW, samples=len(X)
    )
    costs = sorted(
        -c.expected_decrease for c in grower.score_candidates([(X, Y)]) if c.kind == "prune"
    )
    price = CHEAP.price(64 + 1 + 10, len(X))
    assert grower.grow(moves=("prune",)) == []  # none is worth less than twice that
    for keep, sold in ((0.99 * costs[0] / price, 0), (1.01 * costs[0] / price, 1)):
        grower.policy = replace(CHEAP, retention_factor=keep)
        events = grower.grow([(X, Y)], ("prune",))
        assert [(event.kind, event.width_before, event.width_after) for event in events] == sold * [
            ("prune", 12, 11)
        ]
    grower.policy = CHEAP  # the same grower buys again when it may
    assert any(event.kind != "prune" for event in grower.grow([(X, Y)]))


@pytest.mark.parametrize("broken", [[(X, Y, None, None)], [(X, Y[:3])], []])
def test_the_growers_moves_are_its_own_again_after_an_exception(broken):
    grower = senn.Grower(net(), policy=Any(), candidate_config=FEW, moves=("width", "depth"))
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever it is that a bad batch raises
        grower.grow(broken, ("width",))
    assert grower.moves == ("width", "depth")


def test_the_growers_moves_are_its_own_again_after_a_policy_failed():
    class Broken(Policy):
        def choose(self, candidates, accepted):
            raise ZeroDivisionError

    model = net()
    before = state(model)
    grower = senn.Grower(model, policy=Broken(), candidate_config=FEW)
    with pytest.raises(ZeroDivisionError):
        grower.grow([(X, Y)], ("depth",))
    assert grower.moves == ("width", "depth", "prune")
    assert same(model, before)


def test_the_growers_moves_are_its_own_again_after_a_rollback(monkeypatch):
    def fail(*args, **options):
        raise SurgeryError("rolled back")

    grower = senn.Grower(net(), policy=Take("widen"), candidate_config=FEW)
    monkeypatch.setattr("senn.scoring.applied_round.transaction", fail)
    with pytest.warns(UserWarning, match="rolled back"):
        assert grower.grow([(X, Y)], ("width",)) == []
    assert grower.moves == ("width", "depth", "prune")


def test_a_default_run_adds_early_and_removes_later(monkeypatch):
    asked = []

    grow = TrainStep.grow

    def listening(learner, batches, moves, validation=None):
        asked.append(moves)
        return grow(learner, batches, moves, validation)

    monkeypatch.setattr(TrainStep, "grow", listening)
    table = load_wine()
    x = torch.tensor(table.data, dtype=torch.float32)
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-2)
    y = torch.tensor(table.target)
    run = fit(x, y, task="classification", outputs=len(table.target_names), recipe=TrainConfig())
    assert asked == len(TrainConfig().addition_rounds) * [("width", "depth")] + len(
        TrainConfig().pruning_rounds
    ) * [("prune",)]
    total = next(record["steps"] for record in run.history if record["event"] == "epoch")
    growth = [record for record in run.history if record["event"] == "growth"]
    added = {record["step"] for record in growth if record["kind"] != "prune"}
    removed = {record["step"] for record in growth if record["kind"] == "prune"}
    assert added
    assert removed
    assert added <= {round(part * total) for part in TrainConfig().addition_rounds}
    assert removed <= {round(part * total) for part in TrainConfig().pruning_rounds}
    assert run.validation["accuracy"] > 0.95


class Everything(Policy):
    """Sells every unit but one."""

    def choose(self, candidates, accepted):
        return next((c for c in candidates if c.kind == "prune"), None)


def test_removals_that_were_rolled_back_are_recorded():
    recipe = TrainConfig(
        hidden=(24,),
        shortcut=False,
        lr=1e-2,
        epochs=40,
        batch_size=64,
        policy=Everything(),
        addition_rounds=(),
    )
    recipe = replace(recipe, pruning_rounds=(0.5,), moves=("prune",))
    run = fit(X, Y, task="classification", outputs=10, recipe=recipe)
    rollbacks = [record for record in run.history if record["event"] == "rollback"]
    # A return to the weights of the best epoch may come before.
    records = [record for record in rollbacks if "are those of epoch" not in record["text"]]
    assert records
    assert {(record["epoch"], record["step"]) for record in records} == {(20, 160)}
    raised = ("it raised the loss by", "it raised the validation loss by")
    assert all(any(one in record["text"] for one in raised) for record in records)
    assert run.architecture == (24 - (23 >> len(records)),)  # half as many at each further try
    online = IncrementalTrainer(
        build_model(64, 10, recipe), replace(recipe, growth_steps=360), "classification"
    )
    records = [record for _ in range(21) for record in online.partial_fit(X, Y)]
    assert {record["step"] for record in records if record["event"] == "rollback"} == {180}
