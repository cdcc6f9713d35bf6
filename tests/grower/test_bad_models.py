"""Models and inputs that can't be grown are refused by one sentence, and models of any inputs and outputs are grown."""

from __future__ import annotations

import copy
from collections import OrderedDict, UserDict, defaultdict
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch
import torch.distributed.fsdp
from surgery_cases import widen
from torch import Tensor, nn

import senn
from senn import pytree
from senn.graph import Refusal, analyze, layer_rule
from senn.surgery import transaction
from senn.surgery.outputs import output_change, outputs


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))


X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
BAD = {
    "meta": (lambda: net().to("meta"), "0.weight is on the meta device"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), "has no shape yet"),
    "scripted": (lambda: torch.jit.script(net()), "compiled by TorchScript"),
    "data parallel": (lambda: nn.DataParallel(net()), "is a DataParallel: give the module inside"),
    "function": (lambda: torch.relu, "needs an nn.Module"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BAD)
def test_models_that_cannot_change_are_refused_by_name(name):
    build, sentence = BAD[name]
    with pytest.raises(senn.SennError, match=sentence):
        analyze(build(), X)


OPAQUE = {
    "quantized": (
        lambda: torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}),
        "it is quantized or prepared for it (Linear): grow the model before that",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OPAQUE)
def test_parts_that_cannot_be_looked_into_are_left_alone_by_name(name):
    build, sentence = OPAQUE[name]
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 3), build())
    graph = analyze(model, X)
    assert [group.name for group in graph.groups] == ["0"]
    assert {one.place: one.reason for one in graph.refusals}["2.0"] == sentence


def _ddp(mesh: object) -> nn.Module:
    return nn.parallel.DistributedDataParallel(net())


def _fsdp1(mesh: object) -> nn.Module:
    return torch.distributed.fsdp.FullyShardedDataParallel(net(), device_id=torch.device("cpu"))


def _fsdp2(mesh: object) -> nn.Module:
    model = net()
    torch.distributed.fsdp.fully_shard(model[0], mesh=mesh)
    return torch.distributed.fsdp.fully_shard(model, mesh=mesh)


SPREAD = {
    "ddp": (
        _ddp,
        r"is a DistributedDataParallel: give the module inside \(`.module`\) and wrap it anew after growth",
    ),
    "fsdp1": (_fsdp1, "is a FullyShardedDataParallel: give the module before it is wrapped"),
    "fsdp2": (
        _fsdp2,
        "0.weight is a DTensor: grow the model before its tensors are sharded or wrapped",
    ),
}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    """One process that is a group."""
    place = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{place}", rank=0, world_size=1
    )
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SPREAD)
def test_models_spread_over_processes_are_refused_by_name(name, mesh):
    build, sentence = SPREAD[name]
    with pytest.raises(senn.UnsupportedError, match=sentence):
        analyze(build(mesh), X)


class Returning(nn.Module):
    """A layer and a model's output made from what it gives."""

    def __init__(self, output):
        super().__init__()
        self.a, self.b, self.output = nn.Linear(3, 4), nn.Linear(4, 2), output

    def forward(self, x):
        return self.output(self.b(self.a(x).relu()))


@pytest.mark.parametrize(
    ("output", "kind"),
    [(lambda y: None, "NoneType"), (lambda y: float(y.sum()), "float"), (str, "str")],
)
def test_models_that_return_no_tensor_are_refused_by_what_they_return(output, kind):
    with pytest.raises(
        senn.UnsupportedError, match=f"returns a {kind} without any tensor that could be followed"
    ):
        analyze(Returning(output), X)


def test_inputs_elsewhere_and_without_samples_are_refused():
    with pytest.raises(senn.SennError, match="example inputs are on meta, the model is on cpu"):
        analyze(net(), X.to("meta"))
    with pytest.raises(senn.SennError, match="hold no sample"):
        analyze(net(), {"input": X[:0]})
    with pytest.raises(senn.SennError, match="the example inputs, a ndarray, hold no tensor"):
        analyze(net(), X.numpy())


