"""Outputs of classifiers that are scaled so that the probabilities are honest."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from senn.nn import MLP, ConvNet
from senn.training import TrainConfig, train
from senn.training.batches import Inputs, Rows
from senn.training.validation import output_scale


def drawn(factor, rows=20_000, classes=4):
    """Outputs, and classes that are drawn by what the outputs times a factor say."""
    generator = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(rows, classes, generator=generator)
    return Rows(x=z, y=torch.multinomial((factor * z).softmax(1), 1, generator=generator)[:, 0])


@pytest.mark.parametrize("factor", [0.2, 0.5, 0.8])
def test_the_factor_is_that_by_which_the_classes_were_drawn(factor):
    assert output_scale(nn.Identity(), drawn(factor), Inputs()) == pytest.approx(factor, rel=0.03)


def test_it_is_the_least_loss_by_weight():
    rows = drawn(0.4, rows=300)
    weighted = Rows(x=rows.x, y=rows.y, weight=torch.rand(300, generator=torch.Generator()) + 0.1)
    found = output_scale(nn.Identity(), weighted, Inputs())

    def loss(factor):
        each = F.cross_entropy(factor * rows.x.double(), rows.y, reduction="none")
        return float((weighted.weight * each).sum())

    assert all(loss(found) < loss(found + step) for step in (-0.01, 0.01))


@pytest.mark.parametrize("factor", [1.5, 40.0])
def test_outputs_that_are_too_unsure_stay(factor):
    assert output_scale(nn.Identity(), drawn(factor), Inputs()) == 1


def test_outputs_that_know_nothing_are_hardly_left():
    rows = drawn(1.0)
    assert output_scale(nn.Identity(), Rows(x=-rows.x, y=rows.y), Inputs()) < 0.051


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (MLP(5, (4, 3), 2, shortcut=True), torch.randn(6, 5)),
        (MLP(5, (), 2), torch.randn(6, 5)),
        (ConvNet(1, ((3,),), 2), torch.randn(6, 1, 8, 8)),
    ],
)
def test_networks_scale_their_outputs(model, x):
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.eval()
    before = model(x)
    model.scale_outputs(0.3)
    torch.testing.assert_close(model(x), 0.3 * before)


def noisy(task):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(400, 3, generator=generator)
    y = x[:, :1] + torch.randn(400, 1, generator=generator)
    return (x, (y[:, 0] > 0).long()) if task == "classification" else (x, y)


def fitted(task, **options):
    x, y = noisy(task)
    recipe = TrainConfig(hidden=(32,), epochs=60, grow=False, lr=0.02, patience=60, **options)
    held_out = torch.arange(250, 400)
    return train(
        x,
        y,
        task=task,
        outputs=2 if task == "classification" else 1,
        recipe=recipe,
        validation=held_out,
    )


def test_a_run_ships_honest_probabilities_and_the_same_predictions():
    x, y = noisy("classification")
    # the last epoch is the best by accuracy often enough, and too sure of itself
    plain, honest = (
        fitted("classification", calibrate=on, monitor="score") for on in (False, True)
    )
    assert plain.output_scale == 1
    assert 0.05 < honest.output_scale < 1
    torch.testing.assert_close(honest.model(x), honest.output_scale * plain.model(x))
    assert honest.validation["loss"] < plain.validation["loss"]
    assert honest.validation["accuracy"] == plain.validation["accuracy"]
    assert honest.validation["loss"] == pytest.approx(
        float(F.cross_entropy(honest.model(x[250:]), y[250:])), rel=1e-5
    )
    assert honest.history[-1]["output_scale"] == honest.output_scale


def test_numbers_stay_as_they_are():
    assert fitted("regression").output_scale == 1
