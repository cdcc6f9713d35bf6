"""Inserted layers and repeated blocks, put into a freshly built small model of its owner's classes."""

import copy
import dataclasses
from collections import OrderedDict

import pytest
import torch
from exhaustive import some
from surgery_cases import everything, identity_layer, silent, widen
from torch import nn
from zoo import ZOO, randomised
from zoo.transformer import ViT
from zoo_cases import prepared as of_zoo

import senn
from senn.errors import SennError, UnsupportedError
from senn.graph import analyze
from senn.graph.types import ResidualBlock as Repeatable
from senn.nn import Rational, Residual
from senn.surgery import Insert, transaction
from senn.surgery.moves import Append
from senn.surgery.outputs import outputs

X = torch.linspace(-2, 2, 18).reshape(6, 3)


class Snake(nn.Module):
    """An activation of one's own."""

    def __init__(self, width=2):
        super().__init__()
        self.width, self.scale = width, nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x + self.scale * x.sin().view(-1, self.width) ** 2


class Block(nn.Module):
    """x + f(x), with a setting that growth doesn't know."""

    def __init__(self, width=3, inner=2, rate=0.0, number=0):
        super().__init__()
        self.rate, self.number = rate, number
        self.inner, self.norm, self.out = (
            nn.Linear(width, inner),
            nn.BatchNorm1d(inner),
            nn.Linear(inner, width),
        )
        self.register_buffer("slope", torch.full((inner,), 0.1), persistent=False)

    def forward(self, x):
        return x + (1 - self.rate) * self.out(self.norm(self.inner(x)) * self.slope + self.number)


class Configuration:
    def __init__(self, layers):
        self.layers, self.others = layers, 17


class Net(nn.Module):
    """A stem, blocks in a list or a sequence or by name, a head."""

    def __init__(self, kind="list", rates=(0.0, 0.5)):
        super().__init__()
        self.config = Configuration(len(rates))
        self.stem, self.act, self.single = nn.Linear(3, 3), Snake(3), Block()
        blocks = [Block(rate=rate, number=number) for number, rate in enumerate(rates)]
        self.blocks = nn.ModuleList(blocks) if kind == "list" else nn.Sequential(*blocks)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        x = self.single(self.act(self.stem(x)))
        for block in self.blocks[: self.config.layers]:
            x = block(x)
        return self.head(x)


def prepared(model, x=X):
    """With numbers that a fresh model doesn't have."""
    return randomised(model, 3).eval()


def come_back(folder, model, into, *inputs):
    """Saved and loaded into a fresh model, which is returned."""
    senn.save(folder, model)
    back = senn.load(folder, into=into)
    assert back is into
    state, returned = model.state_dict(), back.state_dict()
    assert list(state) == list(returned)
    assert all(map(torch.equal, state.values(), returned.values()))
    assert [type(module) for module in model.modules()] == [
        type(module) for module in back.modules()
    ]
    assert [p.requires_grad for p in model.parameters()] == [
        p.requires_grad for p in back.parameters()
    ]
    back.eval()
    with torch.no_grad():
        assert torch.equal(back(*inputs), model(*inputs))
    return back


# ---- layers inserted before maps


def test_layers_are_inserted_again_and_again_and_widened(tmp_path):
    """Before the map, before the map behind the first new layer, inside the new layer, and widths everywhere."""
    model = prepared(Net())
    for insertion_point in ("head", "head.1", "head.1.0", "single.inner"):
        graph = analyze(model, X)
        width = (
            model.get_submodule(insertion_point).in_features if insertion_point != "head.1.0" else 3
        )
        insertion_point = "head.1.0.branch.2" if insertion_point == "head.1.0" else insertion_point
        layer, right, shift = identity_layer(model.get_submodule(insertion_point).in_features)
        move = (
            Insert(insertion_point, Residual(silent(width)))
            if insertion_point.startswith("head")
            else Insert(insertion_point, layer, right, shift)
        )
        transaction(model, [move], graph, probe=X)
        randomised(model, 4)
    graph = analyze(model, X)
    transaction(
        model, [widen(model, graph, group.name, 2) for group in graph.groups], graph, probe=X
    )
    assert isinstance(model.head[1][0].branch[2], nn.Sequential)
    back = come_back(tmp_path, model, Net(), X)
    assert back.blocks[0].inner.out_features == model.blocks[0].inner.out_features > 2
    optimizer = torch.optim.SGD(back.parameters(), 0.01)
    back(X).sum().backward()
    optimizer.step()
    assert not torch.equal(back(X), model(X))


