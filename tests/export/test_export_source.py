"""Models as Python source: it builds what has the same state and computes the same, and is fit to be read."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import OrderedDict
from typing import Any

import pytest
import torch
from exhaustive import some
from growth_cases import FEW, Take, X, Y, net, train
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import ZOO, randomised
from zoo_cases import prepared, widening

import senn
from senn import pytree
from senn.errors import SennError, UnsupportedError
from senn.export import python_source
from senn.export.module_source import build_from_source
from senn.nn import MLP, ConvNet, DenseConvNet, Rational, Residual
from senn.surgery import Insert, transaction

ALLOWED = {"torch", "torch.nn", "collections"}


def checked(model: nn.Module, inputs: Any) -> str:
    """The source, after its network has been held against the model."""
    state = torch.random.get_rng_state()
    modes = [module.training for module in model.modules()]
    source = python_source(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert max(map(len, source.splitlines())) <= 100
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert (
                {node.module}
                if isinstance(node, ast.ImportFrom)
                else {one.name for one in node.names}
            ) <= ALLOWED
    twin = build_from_source(source)
    twin.load_state_dict(model.state_dict())
    assert [name for name, _ in twin.named_parameters()] == [
        name for name, _ in model.named_parameters()
    ]
    assert list(twin.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        found, expected = (
            pytree.tensor_leaves(pytree.call(one.eval(), inputs)) for one in (twin, model)
        )
    assert len(found) == len(expected) > 0
    assert all(map(torch.equal, found, expected))
    return source


def conv_net(*stages: tuple[int, ...], channels: int = 3) -> nn.Module:
    return randomised(ConvNet(channels, stages, 4))


def test_a_grown_network_reads_as_a_person_would_write_it() -> None:
    model = MLP(64, (3,), 10, shortcut=True)
    grower = senn.Grower(
        model, torch.optim.Adam(model.parameters()), loss=F.cross_entropy, policy=Take("widen", 2)
    )
    assert grower.grow([(X, Y)])
    assert (
        checked(model, X)
        == '''\
from torch import nn


class Net(nn.Module):
    """A multilayer perceptron, (..., features) to (..., outputs)."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(64, 5),
            nn.ReLU(),
            nn.Linear(5, 10),
        )
        self.shortcut = nn.Linear(64, 10, bias=False)

    def forward(self, x):
        return self.body(x) + self.shortcut(x)
