"""Convolutions and models around them are scored by the same functions as linear layers."""

from __future__ import annotations

import copy

import pytest
import torch
from growth_cases import Take, X, Y, train
from torch import nn
from torch.nn import functional as F

import senn
from senn.candidates.candidate_config import CandidateConfig
from senn.graph import analyze
from senn.kfac.capture import capture
from senn.kfac.layer_inputs import ConvInput
from senn.kfac.loss_metric import LossMetric
from senn.kfac.recorder import record_linear_calls
from senn.policies import Budget
from senn.scoring.scoring_session import ScoringSession
from senn.surgery import apply_moves

IMAGES = X.view(-1, 1, 8, 8)


SETTINGS = [
    {}, {"padding": 1}, {"stride": 2, "padding": 2}, {"dilation": 2}, {"padding": "same", "dilation": 2},
    {"padding": "valid"}, {"padding": 1, "padding_mode": "circular"}, {"padding": (2, 1), "stride": (1, 3)},
]  # fmt: skip


def read_of(layer: nn.Module, x: torch.Tensor, *, bias: bool) -> tuple[ConvInput, torch.Tensor]:
    """What the layer reads as patches, and rows of what it gives."""
    with record_linear_calls(nn.Sequential(layer), ["0"], outputs=True) as seen:
        nn.Sequential(layer)(x)
    (one,) = seen["0"]
    return ConvInput.of(one.x, bias, one.kernel), one.z.flatten(2).mT


@pytest.mark.parametrize(
    ("kind", "shape", "size", "settings"),
    [(nn.Conv2d, (5, 3, 9, 8), (3, 2), settings) for settings in SETTINGS]
    + [
        (nn.Conv1d, (5, 3, 9), 3, {"padding": 1}),
        (nn.Conv3d, (2, 3, 4, 5, 6), 3, {"stride": 2, "padding": 1}),
    ],
)
def test_patches_are_those_of_the_convolution(kind, shape, size, settings):
    torch.manual_seed(0)
    layer, x = kind(3, 4, size, **settings).double(), torch.randn(*shape, dtype=torch.float64)
    read, z = read_of(layer, x, bias=True)
    matrix = torch.cat([layer.weight.flatten(1), layer.bias[:, None]], 1)
    assert read.locations == z.shape[1]
    assert torch.allclose((read.rows() @ matrix.T).view_as(z), z)
    places = torch.tensor([0, read.locations - 1])
    assert torch.allclose((read.rows(places) @ matrix.T).view(len(z), 2, 4), z[:, places])
    g = torch.randn_like(z)
    rows = read.rows().view(*z.shape[:2], -1)
    assert torch.allclose(read.cross(g), torch.einsum("nlm,nlc->mc", g, rows))
    assert torch.allclose(read.by_sample(g), torch.einsum("nlm,nlc->nmc", g, rows))
    # the constant may stand between two groups of channels
    split = ConvInput(read.x, True, read.kernel, existing=2)
    order = [
        *range(2 * read.kernel.numel),
        3 * read.kernel.numel,
        *range(2 * read.kernel.numel, 3 * read.kernel.numel),
    ]
    assert torch.allclose(split.rows(), read.rows()[:, order])
    assert torch.allclose(split.cross(g), read.cross(g)[:, order])


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
    seen = capture(
        model, ["0", "3", "6"], x, y, LossMetric(F.cross_entropy), generator=torch.Generator()
    )
    F.cross_entropy(model(x), y).backward()
    for name, rows in seen.rows.items():
        layer = model.get_submodule(name)
        together = rows.output_grad.mT @ rows.a / 20
        assert torch.allclose(together[:, :-1].view_as(layer.weight), layer.weight.grad)
        assert torch.allclose(together[:, -1], layer.bias.grad)
        assert len(rows.output_grad) == 20 * rows.locations


def _figures(model: nn.Module, x: torch.Tensor) -> list[tuple[float, ...]]:
    found = senn.Grower(
        model, moves=("width", "prune"), candidate_config=senn.CandidateConfig(units=9)
    ).score_candidates([(x, Y)])
    return [
        (
            c.kind,
            c.place,
            c.units,
            c.parameters,
            c.gain,
            c.gain_lower_bound,
            c.held_out_gain,
            c.held_out_stderr,
            c.eta,
        )
        for c in found
    ]