@pytest.mark.parametrize("name", some([name for name in ZOO if name != "hf gpt2"], 3, first=2))
def test_inserted_layers_go_into_fresh_models_of_the_zoo(tmp_path, name):
    model, inputs, graph = of_zoo(name)
    for insertion_point in graph.insertion_points[-2:]:
        linear = model.get_submodule(insertion_point.module)
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}.get(insertion_point.spatial)
        layer = (
            conv(insertion_point.features, insertion_point.features, 1)
            if conv
            else nn.Linear(insertion_point.features, insertion_point.features)
        )
        path, _, key = insertion_point.module.rpartition(".")
        model.get_submodule(path)._modules[key] = nn.Sequential(
            Residual(nn.Sequential(layer, nn.Tanh())), linear
        )
    senn.save(tmp_path, model)
    fresh = senn.load(tmp_path, into=ZOO[name].build())
    assert all(map(torch.equal, outputs(fresh, inputs), outputs(model, inputs)))


def test_an_inserted_layer_of_ones_own_is_a_copy_of_one_in_the_model(tmp_path):
    model = prepared(Net())
    model.head = nn.Sequential(nn.Linear(3, 5), Snake(5), nn.Linear(5, 3), model.head)
    back = come_back(tmp_path, prepared(model), Net(), X)
    assert back.head[1].width == 5
    assert back.head[1] is not back.act
    assert back.act.width == 3


def test_an_inserted_layer_that_nobody_can_build_is_refused_by_name(tmp_path):
    class Unknown(nn.Module):
        def forward(self, x):
            return x

    model = Net()
    model.head = nn.Sequential(Unknown(), model.head)
    senn.save(tmp_path, model)
    into = Net()
    before = everything(into)
    with pytest.raises(
        UnsupportedError, match=r"head.0 is a .*Unknown that was added .* has none like it"
    ):
        senn.load(tmp_path, into=into)
    assert everything(into) == before


def test_frozen_and_dtype_of_what_was_added(tmp_path):
    model = prepared(Net()).double()
    model.head = nn.Sequential(Residual(nn.Linear(3, 3)), model.head).double().eval()
    model.head[0].branch.bias.requires_grad_(False)
    back = come_back(tmp_path, model, Net(), X.double())
    assert {value.dtype for value in back.state_dict().values() if value.is_floating_point()} == {
        torch.float64
    }


# ---- blocks put after blocks


def wrapped(model, name, block):
    """As `Append` does it where a block stands by itself."""
    zero = [
        key
        for key, _ in model.named_parameters()
        if key.startswith(f"{name}.") and key.endswith("out.weight")
    ]
    graph = dataclasses.replace(
        analyze(model, X), residual_blocks=(Repeatable(module=name, output_params=tuple(zero)),)
    )
    twin = copy.deepcopy(block)
    with torch.no_grad():
        twin.out.weight.zero_()
        twin.out.bias.zero_()
    transaction(model, [Append(name, twin)], graph, probe=X)
    randomised(model, 5)


@pytest.mark.parametrize("second", ["single", "single.0", "single.1"])
def test_a_block_is_repeated_twice(tmp_path, second):
    """The copy of a copy, a copy of the first block again, or one after both."""
    model = prepared(Net())
    wrapped(model, "single", model.single)
    wrapped(model, second, model.single[0])
    graph = analyze(model, X)
    name = next(
        insertion_point.module
        for insertion_point in graph.insertion_points
        if insertion_point.module.endswith(".inner")
    )
    transaction(model, [Insert(name, Residual(silent(3)))], graph, probe=X)
    graph = analyze(model, X)
    moves = [
        widen(model, graph, s.name, n + 1) for n, s in enumerate(graph.groups) if "single" in s.name
    ]
    assert len(moves) >= 3
    transaction(model, moves, graph, probe=X)
    into = Net()
    single = into.single
    back = come_back(tmp_path, model, into, X)
    assert single in [*back.single.modules()]
    assert len({id(p) for p in back.parameters()}) == len([*model.parameters()])
    assert len({len(m.slope) for m in back.single.modules() if isinstance(m, Block)}) == 3


