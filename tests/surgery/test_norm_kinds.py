"""Normalizations by what they compute: a stream through them grows and shrinks with equal outputs, in float64."""

import pytest
import torch
from graph_nets import Net, batch, reasons
from torch import Tensor, nn
from torch.nn import functional as F

from senn.graph import ChannelGroup, analyze
from senn.surgery import Prune, Widen, transaction

WIDTH = 6
LAST = {"dim": -1, "keepdim": True}


class Norm(nn.Module):
    """A norm under a name that says nothing: a function of its input, its weight, its bias and a small number."""

    def __init__(self, function, eps=1e-2):
        super().__init__()
        self.function, self.small = function, eps
        self.gain = nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.shift = nn.Parameter(torch.randn(WIDTH))
        self.length = WIDTH**0.5

    def forward(self, x):
        return self.function(self, x)


def centered(x: Tensor) -> Tensor:
    return x - x.mean(**LAST)


RMS = {
    "product last": lambda m, x: m.gain * (x * torch.rsqrt(x.pow(2).mean(**LAST) + m.small)),
    "product first": lambda m, x: m.gain * x * torch.rsqrt(x.pow(2).mean(**LAST) + m.small),
    "division": lambda m, x: x / torch.sqrt((x * x).mean(**LAST) + m.small) * m.gain,
    "eps in the code": lambda m, x: m.gain * x / (x.square().mean(**LAST) + 1e-2).sqrt(),
    "eps outside the root": lambda m, x: m.gain * x / (x.square().mean(**LAST).sqrt() + m.small),
    "one plus the weight": lambda m, x: x * (x**2).mean(**LAST).add(m.small).rsqrt() * (1 + m.gain),
    "function": lambda m, x: F.rms_norm(x, x.shape[-1:], m.gain, m.small),
    "function without weight": lambda m, x: F.rms_norm(x, x.shape[-1:], eps=1e-2),
    "length": lambda m, x: F.normalize(x, dim=-1) * m.length * m.gain,
    "length by the shape": lambda m, x: F.normalize(x, dim=-1) * x.shape[-1] ** 0.5 * m.gain,
    "mean by sum": lambda m, x: x / (x.square().sum(**LAST) / x.shape[-1] + m.small).sqrt(),
    "mean size": lambda m, x: x / (x.abs().mean(**LAST) + m.small) * m.gain,
}
LAYER = {
    "own": lambda m, x: (
        (c := centered(x)) * torch.rsqrt(c.pow(2).mean(**LAST) + m.small) * m.gain + m.shift
    ),
    "unbiased": lambda m, x: m.gain * centered(x) / (x.std(**LAST) + m.small) + m.shift,
    "variance": lambda m, x: centered(x) / torch.sqrt(x.var(**LAST, unbiased=False) + m.small),
    "function": lambda m, x: F.layer_norm(x, x.shape[-1:], m.gain, m.shift, 1e-2),
    "function without weight": lambda m, x: F.layer_norm(x, x.shape[-1:], eps=m.small),
    "centering only": lambda m, x: centered(x),
}
MODULES = {
    "RMSNorm": nn.RMSNorm(WIDTH, eps=1e-2),
    "RMSNorm without weight": nn.RMSNorm(WIDTH, elementwise_affine=False),
    "LayerNorm without weight": nn.LayerNorm(WIDTH, elementwise_affine=False, eps=1e-2),
    "LayerNorm without bias": nn.LayerNorm(WIDTH, bias=False, eps=1e-2),
}
KINDS = {f"rms, {name}": Norm(function) for name, function in RMS.items()}
KINDS |= {f"layer, {name}": Norm(function) for name, function in LAYER.items()}
KINDS |= MODULES


def stream(norm: nn.Module, scaled: bool = False) -> nn.Module:
    """A pre-norm residual stream."""

    def forward(m, x):
        h = m.embed(x)
        branch = m.mix(m.norm(h))
        return m.head(m.norm(h + (m.scale * branch if scaled else branch)))

    parts = {"embed": (3, WIDTH), "mix": (WIDTH, WIDTH), "head": (WIDTH, 2)}
    model = Net(forward, norm=norm, **parts)
    model.scale = nn.Parameter(torch.randn(WIDTH))
    return model.double()


def grow_and_prune(model: nn.Module, inputs: Tensor, tensor: str) -> ChannelGroup:
    """Widen the group of a tensor by 1 and by 3, prune the new units, and compare outputs in both modes."""
    graph = analyze(model, inputs)
    group = next(one for one in graph.groups if tensor in {coupled.name for coupled in one.dims})
    before, shapes = model(inputs).detach(), [p.shape for p in model.parameters()]
    new = tuple(range(group.width, group.width + 4))
    for move in (Widen(group.name, 1, {}), Widen(group.name, 3, {}), Prune(group.name, new)):
        receipt = transaction(model, [move], graph, probe=inputs)
        graph = receipt.graph
        for training in (True, False):
            change = (model.train(training)(inputs) - before).abs().max().item()
            assert change < 1e-12 * before.abs().max().item()
    assert [p.shape for p in model.parameters()] == shapes
    return group


@pytest.mark.parametrize("kind", KINDS)
def test_a_norm_is_known_by_what_it_computes(kind):
    group = grow_and_prune(stream(KINDS[kind]), batch(8, 3).double(), "embed.weight")
    assert {norm.kind for norm in group.norms} == {"rms" if "rms" in kind.lower() else "layer"}


@pytest.mark.parametrize("kind", ["rms, division", "LayerNorm without bias"])
def test_a_stream_whose_branches_have_gains_grows(kind):
    model = stream(KINDS[kind], scaled=True)
    group = grow_and_prune(model, batch(8, 3).double(), "embed.weight")
    (mix,) = [coupled for coupled in group.dims_of("producer") if coupled.name == "mix.weight"]
    assert mix.gains == ("scale",)


def test_units_of_a_scaled_stream_learn():
    model = stream(nn.RMSNorm(WIDTH), scaled=True)
    inputs = batch(8, 3).double()
    graph = analyze(model, inputs)
    transaction(model, [Widen(graph.groups[0].name, 1, {})], graph, probe=inputs)
    model(inputs).square().sum().backward()
    assert model.mix.weight.grad[-1].abs().max() > 0


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (
            lambda m, x: m.b(m.n((h := m.a(x)) + m.c(m.n(h)).relu())),
            "relu in the model's own forward",
        ),
        (
            lambda m, x: m.b(m.n((h := m.n(m.a(x))) + m.c(h))),
            "it has gone through another norm, n (L",
        ),
        (
            lambda m, x: m.b(m.n(m.a(x)) + m.p),
            "no weight to make up for it: add in the model's own",
        ),
    ],
)
def test_a_stream_that_cannot_be_kept_says_what_lies_between(forward, reason):
    affine = "no weight" not in reason
    norm = nn.LayerNorm(WIDTH, elementwise_affine=affine)
    model = Net(forward, a=(3, WIDTH), b=(WIDTH, 2), c=(WIDTH, WIDTH), n=norm)
    model.p = nn.Parameter(torch.rand(WIDTH))
    assert reason in reasons(analyze(model, batch(4, 3)))["a"]


def test_a_mean_that_steers_the_units_mixes_them():
    model = Net(lambda m, x: m.b((h := m.a(x)) * h.mean(**LAST).tanh()), a=(3, 4), b=(4, 2))
    assert "mixes its units (mean)" in reasons(analyze(model, batch(4, 3)))["a"]