@pytest.mark.parametrize(
    "layers", [(), (nn.BatchNorm1d(4),), (nn.Dropout(0.5, inplace=True),), (nn.AlphaDropout(0.5),)]
)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.ELU])
@pytest.mark.parametrize("samples", [1, 4])
def test_activations_in_place_dropout_and_one_sample_are_grown(layers, activation, samples):
    """Analysed and widened in train mode, on a batch of one too, where statistics of the batch don't exist."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 4), *copy.deepcopy(layers), activation(inplace=True), nn.Linear(4, 2)
    )
    x, last = X[:samples], str(len(model) - 1)
    before, held = outputs(model, x), copy.deepcopy(model.state_dict())
    graph = analyze(model, x)
    assert [(group.name, group.width) for group in graph.groups] == [("0", 4)]
    receipt = transaction(model, [widen(model, graph, "0", 2)], graph, probe=x)
    assert receipt.output_change <= 1e-6
    assert output_change(before, outputs(model, x)) <= 1e-6
    assert model.get_submodule(last).in_features == 6
    assert all(module.training for module in model.modules())
    for (
        name,
        value,
    ) in (
        model.state_dict().items()
    ):  # the old entries, statistics of the batch among them, are as before
        old = held[name]
        assert torch.equal(value[tuple(map(slice, old.shape))], old)


def test_dropout_that_never_stops_is_refused_where_it_hides_what_growth_does():
    def never_stops(y):
        return nn.functional.dropout(y, 0.5, training=True)

    assert [group.name for group in analyze(Returning(never_stops), X).groups] == ["a"]
    model = net()
    model[1].register_forward_hook(lambda module, args, output: never_stops(output))
    assert analyze(model, X).refusals[0] == Refusal(
        place="0", reason="the outputs depend on the number of its units"
    )


def test_a_forward_that_draws_random_numbers_can_grow():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(torch.relu(self.a(x + 0.1 * torch.randn_like(x))))

    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert [group.name for group in analyze(Noisy(), X).groups] == ["a"]
    model = Noisy()
    torch.set_rng_state(before)
    analyze(model, X)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_layer_of_an_own_kind_takes_a_rule_of_three_lines():
    class Mine(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.weight, self.bias = (
                nn.Parameter(torch.randn(inputs, outputs)),
                nn.Parameter(torch.zeros(outputs)),
            )

        def forward(self, x):
            return torch.sort(x @ self.weight, dim=0)[0] + self.bias

    model = nn.Sequential(nn.Linear(3, 4), Mine(4, 5), nn.ReLU(), nn.Linear(5, 2))
    assert [group.name for group in analyze(model, X).groups] == ["0"]

    @layer_rule(Mine)
    def rule(visit):
        visit.reads("weight", dim=0)
        visit.makes("weight", dim=1)
        visit.makes("bias", dim=0)

    assert {group.name: group.width for group in analyze(model, X).groups} == {"0": 4, "1": 5}


def test_nestings_of_any_class_keep_their_kind():
    tree = [
        Named(X, [X]), OrderedDict(a=X), UserDict(a=(X,)), MappingProxyType({"a": X}), Logits(X),
        defaultdict(list, a=[X]), Sequenced([X, "x"]), torch.max(X, 1), torch.Size([2, 3]),
    ]  # fmt: skip
    doubled = pytree.map_leaves(lambda x: 2 * x, tree)
    assert [type(one) for one in doubled] == [type(one) for one in tree]
    assert len(pytree.tensor_leaves(doubled)) == len(pytree.tensor_leaves(tree)) == 10
    for found, given in zip(pytree.tensor_leaves(doubled), pytree.tensor_leaves(tree), strict=True):
        assert torch.equal(found, 2 * given)
    assert doubled[6][1] == "x"
    assert doubled[8] == (2, 3)


class Named(NamedTuple):
    """A named tuple."""

    x: Tensor
    rest: list[Tensor]


class Sequenced(list):
    """A list of a class of its own."""


@dataclass
class Logits:
    """What a model may return."""

    logits: Tensor
    scale: float = 1.0


def test_a_dataclass_is_a_nesting():
    found = pytree.map_leaves(lambda x: x[:2], Logits(X, 3.0))
    assert isinstance(found, Logits)
    assert (found.logits.shape, found.scale) == (X[:2].shape, 3.0)
    assert pytree.prediction(found) is found.logits


def test_an_output_of_transformers_is_a_nesting():
    kind = pytest.importorskip("transformers.modeling_outputs").CausalLMOutput
    found = pytree.map_leaves(lambda x: 2 * x, kind(logits=X))
    assert type(found) is kind
    assert found.loss is None
    assert found["logits"] is found.logits
    assert torch.equal(found.logits, 2 * X)


def test_arguments_are_public():
    assert senn.Arguments is pytree.Arguments
    assert "Arguments" in senn.__all__


def test_nestings_keep_their_kind():
    tree = {"a": (X, [X[0], None]), "b": pytree.Arguments(X, scale=2.0)}
    doubled = pytree.map_leaves(lambda x: 2 * x, tree)
    assert torch.equal(doubled["a"][1][0], 2 * X[0])
    assert doubled["a"][1][1] is None
    assert doubled["b"].kwargs == {"scale": 2.0}
    assert len(pytree.tensor_leaves(tree)) == 3
    assert pytree.count(tree) == 4
    assert pytree.index_batch({"x": X, "mask": torch.ones(3, 3)}, slice(0, 2), 4)["mask"].shape == (
        3,
        3,
    )
    with pytest.raises(senn.UnsupportedError, match="returns a tuple with 2 tensors"):
        pytree.prediction((X, X))
