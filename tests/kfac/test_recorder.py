"""How applications of linear maps are seen and read, whoever applies them; against autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import senn
from senn.graph import analyze
from senn.kfac.batch_layout import BatchLayout, RowLayout, infer_batch_layouts
from senn.kfac.capture import capture
from senn.kfac.loss_metric import LossMetric

N, T, D = 4, 3, 5


class Net(nn.Module):
    """A forward of its own over named parameters and modules."""

    def __init__(self, body, **parts) -> None:
        super().__init__()
        self.body = body
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.body(self, x)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) / math.sqrt(shape[0]))


def time_first(m, x):
    return m.head(m.map(x.transpose(0, 1)).tanh().mean(0))


def flattened(m, x):
    return m.head(m.map(x.reshape(-1, D)).tanh().view(N if len(x) == N else len(x), -1, 6).mean(1))


def time_first_flattened(m, x):
    return m.head(m.map(x.transpose(0, 1).reshape(-1, D)).tanh().view(T, -1, 6).mean(0))


def attention(m, x):
    h = m.map(x)
    return m.head(h + m.mix(h, h, h)[0]).mean(1)


MODELS = {
    "module": lambda: Net(lambda m, x: m.head(m.map(x).tanh().mean(1)), map=nn.Linear(D, 6), head=nn.Linear(6, 2)),
    "time first": lambda: Net(time_first, map=nn.Linear(D, 6), head=nn.Linear(6, 2)),
    "flattened": lambda: Net(flattened, map=nn.Linear(D, 6), head=nn.Linear(6, 2)),
    "time first, flattened": lambda: Net(time_first_flattened, map=nn.Linear(D, 6), head=nn.Linear(6, 2)),
    "functional": lambda: Net(
        lambda m, x: F.linear(F.linear(x, m.w, m.b).tanh().mean(1), m.v),
        w=parameter(6, D), b=parameter(6), v=parameter(2, 6),
    ),
    "product": lambda: Net(lambda m, x: (x @ m.w).tanh().mean(1) @ m.v.t(), w=parameter(D, 6), v=parameter(2, 6)),
    "addmm": lambda: Net(
        lambda m, x: torch.addmm(m.c, torch.addmm(m.b, x.flatten(0, 1), m.w).tanh().view(len(x), T, 6).mean(1), m.v),
        w=parameter(D, 6), b=parameter(6), v=parameter(6, 2), c=parameter(2),
    ),
    "used twice": lambda: Net(
        lambda m, x: m.head(m.map(m.map(x).tanh()).tanh().mean(1)), map=nn.Linear(D, D), head=nn.Linear(D, 2)
    ),
    "attention": lambda: Net(
        attention, map=nn.Linear(D, 6), mix=nn.MultiheadAttention(6, 2, batch_first=True), head=nn.Linear(6, 2)
    ),
    "attention, time first": lambda: Net(
        lambda m, x: m.head(m.mix(*[m.map(x).transpose(0, 1)] * 3)[0]).mean(0),
        map=nn.Linear(D, 6), mix=nn.MultiheadAttention(6, 2), head=nn.Linear(6, 2),
    ),
    "images": lambda: Net(
        lambda m, x: m.conv(m.conv(x[:, None]).relu()).flatten(2).mean(2) @ m.v,
        conv=nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), v=parameter(1, 2),
    ),
}  # fmt: skip


def data() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(N, T, D, generator=g, dtype=torch.float64), torch.randint(
        0, 2, (N,), generator=g
    )


@pytest.mark.parametrize("name", MODELS)
def test_every_map_is_read_whoever_applies_it(name: str) -> None:
    """The cross moment is autograd's gradient, in the map's own matrix; nothing is left behind."""
    torch.manual_seed(0)
    model, (x, y) = MODELS[name]().double(), data()
    graph = analyze(model, x)
    names = graph.scored_maps
    assert {one.weight for one in graph.linear_maps} == {graph.map(name).weight for name in names}
    found = infer_batch_layouts(model, {name: graph.map(name).n_uses for name in names}, x)
    assert all(isinstance(reading, BatchLayout) for reading in found.values()), found
    state = torch.get_rng_state()
    metric = LossMetric(F.cross_entropy)
    seen = capture(model, names, x, y, metric, generator=torch.Generator(), layouts=found)
    assert torch.equal(torch.get_rng_state(), state)
    for map_name, rows in seen.rows.items():
        one = graph.map(map_name)

        def gradient(samples: slice, one=one) -> torch.Tensor:
            loss = F.cross_entropy(model(x[samples]), y[samples])
            (found,) = torch.autograd.grad(loss, model.get_parameter(one.weight))
            return found.movedim((one.out_dim, one.in_dim), (0, 1)).flatten(1)

        assert found[map_name].locations == rows.locations
        # rows are sample-major: each sample's gradient on its own
        for sample, (dz, a) in enumerate(
            zip(rows.output_grad.chunk(N), rows.a.chunk(N), strict=True)
        ):
            alone = gradient(slice(sample, sample + 1))
            assert torch.allclose((dz.mT @ a)[:, : alone.shape[1]], alone), map_name


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose2d(2, 3, 2, stride=2),
        nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1),
        nn.ConvTranspose2d(2, 3, (3, 2), dilation=2, padding=(0, 1), bias=False),
    ],
)
def test_a_transposed_convolution_is_a_map_of_pixels(layer: nn.Module) -> None:
    """Each pixel that is read gives a patch, so its matrix is (out * taps, in)."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Tanh(), layer, nn.Flatten(), nn.LazyLinear(2)
    ).double()
    x, y = torch.randn(N, 1, 6, 7, dtype=torch.float64), torch.tensor([0, 1, 0, 1])
    model(x)
    found = infer_batch_layouts(model, {"2": 1}, x)
    rows = capture(
        model, ["2"], x, y, LossMetric(F.cross_entropy), generator=torch.Generator(), layouts=found
    ).rows
    assert found["2"].locations == rows["2"].locations == 4 * 5
    F.cross_entropy(model(x), y).backward()
    assert torch.allclose(
        rows["2"].output_grad.mT @ rows["2"].a / N, layer.weight.grad.flatten(1).mT
    )


