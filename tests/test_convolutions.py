"""Convolutions and models around them are scored by the same functions as linear layers."""

from __future__ import annotations

import pytest
import torch
from growth_cases import Take, X, Y, train
from torch import nn
from torch.nn import functional as F

import senn
from senn.curvature.capture import capture
from senn.curvature.output import OutputMetric
from senn.curvature.patches import patches

IMAGES = X.view(-1, 1, 8, 8)


@pytest.mark.parametrize(
    "settings", [{}, {"padding": 1}, {"stride": 2, "padding": 2}, {"dilation": 2}, {"padding": "same", "dilation": 2}]
)
def test_patches_are_those_of_the_convolution(settings):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 4, (3, 2), **settings).double(), torch.randn(5, 3, 9, 8, dtype=torch.float64)
    rows = patches(layer, x) @ layer.weight.flatten(1).T + layer.bias
    expected = layer(x)
    assert torch.allclose(rows, expected.movedim(1, -1).reshape(-1, 4))
    for kind, shape in ((nn.Conv1d, (5, 3, 9)), (nn.Conv3d, (2, 3, 4, 5, 6))):
        layer, x = kind(3, 4, 3, padding=1).double(), torch.randn(*shape, dtype=torch.float64)
        rows = patches(layer, x) @ layer.weight.flatten(1).T + layer.bias
        assert torch.allclose(rows, layer(x).movedim(1, -1).reshape(-1, 4))


def test_the_cross_moment_is_the_gradient_of_the_weight():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(
            nn.Conv2d(1, 3, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(3, 4, 3, stride=2),
            nn.Tanh(),
        ),
        *(nn.Flatten(), nn.Linear(4, 10)),
    ).double()
    x, y = IMAGES[:20].double(), Y[:20]
    seen = capture(model, ["0", "3", "6"], x, y, OutputMetric(F.cross_entropy), generator=torch.Generator())
    F.cross_entropy(model(x), y).backward()
    for name, rows in seen.rows.items():
        layer = model.get_submodule(name)
        together = rows.dz.mT @ rows.a / 20
        assert torch.allclose(together[:, :-1].view_as(layer.weight), layer.weight.grad)
        assert torch.allclose(together[:, -1], layer.bias.grad)
        assert len(rows.dz) == 20 * rows.locations


def _figures(model: nn.Module, x: torch.Tensor) -> list[tuple[float, ...]]:
    found = senn.Grower(model, moves=("width", "prune"), proposals=senn.Proposals(units=9)).consider([(x, Y)])
    return [(c.kind, c.place, c.units, c.parameters, c.gain, c.bound, c.heldout, c.error, c.eta) for c in found]


def test_a_convolution_of_one_tap_scores_as_its_linear_twin():
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 10))
    layers = [nn.Conv2d(64, 5, 1), nn.ReLU(), nn.Conv2d(5, 4, 1), nn.Tanh(), nn.Conv2d(4, 10, 1)]
    for layer, twin in zip(layers, linear, strict=True):
        if isinstance(layer, nn.Conv2d):
            layer.weight.data, layer.bias.data = twin.weight.data[:, :, None, None].clone(), twin.bias.data.clone()
    twin = nn.Sequential(*layers, nn.Flatten()).double()
    ours, theirs = _figures(twin, X.double()[:, :, None, None]), _figures(linear.double(), X.double())
    assert [one[:4] for one in ours] == [one[:4] for one in theirs]
    assert torch.allclose(torch.tensor([one[4:] for one in ours]), torch.tensor([one[4:] for one in theirs]), rtol=1e-6)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(12, 10)),
    )


@pytest.mark.parametrize("place", ["0", "4"])
def test_the_promise_of_channels_is_kept_by_exact_steps(place):
    """Fitting nothing but the new columns lowers the loss about as much as was promised for one unit."""
    model = net().double()
    x, y = IMAGES.double(), Y
    train(model, torch.optim.Adam(model.parameters(), 1e-2), 30, x, y)
    grower = senn.Grower(model, policy=Take("widen", place=place), moves=("width",), samples=len(x))
    before = [p.shape for p in model.parameters()]
    (event,) = grower.grow([(x, y)])
    assert event.output_change < 1e-10
    assert [p.shape for p in model.parameters()] != before
    reader = model[4 if place == "0" else 9].weight
    model.eval()
    mask = torch.zeros_like(reader)
    mask[:, reader.flatten(2).abs().sum((0, 2)) == 0 if reader.dim() > 2 else reader.abs().sum(0) == 0] = 1
    assert mask.any()
    start = float(F.cross_entropy(model(x), y))
    optimizer = torch.optim.LBFGS([reader], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        reader.grad *= mask
        return loss

    optimizer.step(closure)
    fallen = start - float(F.cross_entropy(model(x), y))
    assert fallen > 0
    assert event.heldout / 2 < 2 * fallen  # the promise is no exaggeration


def test_a_convolutional_net_grows_by_itself_and_gets_better():
    model, alone = net(), net()
    train(alone, torch.optim.Adam(alone.parameters(), 1e-2), 90, IMAGES, Y)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    grower = senn.Grower(model, optimizer, samples=len(IMAGES))
    for _ in range(3):
        train(model, optimizer, 30, IMAGES, Y)
        for event in grower.grow([(IMAGES, Y)]):
            assert event.kind == "prune" or event.output_change <= 1e-5
    assert model[4].out_channels > 3
    assert {event.place for event in grower.events} >= {"4"}
    train(model, optimizer, 30, IMAGES, Y)
    model.eval(), alone.eval()
    assert F.cross_entropy(model(IMAGES), Y) < F.cross_entropy(alone(IMAGES), Y)