@pytest.mark.parametrize("kind", ["list", "sequence"])
@pytest.mark.parametrize("sources", [(0, 0, 1), (0, 1, 1), (0, 0, 0, 1, 1)], ids=str)
def test_blocks_are_repeated_inside_their_list(tmp_path, kind, sources):
    model = prepared(Net(kind))
    blocks = [copy.deepcopy(model.blocks[source]) for source in sources]
    for number, block in enumerate(blocks):
        block.number = number
    blocks[1].inner = nn.Sequential(Residual(nn.Linear(3, 3)), blocks[1].inner)
    model.blocks = type(model.blocks)(*([blocks] if kind == "list" else blocks))
    model.config.layers = len(sources)
    into = Net(kind)
    firsts = [*into.blocks]
    back = come_back(tmp_path, prepared(model), into, X)
    assert [block.number for block in back.blocks] == list(range(len(sources)))
    assert [block.rate for block in back.blocks] == [0.5 * source for source in sources]
    assert [block for block in back.blocks if any(block is first for first in firsts)] == firsts
    assert (back.config.layers, back.config.others) == (len(sources), 17)


def test_blocks_under_names_and_at_the_root(tmp_path):
    def build(*names):
        return nn.Sequential(OrderedDict((name, Block()) for name in names))

    model = build("a", "a_2", "b")
    come_back(tmp_path, prepared(model), build("a", "b"), X)


def test_attention_blocks_are_repeated(tmp_path):
    torch.manual_seed(0)
    x, model = torch.randn(2, 3, 16, 16), randomised(ViT()).eval()
    model.blocks.insert(1, copy.deepcopy(model.blocks[0]))
    model.blocks[2] = nn.Sequential(model.blocks[2], copy.deepcopy(model.blocks[2]))
    graph = analyze(model, x)
    names = ["blocks.0.attn.qkv", "blocks.1.mlp.0", "blocks.2.1.mlp.0", "blocks.2.1.attn.qkv"]
    transaction(
        model, [widen(model, graph, name, n + 1) for n, name in enumerate(names)], graph, probe=x
    )
    back = come_back(tmp_path, randomised(model, 2), ViT(), x)
    assert [back.blocks[0].attn.num_heads, back.blocks[2][1].attn.num_heads] == [4, 7]


def test_a_block_of_standard_layers_is_built(tmp_path):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.out = (
                Residual(nn.Sequential(nn.Linear(3, 2), Rational(2), nn.Linear(2, 3))),
                nn.Linear(3, 1),
            )

        def forward(self, x):
            return self.out(self.body(x))

    model = prepared(Own())
    model.body = nn.Sequential(
        model.body, Residual(nn.Sequential(nn.Linear(3, 4), Rational(4), nn.Linear(4, 3)))
    )
    come_back(tmp_path, prepared(model), Own(), X)


# ---- what doesn't fit


def fewer():
    return Net(rates=(0.0, 0.0, 0.0, 0.0))


def without_blocks():
    return Net(rates=())


def other_blocks():
    model = Net()
    model.blocks[1] = nn.Linear(3, 3)
    return model


def shared_blocks():
    model = Net()
    model.blocks[1] = model.blocks[0]
    return model


def tied_blocks():
    model = Net(rates=(0.0, 0.5, 0.5))
    model.blocks[1].out.weight = model.blocks[0].out.weight
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (fewer, "blocks .* a part '3'"),
        (without_blocks, "blocks .* a part '0'"),
        (other_blocks, "blocks .* a part '2'"),
        (shared_blocks, "one module in the given model, two in the saved one"),
        (tied_blocks, "one tensor in the given model, two in the saved one"),
    ],
)
def test_models_with_other_blocks_are_refused_and_untouched(tmp_path, build, message):
    senn.save(tmp_path, Net(rates=(0.0, 0.5, 0.5)))
    into = build()
    before = everything(into)
    with pytest.raises(SennError, match=message):
        senn.load(tmp_path, into=into)
    assert everything(into) == before


def test_an_error_while_things_are_exchanged_gives_everything_back(tmp_path):
    """A dictionary of the model that breaks when it is written to, after others have been."""

    class Breaking(dict):
        def __setitem__(self, key, value):
            if value.shape == (9, 3):
                raise KeyboardInterrupt
            super().__setitem__(key, value)

    senn.save(tmp_path, Net(rates=(0.0,) * 4).requires_grad_(True))
    grown = Net(rates=(0.0,) * 4)
    grown.single = Block(inner=9)
    senn.save(tmp_path, grown)
    into = Net()
    into.single.inner.__dict__["_parameters"] = Breaking(into.single.inner._parameters)
    before = everything(into)
    with pytest.raises(KeyboardInterrupt):
        senn.load(tmp_path, into=into)
    assert everything(into) == before