'''
    )


@pytest.mark.parametrize("detail", ["residual", "identity"])
def test_a_layer_that_a_grower_inserted_is_written_as_what_it_is(detail: str) -> None:
    model = net(hidden=6, layers=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    policy = Take("insert", detail=detail)
    grower = senn.Grower(
        model, optimizer, loss=F.cross_entropy, policy=policy, candidate_config=FEW
    )
    assert grower.grow([(X, Y)])
    train(model, optimizer, 3)
    source = checked(model, X)
    assert "senn" not in source
    assert ("class Residual(nn.Module)" in source) == (detail == "residual")


MODELS = {
    "rational": (lambda: MLP(5, (4, 3), 2, activation="rational", norm="batch", dropout=0.3), torch.randn(6, 5)),
    "no hidden layer": (lambda: MLP(5, (), 2), torch.randn(6, 5)),
    "conv net": (lambda: conv_net((4, 5), (6,)), torch.randn(2, 3, 8, 8)),
    "dense conv net": (lambda: DenseConvNet(3, ((4, 5), (6, 2)), 4, bias=True), torch.randn(2, 3, 8, 8)),
    "bare layer": (lambda: nn.Linear(5, 2, bias=False), torch.randn(6, 5)),
    "bare rational": (lambda: Rational(5), torch.randn(6, 5)),
    "bare residual": (lambda: Residual(nn.Linear(5, 5)), torch.randn(6, 5)),
    "named": (
        lambda: nn.Sequential(OrderedDict(first=nn.Linear(5, 5), act=nn.GELU("tanh"), last=nn.Linear(5, 1))),
        torch.randn(6, 5),
    ),
    "sliced": (lambda: nn.Sequential(nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, 2))[1:], torch.randn(6, 5)),
    "nested": (
        lambda: nn.Sequential(Residual(MLP(5, (3,), 5, shortcut=True)), MLP(5, (2,), 4), Residual(nn.Linear(4, 4))),
        torch.randn(6, 5),
    ),
    "pools and paddings": (
        lambda: nn.Sequential(
            nn.ReflectionPad2d((1, 2, 0, 1)), nn.Conv2d(3, 4, (3, 1), stride=(2, 1), groups=1, padding="valid"),
            nn.GroupNorm(2, 4, eps=1e-3), nn.LeakyReLU(0.2), nn.MaxPool2d(2, 1), nn.AdaptiveAvgPool2d((2, None)),
            nn.ConvTranspose2d(4, 3, 3, padding=1, dilation=2), nn.Flatten(1), nn.Softmax(dim=-1),
        ),
        torch.randn(2, 3, 8, 8),
    ),
    "norms": (
        lambda: nn.Sequential(
            nn.BatchNorm1d(4, affine=False), nn.LayerNorm(4, elementwise_affine=False), nn.RMSNorm((4,)),
            nn.LayerNorm(4, bias=False), nn.PReLU(4, init=0.1), nn.Hardtanh(max_val=float("inf")),
        ),
        torch.randn(6, 4),
    ),
    "words": (lambda: nn.Sequential(nn.Embedding(9, 4, padding_idx=0), nn.LSTM(4, 3, 2)), torch.arange(6).view(2, 3)),
    "bags": (lambda: nn.EmbeddingBag(9, 4, mode="sum"), torch.arange(6).view(2, 3)),
    "upsampled": (
        lambda: nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), nn.PixelUnshuffle(2)),
        torch.randn(2, 3, 4, 4),
    ),
    "simple recurrent": (lambda: nn.RNN(4, 3, nonlinearity="relu", batch_first=True), torch.randn(2, 5, 4)),
    "several types of pairs": (lambda: nn.Bilinear(3, 4, 5), (torch.randn(2, 3), torch.randn(2, 4))),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_is_written(name: str) -> None:
    torch.manual_seed(0)
    build, inputs = MODELS[name]
    checked(build(), inputs)


def _transformer() -> nn.Module:
    layers = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 12, 0.0, torch.tanh, batch_first=True), 3
    )
    layers.layers[1] = nn.TransformerEncoderLayer(
        8, 2, 14, 0.0, "gelu", batch_first=True, norm_first=True
    )
    layers.layers[2].linear1 = nn.Sequential(Residual(nn.Linear(8, 8)), layers.layers[2].linear1)
    return layers


def test_layers_whose_parts_have_grown_apart_are_put_in_after() -> None:
    source = checked(nn.Sequential(nn.Linear(8, 8), _transformer()), torch.randn(2, 3, 8))
    assert "self[1].layers[2].linear1 = nn.Sequential(" in source


def test_ties_shared_modules_and_types_are_kept() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(
        shared, nn.ReLU(), shared, nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)
    ).double()
    model[5].weight = model[3].weight
    source = checked(model, torch.randn(5, 4, dtype=torch.float64))
    assert "self[2] = self[0]" in source
    assert "self[5].weight = self[3].weight" in source
    assert len(list(build_from_source(source).parameters())) == len(list(model.parameters())) == 5


@pytest.mark.parametrize("name", some(ZOO, 3, first=1))
def test_models_of_the_zoo_are_written_or_refused_by_name(name: str) -> None:
    model, inputs, graph = prepared(name)
    transaction(model, widening(model, graph), graph, probe=inputs)
    known = {MLP, ConvNet, DenseConvNet, Rational, Residual}
    foreign = [
        type(module)
        for module in model.modules()
        if type(module) not in known and not type(module).__module__.startswith("torch.")
    ]
    if not foreign:
        checked(model, inputs)
        return
    with pytest.raises(UnsupportedError) as caught:
        python_source(model)
    assert any(
        f"{cls.__module__}.{cls.__qualname__}" in str(caught.value) for cls in foreign
    ) or "hook" in str(caught.value)


class Own(nn.Linear):
    """A class of a user's own."""


def _hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_forward_hook(lambda module, args, output: output + 1)
    return model


def _altered() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_buffer("more", torch.ones(1))
    return model


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            nn.Sequential(nn.ReLU(), Own(2, 2)),
            r"the class test_export_source.Own at '1' is neither torch's nor senn's",
        ),
        (Own(2, 2), "the class test_export_source.Own is neither"),
        (_hooked(), "the Linear at '0' has hooks or a forward of its own"),
        (_altered(), "'0.more' has been altered"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()), "several types"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "ParametrizedLinear is neither"),
        (nn.Sequential(nn.utils.weight_norm(nn.Conv1d(2, 2, 1))), "hooks"),
        ("net", "needs an nn.Module, not a str"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_written_is_refused_in_a_sentence(model: Any, sentence: str) -> None:
    with pytest.raises(SennError, match=sentence) as caught:
        python_source(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["class", "two words", "nn", "Residual", ""])
def test_names_that_no_class_can_have_are_refused(name: str) -> None:
    with pytest.raises(SennError, match="can't be the name"):
        python_source(nn.Linear(1, 1), name)


def test_the_source_is_formatted() -> None:
    models = [*(build() for build, _ in MODELS.values()), _transformer()]
    for model in models:
        command = [
            sys.executable,
            "-m",
            "ruff",
            "format",
            "--line-length",
            "100",
            "--isolated",
            "-",
        ]
        source = python_source(model)
        found = subprocess.run(command, input=source, capture_output=True, text=True, check=True)
        assert found.stdout == source


widths = st.lists(st.integers(1, 9), max_size=4)


@settings(max_examples=40, deadline=None)
@given(
    hidden=widths,
    activation=st.sampled_from(["relu", "tanh", "rational", "prelu", "leaky_relu", "softplus"]),
    norm=st.sampled_from([None, "batch"]),
    dropout=st.sampled_from([0.0, 0.25]),
    shortcut=st.booleans(),
    inserted=st.booleans(),
)
def test_any_mlp_is_written(
    hidden: list[int],
    activation: str,
    norm: str | None,
    dropout: float,
    shortcut: bool,
    inserted: bool,
) -> None:
    model = randomised(MLP(3, hidden, 2, activation, norm, dropout, shortcut))
    if inserted:
        layer = Residual(nn.Sequential(nn.Linear(3, 4), Rational(4), nn.Linear(4, 3, bias=False)))
        model.body[0] = nn.Sequential(layer, model.body[0])
    checked(model, torch.randn(4, 3))


@settings(max_examples=15, deadline=None)
@given(
    stages=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=3),
    dense=st.booleans(),
    channels=st.sampled_from([1, 3]),
)
def test_any_conv_net_is_written(stages: list[list[int]], dense: bool, channels: int) -> None:
    model = (
        DenseConvNet(channels, stages, 3)
        if dense
        else conv_net(*map(tuple, stages), channels=channels)
    )
    x = torch.randn(2, channels, 8, 8)
    checked(model, x)


def test_a_layer_before_a_convolution_is_written() -> None:
    model, x = conv_net((4, 5), (6,)), torch.randn(2, 3, 8, 8)
    graph = senn.analyze(model, x)
    layer = Residual(
        nn.Sequential(nn.Conv2d(4, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 4, 1, bias=False))
    )
    nn.init.zeros_(layer.branch[2].weight)
    transaction(model, [Insert("body.3", layer)], graph, probe=x)
    assert "Residual(" in checked(model, x)


def test_source_is_the_same_every_time_and_leaves_the_device_alone() -> None:
    model = conv_net((4,))
    before: dict[str, Tensor] = {name: x.clone() for name, x in model.state_dict().items()}
    assert python_source(model, "Classifier") == python_source(model, "Classifier")
    assert "class Classifier(nn.Module):" in python_source(model, "Classifier")
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
