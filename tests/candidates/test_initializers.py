"""Candidate units come from an object that a user may replace; what it says is checked, and nothing else changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import senn
from senn.candidates.initializers import (
    DataDirections,
    NewUnits,
    PlaceActivations,
    PlaceGradients,
    TorchInitialization,
)
from senn.errors import SennError


def batch(rows: int = 96) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 5, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 6)
    return x, (x[:, 0] * x[:, 1] > 0).long()


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2, bias=False)
    )


def grower(model: nn.Module, initializer: Any, units: int | None = 6, **others: Any) -> senn.Grower:
    config = senn.CandidateConfig(units=units, initializer=initializer)
    return senn.Grower(
        model, loss=F.cross_entropy, moves=("width",), candidate_config=config, **others
    )


class Recording:
    """The default's units, with what the places looked like."""

    def __init__(self, **outgoing: float) -> None:
        self.outgoing = outgoing
        self.places: dict[str, PlaceActivations] = {}
        self.gradients: dict[str, PlaceGradients] = {}

    def sample(self, place: PlaceActivations, count: int, generator: torch.Generator) -> NewUnits:
        self.places[place.map] = place
        self.gradients[place.map] = place.gradients()
        units = DataDirections().sample(place, count, generator)
        wanted = {
            name: torch.full((m, count * p), value)
            for name, (m, p) in place.outgoing_shapes.items()
            if (value := self.outgoing.get(place.group))
        }
        return NewUnits(weight=units.weight, bias=units.bias, outgoing=wanted)


def test_the_default_by_name_gives_the_numbers_of_the_default() -> None:
    found = []
    for initializer in (None, DataDirections(), Recording()):
        one = grower(mlp(), initializer)
        found.append(one.score_candidates([batch()]))
        values = [move.values for move in one.candidate_set.widen.values()]
        found.append([[*one.items()] for one in values])
    assert found[0] == found[2] == found[4]
    for other in (found[3], found[5]):
        for mine, theirs in zip(found[1], other, strict=True):
            assert [name for name, _ in mine] == [name for name, _ in theirs]
            assert all(torch.equal(a, b) for (_, a), (_, b) in zip(mine, theirs, strict=True))


def test_an_initializer_sees_activations_and_gradients_of_its_place() -> None:
    model, (x, y) = mlp(), batch()
    seen = Recording()
    grower(model, seen).observe(x, y)
    assert {name: one.outgoing_shapes for name, one in seen.places.items()} == {
        "0": {"2": (3, 1)},
        "2": {"4": (2, 1)},
    }
    first, gradients = seen.places["2"], seen.gradients["2"]
    hidden = model[:2](x)
    torch.testing.assert_close(sorted_rows(first.x), sorted_rows(hidden))
    torch.testing.assert_close(first.weight, model[2].weight)
    torch.testing.assert_close(first.bias, model[2].bias)
    # on half of the rows, those that steps are fitted on: the gradient of each row's own loss
    reader = gradients.readers["4"]
    assert len(reader.output_grad) == len(x) // 2
    probabilities = model[4](reader.a).softmax(1)
    labels = (reader.output_grad[:, 1] < 0).long()  # p - 1 at the label
    torch.testing.assert_close(reader.output_grad, probabilities - F.one_hot(labels, 2))
    torch.testing.assert_close(model[3](model[2](gradients.x)), reader.a)


def sorted_rows(rows: Tensor) -> Tensor:
    return rows.detach()[rows[:, 0].argsort()]


def test_gradients_are_given_where_locations_agree_and_left_out_behind_pooling() -> None:
    torch.manual_seed(0)
    pooled = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 3, 1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Flatten(),
        nn.Linear(16, 2),
    )
    seen = Recording()
    grower(pooled, seen).observe(torch.randn(12, 2, 4, 4), torch.arange(12) % 2)
    assert seen.places["0"].outgoing_shapes == {"2": (3, 1)}
    assert seen.places["2"].outgoing_shapes == {"5": (4, 9)}
    assert seen.places["0"].x.shape[1] == seen.gradients["0"].x.shape[1] == 18
    assert {name: [*one.readers] for name, one in seen.gradients.items()} == {
        "0": ["2"],
        "2": [],
        "5": [],
    }  # the last one is read once a sample, not once a pixel
    torch.testing.assert_close(
        seen.gradients["0"].readers["2"].a[:, :4],
        F.relu(seen.gradients["0"].x @ pooled[0].weight.flatten(1).mT + pooled[0].bias),
    )