def test_each_group_of_a_convolution_is_a_map_of_its_own() -> None:
    torch.manual_seed(0)
    layer = nn.Conv1d(6, 9, 3, groups=3, padding=1)
    model = nn.Sequential(
        nn.Conv1d(1, 6, 3), nn.Tanh(), layer, nn.Flatten(), nn.LazyLinear(2)
    ).double()
    x, y = torch.randn(N, 1, 8, dtype=torch.float64), torch.tensor([0, 1, 0, 1])
    model(x)
    found = infer_batch_layouts(model, {"2": 1}, x)
    rows = capture(
        model, ["2"], x, y, LossMetric(F.cross_entropy), generator=torch.Generator(), layouts=found
    ).rows
    assert [*rows] == ["2[0]", "2[1]", "2[2]"]
    F.cross_entropy(model(x), y).backward()
    expected = torch.cat([layer.weight.grad.flatten(1), layer.bias.grad[:, None]], 1)
    together = torch.cat([one.output_grad.mT @ one.a for one in rows.values()]) / N
    assert torch.allclose(together, expected)


def test_layouts_are_found_out() -> None:
    x, _ = data()
    layouts = {
        name: infer_batch_layouts(MODELS[name]().double(), {"map": 1}, x)["map"].layouts[0]
        for name in list(MODELS)[:4]
    }
    assert [*layouts.values()] == [RowLayout(), RowLayout(1), RowLayout(), RowLayout(0, inner=True)]


def test_what_cannot_be_told_apart_by_samples_is_refused_with_the_reason() -> None:
    x, _ = data()
    mixing = Net(
        lambda m, x: m.head(m.map(x - x.mean(0)).tanh().mean(1)),
        map=nn.Linear(D, 6),
        head=nn.Linear(6, 2),
    )
    mixing.body = lambda m, x: (lambda h: m.head((h - h.mean(0)).mean(1)))(m.map(x))
    assert (
        "can't be told apart by samples"
        in infer_batch_layouts(mixing.double(), {"map": 1}, x)["map"]
    )
    loose = MODELS["module"]().double()
    loose.body = lambda m, x: (m.map(x), m.head(x.mean(1).repeat(1, 2)[:, :6]))[1]
    found = infer_batch_layouts(loose, {"map": 1, "head": 1}, x)
    assert found["map"] == "the model's outputs do not depend on map"
    assert isinstance(found["head"], BatchLayout)
    unseen = Net(lambda m, x: torch.einsum("ntd,md->nm", x, m.map.weight), map=nn.Linear(D, 2))
    assert "inside a fused operation" in infer_batch_layouts(unseen.double(), {"map": 1}, x)["map"]


def test_a_forward_that_draws_at_random_leaves_the_global_state_alone() -> None:
    torch.manual_seed(0)
    noisy = Net(
        lambda m, x: m.head((m.map(x) + 0.1 * torch.rand(1)).tanh().mean(1)),
        map=nn.Linear(D, 6),
        head=nn.Linear(6, 2),
    )
    x, y = (torch.cat([part] * 5) for part in data())
    state = torch.get_rng_state()
    found = senn.Grower(noisy, samples=20).score_candidates([(x.float(), y)])
    assert found
    assert torch.equal(torch.get_rng_state(), state)


def test_maps_that_cannot_be_read_are_named_by_the_grower() -> None:
    torch.manual_seed(0)
    x, y = (torch.cat([part] * 5) for part in data())
    model = MODELS["module"]().double()
    # one use of two isn't seen: half of the gradient would be wrong
    assert infer_batch_layouts(model, {"map": 2}, x) == {
        "map": "map is also applied in a way that isn't read"
    }
    model.loose = nn.Linear(D, 2).double()
    model.body = lambda m, x: (m.loose(x), m.head(m.map(x).tanh().mean(1)))
    grower = senn.Grower(model, samples=20, output=lambda result: result[1])
    grower.observe(x, y)
    assert grower.unreadable_maps == {"loose": "the model's outputs do not depend on loose"}
