"""Rational, Residual, MLP, ConvNet and DenseConvNet."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from senn.errors import SennError
from senn.graph import analyze
from senn.nn import MLP, ConvNet, DenseConvNet, Rational, Residual

coefficients = st.floats(-3, 3, allow_nan=False).filter(lambda x: abs(x) > 1e-3)


def _rational(v, c, l):  # noqa: E741
    module = Rational(1, dtype=torch.float64)
    with torch.no_grad():
        module.v.fill_(v)
        module.c.fill_(c)
        module.l.fill_(l)
    return module


@settings(max_examples=30, deadline=None)
@given(coefficients, coefficients, coefficients, st.floats(-5, 5), st.floats(0.1, 10))
def test_rational_follows_its_formula_and_ignores_scale(v, c, l, x, scale):  # noqa: E741
    expected = (l * x + (c + 2 * v * x) / (1 + x**2)) / (v**2 + c**2 + l**2) ** 0.5
    point = torch.tensor([[x]], dtype=torch.float64)
    assert _rational(v, c, l)(point).item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert _rational(scale * v, scale * c, scale * l)(point).item() == pytest.approx(
        expected, rel=1e-9, abs=1e-12
    )


def test_rational_identity_is_exact_and_units_lie_on_the_last_dimension():
    x = torch.randn(4, 3, 5)
    assert torch.equal(Rational.identity(5)(x), x)
    module = Rational(5)
    swapped = module(x.transpose(0, 1)).transpose(0, 1)
    assert torch.equal(module(x), swapped)
    with pytest.raises(SennError, match="5 units"):
        module(x.transpose(1, 2))


def test_rational_gradient():
    module = Rational(3, dtype=torch.float64)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def function(x, v, c, l):  # noqa: E741
        return torch.func.functional_call(module, {"v": v, "c": c, "l": l}, (x,))

    assert torch.autograd.gradcheck(function, (x, module.v, module.c, module.l))


def test_rational_with_all_parameters_zero_is_finite():
    module = _rational(0, 0, 0)
    x = torch.tensor([[2.0]], dtype=torch.float64)
    output = module(x)
    output.sum().backward()
    assert output.item() == 0
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())


def test_residual_adds_its_branch():
    branch = nn.Linear(3, 3)
    x = torch.randn(2, 3)
    assert torch.equal(Residual(branch)(x), x + branch(x))


@pytest.mark.parametrize(
    "activation", ["relu", "tanh", "rational", "prelu", nn.GELU, lambda: nn.LeakyReLU(0.3)]
)
def test_mlp_computes_its_layers_in_order(activation):
    model = MLP(4, (5, 3), 2, activation=activation)
    x = torch.randn(6, 4)
    body = model.body
    assert model.hidden == (5, 3)
    assert torch.equal(model(x), body[4](body[3](body[2](body[1](body[0](x))))))


def test_mlp_survives_copy_and_pickle():
    model = MLP(4, (5, 3), 2, activation="rational")
    x = torch.randn(6, 4)
    assert torch.equal(pickle.loads(pickle.dumps(copy.deepcopy(model)))(x), model(x))


def test_mlp_gives_per_unit_activations_their_width():
    assert MLP(4, (5,), 2, activation="rational").body[1].v.shape == (5,)
    assert MLP(4, (5,), 2, activation=nn.PReLU).body[1].weight.shape == (5,)


def test_mlp_norm_and_dropout_take_their_places():
    model = MLP(4, (5, 3), 2, norm="batch", dropout=0.5)
    kinds = [type(layer).__name__ for layer in model.body]
    block = ["Linear", "BatchNorm1d", "ReLU", "Dropout"]
    assert kinds == [*block, *block, "Linear"]
    assert model.hidden == (5, 3)


def test_mlp_without_hidden_layers_is_one_linear_map():
    model = MLP(4, (), 2)
    x = torch.randn(3, 4)
    assert model.hidden == ()
    assert torch.equal(model(x), model.body[0](x))


def test_mlp_hidden_reads_the_actual_shapes():
    model = MLP(4, (5,), 2)
    model.body[0].weight = nn.Parameter(torch.randn(7, 4))
    model.body[2] = nn.Sequential(nn.Linear(7, 7), Rational.identity(7), nn.Linear(7, 2))
    assert model.hidden == (7, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "swosh"}, "swosh"),
        ({"activation": nn.ReLU()}, "ReLU"),
        ({"norm": "layer"}, "layer"),
        ({"dropout": 1.0}, "dropout"),
        ({"hidden": (3, 0)}, "hidden"),
    ],
)
def test_mlp_names_what_is_wrong(arguments, message):
    with pytest.raises(SennError, match=message):
        MLP(**{"in_features": 4, "hidden": (3,), "out_features": 2, **arguments})


@pytest.mark.parametrize("side", [4, 9, 16])
def test_conv_net_halves_its_maps_between_stages(side):
    model = ConvNet(3, ((5,), (6, 7), (8,)), 2).eval()
    x = torch.randn(4, 3, side, side)
    assert model.hidden == (5, 6, 7, 8)
    assert model.body(x).shape == (4, 8, side // 4, side // 4)
    assert torch.equal(model(x), model.head(model.body(x).mean((2, 3))))
    kinds = [type(layer).__name__ for layer in model.body]
    block = ["Conv2d", "BatchNorm2d", "ReLU"]
    assert kinds == [*block, "MaxPool2d", *block, *block, "MaxPool2d", *block]


def test_conv_net_can_grow_everywhere_in_either_layout_of_memory():
    model, x = ConvNet(3, ((4,), (4, 4)), 2), torch.randn(4, 3, 8, 8)
    for images in (x, x.contiguous(memory_format=torch.channels_last)):
        assert [group.width for group in analyze(model, images).groups] == [4, 4, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, ((4,),), 2), "in_channels"),
        ((3, ((4, 0),), 2), "stages"),
        ((3, ((4,), ()), 2), "nonempty"),
    ],
)
def test_conv_net_names_what_is_wrong(arguments, message):
    with pytest.raises(SennError, match=message):
        ConvNet(*arguments)


def test_dense_blocks_read_all_earlier_layers_and_give_their_last():
    model = DenseConvNet(3, ((4, 5), (6,)), 7, bias=True)
    x = torch.randn(2, 3, 9, 9)
    (first, second), (third,) = model.blocks
    a = nn.functional.silu(first(x))
    b = nn.functional.silu(second(torch.cat([x, a], 1)))
    c = nn.functional.silu(third(nn.functional.max_pool2d(b, 3, 2, 1)))
    expected = model.head(nn.functional.max_pool2d(c, 3, 2, 1).mean((2, 3)))
    assert model.hidden == ((4, 5), (6,))
    torch.testing.assert_close(model(x), expected)


def test_dense_blocks_know_their_widths_with_a_layer_inserted():
    model = DenseConvNet(3, ((4, 5), (6,)), 7)
    assert not any(name.endswith("bias") for name, _ in model.named_parameters())
    model.blocks[0][1] = nn.Sequential(Residual(nn.Conv2d(7, 7, 1)), model.blocks[0][1])
    assert model.hidden == ((4, 5), (6,))
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 7)


@pytest.mark.parametrize(
    ("hidden", "message"), [(((4, 0),), "hidden"), ((), "nonempty"), (((4,), ()), "nonempty")]
)
def test_dense_blocks_name_what_is_wrong(hidden, message):
    with pytest.raises(SennError, match=message):
        DenseConvNet(3, hidden, 10)
