"""A grower gives its model new classes and tokens beside its rounds, and records it."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import senn
from senn import SennError
from senn.training import GrowthSession, TrainConfig

X = torch.randn(128, 2, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] * X[:, 1] > 0).long()
THREE = torch.where(X[:, 0] > 0.8, 2, Y)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))


def begun(loss=F.cross_entropy, **settings):
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    grower = senn.Grower(model, optimizer, loss=loss, moves=["width"], **settings)
    return model, optimizer, grower


def train(model, optimizer, targets, steps=20):
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(X), targets).backward()
        optimizer.step()


def test_new_classes_come_between_rounds_and_growth_goes_on():
    model, optimizer, grower = begun()
    train(model, optimizer, Y)
    first = grower.grow([(X, Y)])
    before = model(X)
    event = grower.add_outputs(1, ["corner"], batch=(X, Y))
    assert (model(X)[:, :2] - before).abs().max() <= 1e-6
    assert str(event) == f"outputs 2: 2 -> 3 for 'corner', +{model[2].in_features + 1} parameters"
    assert (event.kind, event.round, event.gain) == ("outputs", 0, 0)
    assert event.loss_after - event.loss_before == pytest.approx(-math.log(0.99), rel=1)
    assert grower.events == [*first, event]
    train(model, optimizer, THREE, steps=60)
    grower.grow([(X, THREE)])
    assert grower.last_round.round == 2
    assert (model(X).argmax(1) == THREE)[THREE == 2].float().mean() > 0.8


def test_before_the_first_round_a_batch_is_needed():
    model, _, grower = begun()
    with pytest.raises(SennError, match=r"give batch=\.\.\., or call observe"):
        grower.add_outputs(1)
    grower.observe(X, Y)
    grower.add_outputs(1)
    assert model[2].out_features == 3


def test_undo_leaves_the_grower_as_it_was():
    model, optimizer, grower = begun()
    train(model, optimizer, Y)
    first = grower.grow([(X, Y)])
    former, graph = copy.deepcopy(model.state_dict()), grower.graph
    grower.add_outputs(2, batch=(X, Y)).undo()
    assert grower.events == first
    assert grower.graph is graph
    assert all(torch.equal(former[name], one) for name, one in model.state_dict().items())
    with pytest.raises(SennError, match="cannot be undone any more"):
        first[0].undo()  # it was followed by another change


def test_a_loss_with_class_weights_gets_them_first():
    loss = nn.CrossEntropyLoss(weight=torch.ones(2))
    model, _, grower = begun(loss)
    with pytest.raises(SennError, match=r"2 numbers in 'weight', one for each output: give it 3"):
        grower.add_outputs(1, batch=(X, Y))
    assert model[2].out_features == 2
    loss.weight = torch.ones(3)
    event = grower.add_outputs(1, batch=(X, Y))
    assert math.isnan(event.loss_before)
    assert event.as_dict()["loss_before"] is None
    assert math.isfinite(event.loss_after)


def test_a_loss_that_cant_take_the_new_outputs_rolls_back():
    def fixed(outputs, targets):
        return F.cross_entropy(outputs.view(-1, 2), targets)

    model, _, grower = begun(fixed)
    before = model(X)
    with pytest.raises(SennError, match="the loss fixed fails"):
        grower.add_outputs(1, batch=(X, Y))
    assert torch.equal(model(X), before)


def test_labels_of_their_own_begin_with_rows_of_zeros():
    loss = F.binary_cross_entropy_with_logits
    model, _, grower = begun(loss)
    grower.add_outputs(1, batch=(X[:8], torch.zeros(8, 3)))
    assert not model[2].weight[2].any()


def test_state_of_a_grower_goes_on_with_more_classes():
    model, optimizer, grower = begun()
    train(model, optimizer, Y)
    grower.grow([(X, Y)])
    grower.add_outputs(1, batch=(X, Y))
    twin, other = copy.deepcopy((model, optimizer))
    second = senn.Grower(twin, other, loss=F.cross_entropy, moves=["width"])
    second.load_state_dict(grower.state_dict())
    assert [str(one) for one in second.grow([(X, THREE)])] == [
        str(one) for one in grower.grow([(X, THREE)])
    ]


def test_a_session_records_it_and_resumes():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    recipe = TrainConfig(addition_rounds=(0.4, 0.8), pruning_rounds=(), moves=("width",))

    def go_on(session, model, optimizer, steps):
        for step in steps:
            train(model, optimizer, THREE if step > 5 else Y, steps=1)
            if session.needs_batch(step):
                session.add_batch((X, THREE if step > 5 else Y), step)
            session.grow(step)
            if step == 5:
                event = session.change(lambda one: one.add_outputs(1, batch=(X, Y)), step)
                assert session.history[-1]["text"] == str(event)

    session = GrowthSession(recipe)
    session.start(model, optimizer, steps=10, samples=len(X))
    go_on(session, model, optimizer, range(1, 7))
    twin, other = copy.deepcopy((model, optimizer))
    resumed = GrowthSession(recipe)
    resumed.start(twin, other, steps=10, samples=len(X), state=session.state_dict())
    for one, parts in ((session, (model, optimizer)), (resumed, (twin, other))):
        go_on(one, *parts, range(7, 11))
        one.close(10)
    assert session.history == resumed.history
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_new_tokens_are_an_event_as_well():
    torch.manual_seed(0)
    ids = torch.randint(0, 9, (64, 4))
    model = nn.Sequential(
        nn.Embedding(9, 4), nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 2)
    )
    optimizer = torch.optim.AdamW(model.parameters())
    grower = senn.Grower(model, optimizer, loss=F.cross_entropy)
    event = grower.resize_token_embeddings(11, batch=(ids, ids[:, 0] % 2))
    assert str(event) == "tokens 0: 9 -> 11, +8 parameters"
    assert model(torch.full((1, 4), 10)).shape == (1, 2)
    grower.grow([(ids + 2, ids[:, 0] % 2)])
