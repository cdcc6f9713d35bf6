"""`Grower` from end to end, with real optimizers on real data; looking must not touch, growing must not disturb."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from growth_cases import FEW, Take, X, Y, net, train
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

import senn
import senn.scoring.gains
import senn.scoring.residual_statistics
from senn.errors import SennError, SurgeryError
from senn.policies import Candidate, Policy

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, 3e-3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_growing_while_training(name: str):
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    grower = senn.Grower(
        model,
        optimizer,
        F.cross_entropy,
        candidate_config=FEW,
        samples=len(X),
        max_width=12,
        birth="silent",
    )
    train(model, optimizer, 30)
    state = {
        key: value.clone()
        for key, value in optimizer.state[model[0].weight].items()
        if key != "step"
    }
    with torch.no_grad():
        before = model(X)
    events = grower.grow([(X, Y)])
    assert events
    assert all(event.loss_after == pytest.approx(event.loss_before, rel=1e-5) for event in events)
    with torch.no_grad():
        torch.testing.assert_close(model(X), before, rtol=1e-4, atol=1e-5)
    widened = [event for event in events if event.kind == "widen"]
    assert widened
    assert widened[0].width_after == model[0].out_features == grower.architecture[0]
    for key, old in state.items():
        new = optimizer.state[model[0].weight][key]
        assert new.shape == model[0].weight.shape
        torch.testing.assert_close(new[:3], old, rtol=0, atol=0)
        assert bool(new[3:].any()) == (key == "exp_avg_sq")
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
        id(p) for p in model.parameters()
    }
    assert train(model, optimizer, 60) < 0.8 * events[-1].loss_after


@pytest.mark.parametrize(
    "policy",
    [Take("widen"), *(Take("insert", detail=it) for it in ("residual", "identity"))],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_function_is_preserved(policy, dtype):
    model = net(layers=2).to(dtype)
    x = X.to(dtype)
    grower = senn.Grower(model, policy=policy, candidate_config=FEW)
    before, state = model(x).detach(), torch.get_rng_state()
    (event,) = grower.grow([(x, Y)])
    assert torch.equal(torch.get_rng_state(), state)
    largest = float((model(x) - before).detach().abs().max() / before.abs().max())
    # an identity insertion inverts a basis that was drawn in float32
    assert largest < (1e-5 if dtype == torch.float32 else 1e-10)
    assert event.output_change == pytest.approx(largest, abs=1e-6)
    ratio = event.loss_after / event.loss_before
    assert ratio == pytest.approx(1, abs=1e-5 if dtype == torch.float32 else 1e-10)


def test_later_growth_below_new_units_leaves_the_function():
    """New units read what existed when they came; units that come below later are not among their inputs' sums."""
    model = net(layers=3)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    before = model(X).detach()
    for place in ("4", "2", "0"):
        (event,) = senn.Grower(
            model, optimizer, policy=Take("widen", 3, place=place), candidate_config=FEW
        ).grow([(X, Y)])
        assert event.width_after == 6 if place == "4" else event.width_after > 3
        torch.testing.assert_close(model(X), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ascent", [0, 4])
def test_the_units_that_were_scored_are_those_inserted(
    ascent: int, monkeypatch: pytest.MonkeyPatch
):
    """The network's own score afterwards is the one that the round promised."""
    monkeypatch.setattr(senn.scoring.gains, "DAMPING", 1e-9)
    monkeypatch.setattr(senn.scoring.residual_statistics, "UNIT_DAMPING", 1e-9)
    x, y = X.double(), (Y[:, None] / 5 - 1).double()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    candidate_config = senn.CandidateConfig(units=8, ascent_steps=ascent)
    grower = senn.Grower(
        model,
        loss=F.mse_loss,
        policy=Take("widen", 3),
        moves=("width",),
        candidate_config=candidate_config,
    )
    (event,) = grower.grow([(x, y)])
    fresh = senn.Grower(
        model, loss=F.mse_loss, moves=("width",), candidate_config=candidate_config, seed=1
    )
    fresh.score_candidates([(x, y)])
    assert abs(fresh.eta - event.eta_after) < 0.01 * event.gain
    assert event.eta_after == pytest.approx(event.eta_before + event.gain, rel=1e-9)


def test_undo_gives_everything_back_bit_by_bit():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    train(model, optimizer, 5)
    before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    grower = senn.Grower(model, optimizer, policy=Take("widen", 2), candidate_config=FEW)
    (event,) = grower.grow([(X, Y)])
    assert grower.architecture == (5,)
    event.undo()
    assert grower.architecture == (3,)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    for key, values in state["state"].items():
        assert all(
            torch.equal(value, optimizer.state_dict()["state"][key][name])
            for name, value in values.items()
        )
    with pytest.raises(SurgeryError, match="cannot be undone"):
        event.undo()
    (event,) = grower.grow([(X, Y)])
    train(model, optimizer, 1)
    with pytest.raises(SurgeryError, match="trained since"):
        event.undo()
    assert grower.architecture == (5,)


def test_budgets_hold():
    def grown(**budget: Any) -> nn.Sequential:
        model = net()
        policy = senn.PricePolicy(kappa=1e-6, confidence=0.0)
        senn.Grower(
            model, policy=policy, candidate_config=FEW, moves=("width",), samples=len(X), **budget
        ).grow([(X, Y)])
        return model

    assert grown()[0].out_features > 11
    assert grown(max_width=7)[0].out_features == 7
    assert grown(max_width=11, round_to=4)[0].out_features == 8
    by_place = grown(max_width={"0": 7, "2": 0})
    assert by_place[0].out_features == 7
    with pytest.raises(SennError, match="max_width names 'head', which is no place of this model"):
        grown(max_width={"head": 7})
    model = grown(max_params=640)
    assert 565 < sum(p.numel() for p in model.parameters()) <= 640
    for option in ("max_width", "max_params", "round_to"):
        with pytest.raises(SennError, match=option):
            senn.Grower(net(), **{option: 0})


@pytest.mark.parametrize(
    ("move", "kind"), [("width", "widen"), ("depth", "insert"), ("prune", "prune")]
)
def test_only_the_moves_asked_for_are_offered(move: str, kind: str):
    found = senn.Grower(net(layers=2), moves=(move,), candidate_config=FEW).score_candidates(
        [(X, Y)]
    )
    assert {c.kind for c in found} == {kind}
    every = senn.Grower(net(layers=2), candidate_config=FEW).score_candidates([(X, Y)])
    assert {c.kind for c in every} == {"widen", "insert", "prune"}
    assert [c.held_out_gain for c in every] == sorted(
        (c.held_out_gain for c in every), reverse=True
    )


def test_the_seed_decides():
    def first(seed: int) -> list[tuple[str, float]]:
        return [
            (c.place, c.held_out_gain)
            for c in senn.Grower(net(), candidate_config=FEW, seed=seed).score_candidates([(X, Y)])
        ]

    assert first(0) == first(0)
    assert first(0) != first(1)


class Mixed(nn.Module):
    """BatchNorm, dropout, two inputs and a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 64).requires_grad_(False)
        self.first, self.norm, self.drop = nn.Linear(64, 5), nn.BatchNorm1d(5), nn.Dropout(0.5)
        self.second, self.last = nn.Linear(5, 6), nn.Linear(6, 10)

    def forward(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        h = self.drop(torch.relu(self.norm(self.first(self.stem(x))) + shift))
        return self.last(torch.relu(self.second(h)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_looking_does_not_touch(dtype: torch.dtype):
    torch.manual_seed(0)
    model = Mixed().to(dtype)
    x, shift = X[:200].to(dtype), torch.ones(200, 1, dtype=dtype)
    model.train()
    model.norm.eval()
    model(x, shift).sum().backward()
    before = copy.deepcopy(model.state_dict())
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    objects = [id(p) for p in model.parameters()]
    flags = [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()
    ]
    state = torch.get_rng_state()
    found = senn.Grower(model, candidate_config=FEW).score_candidates([((x, shift), Y[:200])] * 2)
    assert found
    assert all(math.isfinite(c.gain) and math.isfinite(c.held_out_gain) for c in found)
    assert torch.equal(torch.get_rng_state(), state)
    assert [id(p) for p in model.parameters()] == objects
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()
    ] == flags
    assert grads.keys() == {name for name, p in model.named_parameters() if p.grad is not None}
    assert all(torch.equal(model.get_parameter(name).grad, grad) for name, grad in grads.items())


def test_a_net_with_norm_dropout_and_frozen_parts_grows():
    torch.manual_seed(0)
    model = Mixed()
    inputs = X, torch.ones(len(X), 1)
    model(*inputs)  # running statistics
    model.eval()
    before = model(*inputs).detach()
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
    grower = senn.Grower(
        model, optimizer, policy=Take("widen", 2, place="first"), candidate_config=FEW
    )
    (event,) = grower.grow([(inputs, Y)])
    assert event.width_after == 7 == model.norm.num_features
    assert model.training
    assert not model.stem.weight.requires_grad
    assert model.second.in_features == 7
    model.eval()
    torch.testing.assert_close(model(*inputs), before, rtol=1e-4, atol=1e-5)


def test_averages_schedulers_and_loaders():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    average = AveragedModel(model)
    loader = DataLoader(TensorDataset(X, Y), batch_size=200)
    grower = senn.Grower(
        model, optimizer, policy=Take("widen", 2), averaged=[average], candidate_config=FEW
    )
    (event,) = grower.grow(loader)
    assert grower.samples == 600
    assert event.width_after == 5 == average.module[0].out_features
    train(model, optimizer, 2)
    scheduler.step()
    average.update_parameters(model)
    assert optimizer.param_groups[0]["lr"] == 0.05
    torch.testing.assert_close(average(X).shape, model(X).shape)


def test_what_was_promised_is_kept_next_to_what_came():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    grower = senn.Grower(model, optimizer, policy=Take("widen", 3), candidate_config=FEW)
    (event,) = grower.grow([(X, Y)])
    assert event.realized_decrease is None
    assert 0 < event.expected_decrease < event.loss_before
    train(model, optimizer, 40)
    with torch.no_grad():
        units = model[:2](X)
        existing = torch.cat([units[:, :3], torch.ones(len(X), 1)], 1)
        # a pseudoinverse: one of the existing units is dead
        predicted = existing @ torch.linalg.pinv(existing.double()).float() @ units[:, 3:]
        without = model[2](torch.cat([units[:, :3], predicted], 1))
        brought = float(F.cross_entropy(without, Y) - F.cross_entropy(model(X), Y))
    grower.grow([(X, Y)], moves=("width",))
    assert event.realized_decrease == pytest.approx(brought, rel=1e-3)
    assert event.realized_decrease > 0
    assert grower.last_round.realized_decrease == event.realized_decrease
    again = senn.events.GrowthRound.from_state(grower.last_round.state())
    assert again == grower.last_round


def test_what_came_is_told_only_of_the_round_before():
    grower = senn.Grower(net(), policy=Take("widen", 1), candidate_config=FEW)
    told = []
    for moves in (("width",), ("prune",), ("width",)):
        grower.grow([(X, Y)], moves)
        told.append(grower.last_round.realized_decrease)
    assert [value is None for value in told] == [True, False, True]


class Everything(Policy):
    """Removes unit after unit, at whatever cost, and may add some first."""

    uses_joint_score = False

    def __init__(self, additions: int) -> None:
        self.additions = additions

    def choose(self, candidates, accepted) -> Candidate | None:
        if len(accepted) < self.additions:
            return next(c for c in candidates if c.kind == "widen" and c.place == "2")
        return next((c for c in candidates if c.kind == "prune" and c.place == "0"), None)

    def price(self, parameters: int, samples: int) -> float:
        return 0.0


def test_pruning_keeps_its_promise():
    model = net(hidden=12)
    with torch.no_grad():
        model[2].weight[:, [2, 5]] = 0
        model[0].weight[7], model[0].bias[7] = model[0].weight[1], model[0].bias[1]
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    grower = senn.Grower(
        model, optimizer, candidate_config=FEW, moves=("prune",), policy=Take("prune", 3)
    )
    weight = model[0].weight.detach().clone()
    (event,) = grower.grow([(X, Y)])
    assert event.units == 3
    kept = [unit for unit in range(12) if unit not in event.removed_units]
    torch.testing.assert_close(model[0].weight, weight[kept], rtol=0, atol=0)
    assert (
        list(event.removed_units) == event.as_dict()["removed_units"] == sorted(event.removed_units)
    )
    assert senn.events.GrowthEvent.from_state(event.state()).removed_units == event.removed_units
    assert model[0].out_features == 9
    assert event.loss_after - event.loss_before <= -event.gain + 1e-4 * event.loss_before + 1e-6
    assert grower.rejections == []


@pytest.mark.parametrize("additions", [0, 2])
def test_a_removal_that_breaks_its_promise_is_rolled_back(additions: int):
    """Removing nearly everything costs far more than a quadratic model says, removing less of it doesn't."""
    model = net(hidden=8, layers=2, seed=3)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    train(model, optimizer, 150)
    with torch.no_grad():
        before = float(F.cross_entropy(model(X), Y))
    moves = ("width", "prune") if additions else ("prune",)
    grower = senn.Grower(
        model, optimizer, candidate_config=FEW, moves=moves, policy=Everything(additions)
    )
    events = grower.grow([(X, Y)])
    assert [(event.place, event.units) for event in events if event.kind == "widen"] == [
        ("2", 2)
    ] * bool(additions)
    assert grower.rejections
    assert all("it raised the loss by" in reason for reason in grower.rejections)
    assert [len(event.removed_units) for event in events] == [
        event.units * (event.kind == "prune") for event in events
    ]
    gone = 8 - model[0].out_features
    assert (
        gone
        == 7 >> len(grower.rejections)
        == sum(event.units for event in events if event.kind == "prune")
    )
    cost = sum(-event.gain / 2 for event in events if event.kind == "prune")
    with torch.no_grad():
        assert float(F.cross_entropy(model(X), Y)) <= before + 2 * cost + 2e-4 * before
    train(model, optimizer, 2)


ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "one sample": (
        lambda: senn.Grower(net()).score_candidates([(X[:1], Y[:1])]),
        "a batch of one sample",
    ),
    "no batch": (lambda: senn.Grower(net()).grow(), "no batch has been observed"),
    "empty loader": (lambda: senn.Grower(net()).grow([]), "no batch has been observed"),
    "moves": (lambda: senn.Grower(net(), moves=("width", "hight")), "'hight' is none of them"),
    "no place": (
        lambda: senn.Grower(nn.Sequential(nn.Flatten())).score_candidates([(X, Y)]),
        "no place to grow",
    ),
    "nan": (
        lambda: senn.Grower(net()).score_candidates([(X * torch.nan, Y)]),
        "diverged or the batch holds bad values",
    ),
    "inf": (
        lambda: senn.Grower(net()).score_candidates([(X / 0, Y)]),
        "diverged or the batch holds bad values",
    ),
    "no weight": (
        lambda: senn.Grower(net()).score_candidates([(X, Y, torch.zeros(600))]),
        "sample weights",
    ),
    "lengths": (lambda: senn.Grower(net()).score_candidates([(X, Y[:50])]), "600.*50|50.*600"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_clear_sentence(case: str):
    run, message = ERRORS[case]
    with pytest.raises(SennError, match=message) as caught:
        run()
    assert "\n" not in str(caught.value)


def test_an_optimizer_of_another_model_is_refused_and_nothing_changes():
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SennError, match="optimizer"):
        senn.Grower(
            model, torch.optim.SGD(net().parameters(), 0.1), policy=Take("widen"), candidate_config=FEW
        ).grow([(X, Y)])  # fmt: skip
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert model[0].out_features == 3


def test_a_bad_batch_leaves_no_trace():
    """The candidates are not drawn from it, and the next batch is as if it had not been."""
    grower, clean = (senn.Grower(net(), candidate_config=FEW) for _ in range(2))
    with pytest.raises(SennError):
        grower.observe(X * torch.nan, Y)
    found = grower.score_candidates([(X, Y)])
    assert all(math.isfinite(c.held_out_gain) for c in found)
    assert found[0].score_limit == pytest.approx(clean.score_candidates([(X, Y)])[0].score_limit)


def test_an_interrupt_right_after_the_surgery_gives_everything_back(monkeypatch):
    torch.manual_seed(0)
    model = senn.nn.MLP(64, (2,), 10)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    train(model, optimizer, 8)
    grower = senn.Grower(model, optimizer, policy=Take("widen", 3), samples=len(X))
    grower.score_candidates([(X, Y)])
    before = list(model.parameters())

    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("senn.scoring.scoring_session.ScoringSession.probe_loss", interrupted)
        with pytest.raises(KeyboardInterrupt):
            grower.grow()
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))
    assert grower.events == []
    assert len(grower.grow([(X, Y)])) == 1


def test_blocks_of_units_have_finite_figures_even_where_nothing_is_left_to_gain():
    torch.manual_seed(0)
    model = senn.nn.MLP(4, (2,), 1)
    x = torch.randn(64, 4)
    with torch.no_grad():
        y = model(x)
    found = senn.Grower(model, loss=F.mse_loss, round_to=8, samples=64).score_candidates([(x, y)])
    assert found
    assert all(
        math.isfinite(figure)
        for c in found
        for figure in (c.gain, c.gain_lower_bound, c.held_out_gain, c.held_out_stderr)
    )
