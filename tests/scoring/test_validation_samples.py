"""Removals are verified on samples that the model isn't trained on, and additions must pay on held-out ones."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tests.helpers.growth_cases import FEW, Take, X, Y, net
from torch.nn import functional as F

import senn
from senn.collectives import Communicator
from senn.errors import SennError, SurgeryError
from senn.kfac.loss_metric import LossMetric
from senn.scoring.validation_samples import PARTS, ValidationSamples, check_rise
from senn.surgery.moves import place_of


@pytest.mark.parametrize("n", [3, PARTS, 5 * PARTS])
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_of_parts_average_to_the_loss(n, weighted):
    model, metric = net(hidden=5), LossMetric(F.cross_entropy, "fisher")
    weights = torch.rand(n) if weighted else None
    given = (X[:n], Y[:n]) if weights is None else (X[:n], Y[:n], weights)
    samples = ValidationSamples.of(Communicator(), given, None)
    assert samples is not None
    losses = samples.losses(model, metric, None)
    assert len(losses) == min(n, PARTS)
    with torch.no_grad():
        each = F.cross_entropy(model(X[:n]), Y[:n], reduction="none")
    expected = each.mean() if weights is None else (weights / weights.mean() * each).mean()
    assert float(losses.mean()) == pytest.approx(float(expected), rel=1e-5)


def test_a_rise_is_compared_with_its_standard_error():
    before = torch.zeros(4, dtype=torch.float64)
    check_rise(before, before)
    check_rise(before, before - 1)
    with pytest.raises(SurgeryError, match=r"raised the validation loss by 0\.1, more than 0"):
        check_rise(before, before + 0.1)  # in every part
    # deviations of 1 and -1 by turns: sd 2 / sqrt(3), standard error 1 / sqrt(3), twice that 1.1547
    turns = torch.tensor([1.0, -1, 1, -1], dtype=torch.float64)
    check_rise(before, turns + 1.15)
    with pytest.raises(SurgeryError, match=r"by 1\.16, more than 1\.155"):
        check_rise(before, turns + 1.16)
    for value in (math.nan, math.inf):
        with pytest.raises(SurgeryError):
            check_rise(before, before + value)
    # what is hard for both networks cancels
    hard = torch.tensor([1.0, 2, 5, 9], dtype=torch.float64)
    check_rise(hard, hard)
    with pytest.raises(SurgeryError, match=r"by 0\.1, more than"):
        check_rise(hard, hard + 0.1)
    # one part has no standard error
    with pytest.raises(SurgeryError):
        check_rise(before[:1], before[:1] + 0.1)


def sleeping(unit: int = 4):
    """A net, one unit of which only some samples wake, and these samples."""
    model = net(hidden=6)
    with torch.no_grad():
        model[0].weight[unit], model[0].bias[unit] = 0.0, 0.0
        model[0].weight[unit, 0] = 3.0  # the corner pixel is always empty
        model[2].weight[:, unit] *= 5
        awake = X[:100].clone()
        awake[:, 0] = 1.0
        target = model(awake).argmax(1)
    return model, awake, target


def test_a_unit_that_only_other_samples_need_stays():
    model, awake, target = sleeping()
    for validation, gone in ((None, 1), ((awake, target), 0), ((X[100:200], Y[100:200]), 1)):
        copied = copy.deepcopy(model)
        before = copy.deepcopy(copied.state_dict())
        grower = senn.Grower(
            copied, moves=("prune",), policy=Take("prune", 1), candidate_config=FEW
        )
        events = grower.grow([(X, Y)], validation=validation)
        assert sum(event.units for event in events) == gone == 6 - copied[0].out_features
        if not gone:
            assert ["raised the validation loss" in one for one in grower.rejections] == [True]
            assert all(
                torch.equal(value, before[key]) for key, value in copied.state_dict().items()
            )


def test_validation_samples_that_are_none_change_nothing():
    model = net(hidden=6)
    grower = senn.Grower(model, moves=("prune",), candidate_config=FEW)
    for given, sentence in (({"x": X}, "is a mapping"), ((X[:1], Y[:1]), "a batch of one sample")):
        with pytest.raises(SennError, match=sentence):
            grower.grow([(X, Y)], validation=given)
    assert (grower.rounds, model[0].out_features) == (0, 6)


class Dear(Take):
    """Takes a unit, whatever it promises, and asks for something."""

    birth = "stepped"

    def min_decrease(self, kind, parameters, samples):
        return 1e-9


class DearOrLess(Dear):
    """The same, and one removal."""

    def choose(self, candidates, accepted):
        if not accepted:
            return super().choose(candidates, accepted)
        cheap = [one for one in candidates if one.kind == "prune"]
        return cheap[0] if cheap and len(accepted) < 2 else None


class EachPlace(Dear):
    """A unit for each place."""

    def choose(self, candidates, accepted):
        taken = {one.place for one in accepted}
        return next((one for one in candidates if one.place not in taken), None)


def perfect(**sizes):
    """A net whose loss is zero, exactly, so that nothing can lower it; its inputs and its targets."""
    model = net(**sizes)
    with torch.no_grad():
        model[-1].weight *= 1e5
        outputs = model(X).topk(2, 1)
        sure = outputs.values[:, 0] - outputs.values[:, 1] > 200
    return model, X[sure], outputs.indices[sure, 0]


def test_an_addition_that_brings_nothing_is_taken_back():
    model, x, y = perfect(hidden=4)
    assert F.cross_entropy(model(x), y) == 0
    optimizer = torch.optim.Adam(model.parameters())
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    grower = senn.Grower(model, optimizer, policy=Dear("widen"), candidate_config=FEW)
    assert grower.grow([(x, y)]) == []
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for key, found in optimizer.state_dict()["state"].items():
        assert all(torch.equal(found[name], value) for name, value in state["state"][key].items())
    (reason,) = grower.rejections
    assert reason.startswith("nothing was added at 0: no length of the step lowers the loss")
    # nothing is wrong with the place: it may grow in the next round
    grower.policy = Take("widen")
    assert [event.kind for event in grower.grow([(x, y)])] == ["widen"]


def test_the_place_that_was_wanted_most_is_tried_alone_where_all_together_bring_nothing():
    model, x, y = perfect(hidden=4, layers=2)
    grower = senn.Grower(model, policy=EachPlace("widen"), candidate_config=FEW, moves=("width",))
    assert grower.grow([(x, y)]) == []
    assert [one.partition(":")[0] for one in grower.rejections] == [
        "nothing was added at 0, 2",
        "nothing was added at 0",
    ]


def test_additions_that_are_left_after_one_has_failed_may_bring_nothing_too(monkeypatch):
    """The round ends without a change then, not with an error."""
    model, x, y = perfect(hidden=4, layers=2)
    real = senn.scoring.applied_round.transaction

    def fails_at_the_last(model, moves, *args, **kwargs):
        if any(place_of(move) == "2" for move in moves):
            raise SurgeryError("2 was rolled back")
        return real(model, moves, *args, **kwargs)

    monkeypatch.setattr("senn.scoring.applied_round.transaction", fails_at_the_last)
    grower = senn.Grower(model, policy=EachPlace("widen"), candidate_config=FEW, moves=("width",))
    with pytest.warns(UserWarning, match="2 was rolled back"):
        assert grower.grow([(x, y)]) == []
    assert [one.partition(":")[0] for one in grower.rejections] == [
        "2 was rolled back",
        "nothing was added at 0",
    ]
    assert (model[0].out_features, model[2].out_features) == (4, 4)


def test_removals_go_on_where_additions_bring_nothing():
    model, x, y = perfect(hidden=8, layers=2)
    assert F.cross_entropy(model(x), y) == 0
    policy = DearOrLess("widen", place="0")
    grower = senn.Grower(model, policy=policy, candidate_config=FEW, moves=("width", "prune"))
    events = grower.grow([(x, y)])
    assert [(event.kind, event.place, event.units) for event in events] == [("prune", "2", 1)]
    assert (model[0].out_features, model[2].out_features) == (8, 7)