def test_a_convolution_of_one_tap_scores_as_its_linear_twin():
    torch.manual_seed(0)
    linear = nn.Sequential(
        nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 10)
    )
    layers = [nn.Conv2d(64, 5, 1), nn.ReLU(), nn.Conv2d(5, 4, 1), nn.Tanh(), nn.Conv2d(4, 10, 1)]
    for layer, twin in zip(layers, linear, strict=True):
        if isinstance(layer, nn.Conv2d):
            layer.weight.data, layer.bias.data = (
                twin.weight.data[:, :, None, None].clone(),
                twin.bias.data.clone(),
            )
    twin = nn.Sequential(*layers, nn.Flatten()).double()
    ours, theirs = (
        _figures(twin, X.double()[:, :, None, None]),
        _figures(linear.double(), X.double()),
    )
    assert [one[:4] for one in ours] == [one[:4] for one in theirs]
    assert torch.allclose(
        torch.tensor([one[4:] for one in ours]),
        torch.tensor([one[4:] for one in theirs]),
        rtol=1e-6,
    )


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
    mask[
        :,
        reader.flatten(2).abs().sum((0, 2)) == 0 if reader.dim() > 2 else reader.abs().sum(0) == 0,
    ] = 1
    assert mask.any()
    start = float(F.cross_entropy(model(x), y))
    optimizer = torch.optim.LBFGS([reader], max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        reader.grad *= mask
        return loss

    optimizer.step(closure)
    fallen = start - float(F.cross_entropy(model(x), y))
    assert fallen > 0
    assert event.held_out_gain / 2 < 2 * fallen  # the promise is no exaggeration


def test_a_convolutional_net_grows_by_itself_and_gets_better():
    model, alone = net(), net()
    train(alone, torch.optim.Adam(alone.parameters(), 1e-2), 90, IMAGES, Y)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    grower = senn.Grower(model, optimizer, samples=len(IMAGES))
    for _ in range(3):
        train(model, optimizer, 30, IMAGES, Y)
        for event in grower.grow([(IMAGES, Y)]):
            assert event.kind == "prune" or event.output_change <= 1e-5
    # a layer may have been inserted before the convolution, under whose name both are then
    last = [layer for layer in model[4].modules() if isinstance(layer, nn.Conv2d)][-1]
    assert last.out_channels > 3
    assert {event.place for event in grower.events} >= {"4"}
    train(model, optimizer, 30, IMAGES, Y)
    model.eval(), alone.eval()
    assert F.cross_entropy(model(IMAGES), Y) < F.cross_entropy(alone(IMAGES), Y)


READERS = {
    "plain": nn.Conv2d(4, 5, 3, padding=1),
    "strided": nn.Conv2d(4, 5, 3, stride=2, bias=False),
    "grouped": nn.Conv2d(4, 6, 3, groups=2, padding=1),
    "transposed": nn.ConvTranspose2d(4, 5, 2, stride=2),
}


@pytest.mark.parametrize("kind", READERS)
def test_candidates_are_scored_by_the_gradients_that_they_would_have(kind: str) -> None:
    """The cross moment of a candidate's columns is autograd's gradient of its columns once it is there."""
    torch.manual_seed(0)
    reader = copy.deepcopy(READERS[kind])
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Tanh(), reader, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    )
    model.append(nn.Linear(4 * (6 if kind == "grouped" else 5), 10)).double()
    x, y = IMAGES.double()[:40], Y[:40]
    graph = analyze(model, x)
    session = ScoringSession(
        model, graph, metric=LossMetric(F.cross_entropy), candidate_config=CandidateConfig(units=6), moves=("width",),
        generator=torch.Generator().manual_seed(0), known={},
    )  # fmt: skip
    session.add_batch(x, y)
    pool = session.pool(40, Budget())
    assert any(c.place == "0" for c in pool.candidates())
    group = graph.group("0")
    old = {coupled.map: coupled.index for coupled in group.dims_of("consumer")}["2"]
    trial = copy.deepcopy(model)
    apply_moves(trial, [pool.candidate_set.widen["0"]], graph)
    F.cross_entropy(trial(x), y).backward()
    grown = trial[2].weight.grad
    if kind == "transposed":
        matrix = grown.flatten(1).mT
        kept = matrix.shape[1]
    else:
        matrix = grown.flatten(1)
        kept = grown.shape[1]
    taps = matrix.shape[1] // kept
    # existing positions first, then the new ones in the order in which they stand
    grown_group = analyze(trial, x).group("0")
    place = next(coupled.index for coupled in grown_group.dims_of("consumer") if coupled.map == "2")
    rows = matrix.chunk(2) if kind == "grouped" else [matrix]
    names = ["2[0]", "2[1]"] if kind == "grouped" else ["2"]
    for name, part in zip(names, rows, strict=True):
        folds = session._fit.maps[name].factors, session._held_out.maps[name].factors
        G = sum(one.cross_cov for one in folds) / 40
        columns = pool.columns[name]
        for unit, own in enumerate(columns.groups["0"]):
            stands = place[len(old) + unit]
            expected = part.view(len(part), kept, taps)[:, stands].flatten(1)
            assert torch.allclose(G[:, columns.existing + own], expected, atol=1e-12), (name, unit)
