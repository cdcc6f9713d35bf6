"""Networks that are trained beside the one of a run, and averaged with it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from senn.errors import SennError
from senn.nn import MLP, Ensemble
from senn.policies import PaperPolicy
from senn.training import Callback, TrainConfig, train
from senn.training.batches import Rows
from senn.training.member_plan import MemberPlan, member_epochs, plan_members
from senn.training.members import _Members, class_shares, fresh_copy, train_members

QUICK = TrainConfig(hidden=(5,), epochs=3, growth_steps=5, members=4, seed=3)


def rows(n=160, classes=True, weight=None, seed=0):
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    y = (x[:, 0] * x[:, 1] > 0).long() if classes else x[:, :1] * x[:, 1:2]
    return Rows(x=x, y=y, weight=weight)


def fit(recipe=QUICK, classes=True, **options):
    data, task = rows(classes=classes), "classification" if classes else "regression"
    return train(data.x, data.y, task=task, outputs=1 + classes, recipe=recipe, **options)


def together(data, held_out, classes=True, **plan):
    model = MLP(3, (5,), 1 + classes, shortcut=True)
    task = "classification" if classes else "regression"
    return _Members(model, data, held_out, MemberPlan(**plan), task=task, recipe=QUICK)


@pytest.mark.parametrize("classes", [True, False])
def test_the_outputs_of_all_networks_are_averaged(classes):
    result = fit(classes=classes)
    assert type(result.model) is Ensemble
    assert result.members == len(result.model.members) == 4
    x = rows().x
    each = torch.stack([member(x) for member in result.model.members])
    torch.testing.assert_close(result.model(x), each.mean(0))
    assert {member.hidden for member in result.model.members} == {result.architecture}


def test_every_row_is_unseen_by_the_member_that_predicts_it():
    result = fit()
    outputs, targets = result.unseen
    assert len(outputs) == 160
    # Each row has been dealt out once: their classes are those of the table.
    assert targets.sort().values.equal(rows().y.sort().values)
    data, held_out = rows(), rows(16, seed=1)
    members = together(data, held_out, count=4, cross_fits=True)
    for kept, fold in zip(members.kept_rows, members.folds, strict=True):
        seen = {tuple(row) for row in members.rows.x[kept].tolist()}
        assert not seen & {tuple(row) for row in fold.x.tolist()}
        assert len(kept) + len(fold) in (175, 176)
    whole = {tuple(row) for fold in members.folds for row in fold.x.tolist()}
    assert whole == {tuple(row) for row in data.x.tolist()}


def test_rows_that_somebody_has_chosen_for_validation_stay_held_out():
    result = fit(validation=torch.arange(20))
    assert result.unseen[1].equal(rows().y[:20])
    members = together(rows(), rows(16, seed=1), count=3)
    assert members.kept_rows.sort().values.equal(torch.arange(160).expand(2, -1))


@pytest.mark.parametrize("classes", [True, False])
def test_a_step_in_one_tensor_is_the_step_of_each_network_alone(classes):
    weight = torch.rand(160, generator=torch.Generator().manual_seed(1)) + 0.5
    members = together(
        rows(classes=classes, weight=weight), None, classes=classes, count=3, cross_fits=True
    )
    part = members.orders(epoch=0)[:, :64]
    alone = []
    for model, order in zip(members.models, part, strict=True):
        data = members.rows.take(order)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=4e-3, betas=(0.9, 0.99), weight_decay=0.15
        )
        outputs = model(data.x)
        squares = (outputs - data.y.view(64, -1)).square()[:, 0]
        losses = F.cross_entropy(outputs, data.y, reduction="none") if classes else squares
        (losses * data.weight).mean().backward()
        optimizer.step()
        alone.append(dict(model.named_parameters()))
    members.step(part, lr_factor=1.0)
    for number, one in enumerate(alone):
        for name, value in one.items():
            torch.testing.assert_close(members.parameters[name][number], value, rtol=0, atol=2e-6)


def test_the_same_seed_gives_the_same_members_and_another_one_others():
    first, again = fit().model.state_dict(), fit().model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    model = fit().model
    weights = [next(member.parameters()) for member in model.members]
    assert not any(weights[0].equal(other) for other in weights[1:])


@pytest.mark.parametrize("activation", ["relu", "rational"])
def test_members_in_one_tensor_compute_what_each_computes(activation):
    model = MLP(3, (5, 4), 2, activation=activation, shortcut=True)
    data = rows()
    members = _Members(model, data, None, MemberPlan(count=4), task="classification", recipe=QUICK)
    assert members.is_plain == (activation == "relu")
    for order in torch.tensor_split(members.orders(0), 4, dim=1):
        members.step(order, 1.0)
    stacked = members.outputs(data.x.expand(3, -1, -1), training=False)
    members.end_epoch()
    for found, one in zip(stacked, members.result().models, strict=True):
        torch.testing.assert_close(found, one(data.x))


def test_a_fresh_network_predicts_the_mean():
    model = MLP(3, (5, 4), 2, activation="rational", shortcut=True)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert not fresh_copy(model)(rows().x).any()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_interrupt_leaves_the_network_alone():
    class Interrupts(Callback):
        def on_members(self, record):
            raise KeyboardInterrupt

    result = fit(callbacks=[Interrupts()])
    assert result.interrupted
    assert isinstance(result.model, MLP)
    assert result.members == 1
    assert result.history[-1]["reason"] == "interrupted"


def test_how_many_there_are_follows_from_rows_and_limits():
    def count(rows=1000, **fields):
        return plan_members(TrainConfig(**fields), rows, cross_fits=True).count

    assert [count(rows) for rows in (1000, 20_000, 20_001, 100_000, 100_001)] == [8, 8, 4, 4, 1]
    for alone in (
        {"max_params": 9999},
        {"max_flops": 9999},
        {"grow": False},
        {"policy": "paper"},
        {"policy": PaperPolicy()},
        {"average": "ema"},
        {"optimizer": "natural-gradient"},
    ):
        assert count(**alone) == 1
        wanted = 1 if alone.keys() & {"average", "optimizer"} else 3
        assert count(members=wanted, **alone) == wanted
    assert count(max_seconds=9.0) == 8
    with pytest.raises(SennError, match="members=2 can't be combined with average='ema'"):
        count(members=2, average="ema")
    with pytest.raises(SennError, match="members=2 can't be combined with the optimizer 'lbfgs'"):
        count(members=2, optimizer="lbfgs")


def test_targets_are_smoothed_towards_the_shares_of_the_classes():
    weight = torch.linspace(0.5, 2, 160)
    members = together(rows(weight=weight), None, count=3)
    shares = class_shares(members.rows, members.models[0])
    y = members.rows.y
    assert float(shares[1]) == pytest.approx(float(weight[y == 1].sum() / weight.sum()))
    outputs = torch.randn(2, 160, 2)
    soft = 0.97 * F.one_hot(y, 2) + 0.03 * shares
    wanted = torch.stack([F.cross_entropy(one, soft, reduction="none") for one in outputs])
    torch.testing.assert_close(members._losses(outputs, y.expand(2, -1)), wanted)
    # the best constant prediction is still that of the shares
    logits = shares.log().expand(1, 160, 2).clone().requires_grad_()
    losses = members._losses(logits, y.expand(1, -1)) * weight
    losses.sum().backward()
    torch.testing.assert_close(logits.grad.sum(1), torch.zeros(1, 2), atol=1e-4, rtol=0)
    numbers = together(rows(classes=False), None, classes=False, count=2)
    values = torch.randn(1, 160, 1)
    wanted = (values - numbers.rows.y).square().mean(2)
    torch.testing.assert_close(numbers._losses(values, numbers.rows.y[None]), wanted)


def test_without_time_for_them_there_are_none():
    result = fit(TrainConfig(hidden=(5,), epochs=3, members=4, max_seconds=1e-3))
    assert result.members == 1
    assert any("no further networks" in one.get("text", "") for one in result.history)


@pytest.mark.parametrize(
    ("seconds", "fewest", "slow_from", "steps", "is_enough"),
    [
        (None, 1, 999, 60, True),
        (60.0, 6, 999, 60, True),
        (45.0, 4, 999, 40, True),
        (45.0, 5, 999, 20, False),  # as soon as the time of a step is known
        (45.0, 4, 25, 30, True),  # slower than it seemed: an epoch is ended
        (-1.0, 1, 999, 0, False),
    ],
)
def test_they_make_as_many_epochs_as_there_is_time_for(
    seconds, fewest, slow_from, steps, is_enough
):
    taken = []
    found = train_members(
        MLP(3, (5,), 2, shortcut=True),
        rows(),
        rows(16, seed=1),
        MemberPlan(count=3),
        task="classification",
        recipe=QUICK,
        epochs=6,
        batches=10,
        pause=lambda: taken.append(1.0 if len(taken) < slow_from else 9.0),
        clock=lambda: sum(taken),
        seconds=seconds,
        fewest=fewest,
    )
    assert len(taken) == steps
    assert (found is not None) == is_enough


@pytest.mark.parametrize(
    ("losses", "epochs"),
    [
        ([1.0, 0.8, 0.7, 0.6], 8),  # it gains while the rate falls
        ([1.0, 0.7, 0.75, 0.695], 4),  # by less than noise
        ([0.7, 0.8, 0.9, 1.0], 4),  # it was at its best before
        ([0.7, 0.6, None, 0.5], 4),
    ],
)
def test_members_are_trained_longer_where_the_run_gained_at_its_end(losses, epochs):
    rates = [0.1, 0.1, 0.06, 0.01]
    history = [{"event": "start"}] + [
        {"event": "epoch", "validation_loss": loss, "lr": lr}
        for loss, lr in zip(losses, rates, strict=True)
    ]
    assert member_epochs(history, 4) == epochs
    constant = [{**one, "lr": 0.1} for one in history]
    assert member_epochs(constant, 4) == 4
