"""The frontier of the network that a run keeps."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from senn.events import Frontier
from senn.nn import SinhOutput
from senn.training import TrainConfig, train
from senn.training.batches import Rows
from senn.training.image_training import image_config, train_images
from senn.training.loop import fit_model

MOVES = ("width", "prune")
RECIPE = TrainConfig(hidden=(6, 6), epochs=6, moves=MOVES, frontier=True, members=1, linear=False)


def data(rows=300):
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] * x[:, 1] > 0).long()


def run(recipe=RECIPE, **options):
    x, y = data()
    return train(x, y, task="classification", outputs=2, recipe=recipe, **options)


@pytest.fixture(scope="module")
def measured():
    return run()


def test_it_begins_with_the_network_that_is_kept(measured):
    first = measured.frontier.points[0]
    assert first.parameters == measured.parameters
    assert first.figures == pytest.approx(measured.validation)
    assert tuple(first.widths.values()) == measured.architecture
    assert measured.frontier.score_name == "accuracy"
    assert len(measured.frontier.points) > 3


def test_the_last_record_has_it_as_json(measured):
    end = json.loads(json.dumps(measured.history[-1]))
    assert Frontier.from_dict(end["frontier"]) == measured.frontier


def test_to_measure_it_changes_nothing_else(measured):
    plain = run(TrainConfig(hidden=(6, 6), epochs=6, moves=MOVES, members=1))
    assert plain.frontier is None
    assert plain.history[-1]["frontier"] is None
    ours, theirs = measured.model.state_dict(), plain.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert not measured.model.training

    def timeless(history):
        timed = ("seconds", "frontier")
        return [{k: v for k, v in one.items() if k not in timed} for one in history]

    assert timeless(measured.history) == timeless(plain.history)


def test_there_is_none_without_validation_rows():
    assert run(TrainConfig(epochs=2, validation_fraction=0.0, frontier=True)).frontier is None


@pytest.mark.parametrize("transform", ["none", "arcsinh"])
def test_a_regression_has_the_r2_of_the_numbers_themselves_as_its_score(transform):
    x, _ = data()
    y = x[:, :1] * x[:, 1:2]
    recipe = replace(RECIPE, target_transform=transform)
    result = train(x, y, task="regression", outputs=1, recipe=recipe)
    assert (type(result.model) is SinhOutput) == (transform == "arcsinh")
    assert result.frontier.score_name == "r2"
    assert result.frontier.points[0].figures == pytest.approx(result.validation)
    assert result.history[-1]["validation"] == pytest.approx(result.validation)


def test_weighted_rows_count_by_their_weights():
    x, y = data()
    weight = torch.ones(300)
    weight[::2] = 3.0
    result = train(x, y, task="classification", outputs=2, recipe=RECIPE, sample_weight=weight)
    assert result.frontier.points[0].figures == pytest.approx(result.validation)


def test_images_are_read_as_in_validation():
    pixels = torch.randint(
        0, 256, (120, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    labels = (pixels.float().mean((1, 2, 3)) > 127).long()
    config = image_config(hidden=(4, 4), epochs=2, growth_steps=2, frontier=True)
    result = train_images(pixels, labels, classes=2, recipe=config, device="cpu")
    assert result.frontier.points[0].figures == pytest.approx(result.validation)
    assert [*result.frontier.points[0].widths.values()] == [*result.architecture]


class Impatient(nn.Module):
    """A net that raises once it is smaller than it was."""

    def __init__(self, error):
        super().__init__()
        self.error = error
        self.first, self.last = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x):
        if self.first.out_features < 5 and not self.training:
            raise self.error
        return self.last(self.first(x).relu())


def fitted(error):
    torch.manual_seed(0)
    x, y = data()
    recipe = TrainConfig(epochs=2, grow=False, frontier=True)
    return fit_model(
        Impatient(error),
        Rows(x=x[:200], y=y[:200]),
        Rows(x=x[200:], y=y[200:]),
        task="classification",
        recipe=recipe,
        generator=torch.Generator().manual_seed(0),
    )


def test_an_interruption_leaves_it_out_and_the_run_is_complete():
    result = fitted(KeyboardInterrupt())
    assert result.frontier is None
    assert not result.interrupted
    assert result.history[-1]["reason"] == "all epochs done"
    assert not any(one["event"] == "fault" for one in result.history)


def test_what_goes_wrong_is_told_and_the_run_is_complete():
    result = fitted(ArithmeticError("too small"))
    assert result.frontier is None
    assert [one["text"] for one in result.history if one["event"] == "fault"] == [
        "sizes below the one that is kept weren't measured: too small"
    ]
    assert result.history[-1]["event"] == "end"