def test_own_directions_come_out_as_they_are_and_own_outgoing_weights_are_passed_on() -> None:
    model = mlp()
    mine = torch.eye(5)[:3] * 2

    @dataclass(frozen=True)
    class Axes:
        def sample(
            self, place: PlaceActivations, count: int, generator: torch.Generator
        ) -> NewUnits:
            if place.map != "0":
                return TorchInitialization().sample(place, count, generator)
            return NewUnits(weight=mine, outgoing={"2": torch.ones(3, 3)})

    one = grower(model, Axes(), units=3)
    before = model(batch()[0])
    one.observe(*batch())
    widen = one._session.candidate_set.widen["0"]
    assert torch.equal(widen.values["0.weight"], mine)
    assert torch.equal(widen.values["0.bias"], torch.zeros(3))
    assert set(one._session.candidate_set.outgoing) == {"0"}
    assert torch.equal(one._session.candidate_set.outgoing["0"]["2"], torch.ones(3, 3))
    torch.testing.assert_close(model(batch()[0]), before)


def test_units_are_born_toward_outgoing_weights_of_their_own_as_far_as_that_helps() -> None:
    x, y = batch()

    class Given:
        """One unit that is the product, whose outgoing weights help with one sign and harm with the other."""

        def __init__(self, sign: float) -> None:
            self.sign = sign

        def sample(
            self, place: PlaceActivations, count: int, generator: torch.Generator
        ) -> NewUnits:
            outgoing = {"1": self.sign * torch.tensor([[-0.5], [0.5]])}
            return NewUnits(weight=torch.eye(2)[:1], outgoing=outgoing)

    rows = torch.stack([(x[:, 0] * x[:, 1]).clamp(-1, 1), x[:, 2]], 1)
    for sign, helps in ((1.0, True), (-1.0, False)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 2))
        nn.init.zeros_(model[1].weight)
        policy = senn.PricePolicy(kappa=1e-9, confidence=0.0)
        one = grower(model, Given(sign), units=1, policy=policy, samples=96)
        events = one.grow([(rows, y)])
        if helps:
            (event,) = events
            new = model[1].weight[:, 1].detach()
            torch.testing.assert_close(new / new[1], torch.tensor([-1.0, 1.0]))
            assert 0 < float(new[1]) <= 0.5
            assert event.loss_after < event.loss_before
        else:  # no part of it helps, so the unit isn't kept
            assert (events, model[0].out_features) == ([], 1)
            assert "no length of the step" in one.rejections[0]


def test_units_as_torch_draws_them_have_its_bounds_and_its_spread() -> None:
    one = grower(mlp(), TorchInitialization(), units=4000)
    one.observe(*batch())
    values = one._session.candidate_set.widen["0"].values
    like = nn.Linear(5, 4000)
    for name in ("weight", "bias"):
        drawn, theirs = values[f"0.{name}"], getattr(like, name)
        assert float(drawn.abs().max()) <= 5**-0.5
        assert float(drawn.std() / theirs.detach().std()) == pytest.approx(1, abs=0.03)


WRONG: Mapping[str, NewUnits] = {
    r"gave weights of shape \(6, 4\) for '0', where \(6, 5\) is needed": NewUnits(
        weight=torch.ones(6, 4)
    ),
    r"gave biases of shape \(5,\) for '0', where \(6,\)": NewUnits(
        weight=torch.ones(6, 5), bias=torch.ones(5)
    ),
    "gave weights for '0' that aren't finite": NewUnits(weight=torch.full((6, 5), torch.nan)),
    "outgoing weights at '4', which doesn't read the units of '0'": NewUnits(
        weight=torch.ones(6, 5), outgoing={"4": torch.ones(2, 6)}
    ),
    r"outgoing weights at '2' of shape \(6, 3\) for '0', where \(3, 6\)": NewUnits(
        weight=torch.ones(6, 5), outgoing={"2": torch.ones(6, 3)}
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_fit_a_place_is_refused_by_name(message: str) -> None:
    class Wrong:
        def sample(
            self, place: PlaceActivations, count: int, generator: torch.Generator
        ) -> NewUnits:
            return WRONG[message]

    one = grower(mlp(), Wrong())
    with pytest.raises(SennError, match=message):
        one.observe(*batch())
    assert one._session.candidate_set is None


def test_copies_belong_to_the_default() -> None:
    with pytest.raises(SennError, match="copy_fraction belongs to the default initializer"):
        senn.CandidateConfig(copy_fraction=0.5, initializer=TorchInitialization())
