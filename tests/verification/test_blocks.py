"""Residual blocks: which are found, and what a function-preserving copy does to the model and its training."""

from __future__ import annotations

import copy
from collections import OrderedDict
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from exhaustive import EVERYTHING, some
from surgery_cases import everything
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import ZOO
from zoo_cases import LARGEST, in_training, prepared

import senn
from senn import pytree
from senn.graph import DependencyGraph, analyze, explain, function_preserving_copy, get_tensor
from senn.nn import Residual
from senn.surgery import Append, Insert, Widen, transaction
from senn.surgery.outputs import output_change, outputs

FOUND = [name for name, entry in ZOO.items() if entry.blocks]
# each model in one of the precisions; with SENN_ALL=1 in both
PRECISIONS = [
    (name, dtype)
    for at, name in enumerate(FOUND)
    for even, dtype in enumerate((torch.float32, torch.float64))
    if EVERYTHING or at % 2 == even
]


@cache
def _prepared(name: str) -> tuple[nn.Module, object, DependencyGraph]:
    return prepared(name, torch.float64)


def case(
    name: str, dtype: torch.dtype = torch.float64
) -> tuple[nn.Module, object, DependencyGraph]:
    """A model of the zoo of its own; the structure holds for any copy."""
    model, inputs, graph = _prepared(name)
    inputs = pytree.map_leaves(lambda x: x.to(dtype) if x.is_floating_point() else x, inputs)
    return copy.deepcopy(model).to(dtype), inputs, graph


def appended(model: nn.Module, graph: DependencyGraph) -> list[Append]:
    """A function-preserving copy after each block."""
    return [
        Append(block.module, function_preserving_copy(model, block))
        for block in graph.residual_blocks
    ]


def test_what_is_silent() -> None:
    """The last map of each branch, or the norm after it; not a scale after it, which alone would learn little."""
    found = {
        name: case(name)[2].residual_blocks[0].output_params
        for name in ("resnet", "convnext", "vit", "llama")
    }
    assert found == {
        "resnet": ("blocks.0.bn2.weight", "blocks.0.bn2.bias"),
        "convnext": ("stage1.pwconv2.weight", "stage1.pwconv2.bias"),
        "vit": tuple(
            f"blocks.0.{name}.{key}"
            for name in ("attn.proj", "mlp.2")
            for key in ("weight", "bias")
        ),
        "llama": ("layers.0.attention.wo.weight", "layers.0.w2.weight"),
    }


@pytest.mark.parametrize(("name", "dtype"), PRECISIONS)
def test_copies_keep_the_function_and_can_be_undone(name: str, dtype: torch.dtype) -> None:
    model, inputs, graph = case(name, dtype)
    optimizer = torch.optim.AdamW(model.named_parameters(), 0.01)
    _step(model, optimizer, name)
    before, trained = everything(model, optimizer), in_training(model, inputs)
    number, expected = len([*model.parameters()]), outputs(model, inputs)
    receipt = transaction(model, appended(model, graph), graph, optimizer=optimizer, probe=inputs)
    assert output_change(expected, outputs(model, inputs)) <= LARGEST[dtype]
    assert output_change(trained, in_training(model, inputs)) <= LARGEST[dtype]
    added = {
        p
        for block in graph.residual_blocks
        for p in function_preserving_copy(model, _now(model, graph)[block.module]).parameters()
    }
    assert len([*model.parameters()]) == number + len(added)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(p) for p in model.parameters()]
    assert optimizer.param_groups[0]["param_names"] == [
        name for name, _ in model.named_parameters()
    ]
    receipt.undo()
    assert everything(model, optimizer) == before


def _now(model: nn.Module, graph: DependencyGraph) -> dict[str, senn.graph.Block]:
    """Blocks by their old names, where they are after each has got a copy."""
    found = {}
    for number, block in enumerate(graph.residual_blocks):
        path, _, key = block.module.rpartition(".")
        here = sum(
            other.module.rpartition(".")[0] == path for other in graph.residual_blocks[:number]
        )
        name = f"{path}.{int(key) + here}" if block.in_module_list else f"{block.module}.0"
        silent = tuple(full.replace(block.module, name, 1) for full in block.output_params)
        found[block.module] = senn.graph.ResidualBlock(module=name, output_params=silent)
    return found


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, name: str) -> None:
    torch.manual_seed(2)
    dtype = next(model.parameters()).dtype
    inputs = pytree.map_leaves(
        lambda x: x.to(dtype) if x.is_floating_point() else x, ZOO[name].inputs(6)
    )
    result = pytree.call(model.train(), inputs)
    loss = sum(
        (x * torch.randn_like(x)).mean()
        for x in pytree.tensor_leaves(result)
        if x.is_floating_point()
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("name", FOUND)
def test_copies_learn(name: str) -> None:
    """What is silent moves at the first step, what stands before it at the second."""
    model, inputs, graph = case(name)
    block = graph.residual_blocks[0]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    _step(model, optimizer, name)
    flat = {
        key
        for key, p in model.get_submodule(block.module).named_parameters()
        if p.grad.abs().max() < 1e-12
    }
    transaction(model, appended(model, graph)[:1], graph, optimizer=optimizer, probe=inputs)
    path, _, key = block.module.rpartition(".")
    twin = model.get_submodule(
        f"{path}.{int(key) + 1}" if block.in_module_list else f"{block.module}.1"
    )
    start = {key: p.detach().clone() for key, p in twin.named_parameters()}
    for key, buffer in model.get_submodule(block.module).named_buffers():
        assert torch.equal(buffer, twin.get_buffer(key)) if block.in_module_list else True
    silent = {full.removeprefix(f"{block.module}.") for full in block.output_params}
    for expected in (silent - flat, {*start} - flat):
        _step(model, optimizer, name)
        moved = {key for key, p in twin.named_parameters() if (p - start[key]).abs().max() > 1e-14}
        assert moved == expected


# -- where a copy goes


class Stack(nn.Module):
    """Layers of one width, which a rule of its own goes through."""

    def __init__(self, layers: nn.Module, through: str = "list") -> None:
        super().__init__()
        self.inp, self.layers, self.out = nn.Linear(3, 4), layers, nn.Linear(4, 2)
        self.through, self.n_layers = through, len([*layers.children()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        if self.through == "call":
            return self.out(self.layers(x))
        if self.through == "numbers":
            for number in range(self.n_layers):
                x = self.layers[number](x)
            return self.out(x)
        if self.through == "last":
            return self.out(self.layers[-1](self.layers[0](x)))
        sums = 0.0
        for number, layer in enumerate(self.layers):
            x = layer(x)
            sums = sums + (number + 1) * x if self.through == "weighted" else x
        return self.out(sums)


def branch(*end: nn.Module) -> nn.Module:
    return Residual(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), *end))


X = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def built(*layers: nn.Module, through: str = "list") -> tuple[Stack, DependencyGraph]:
    torch.manual_seed(0)
    listed = nn.Sequential(*layers) if through == "call" else nn.ModuleList(layers)
    model = Stack(listed, through).double()
    return model, analyze(model, X)


@pytest.mark.parametrize(
    ("through", "listed", "counts"),
    [
        ("list", [True, True], ["", ""]),
        ("call", [True, True], ["", ""]),
        (
            "numbers",
            [True, True],
            ["n_layers", "n_layers"],
        ),  # the forward pass reads it: it follows
        ("last", [False, False], ["", ""]),  # a longer list would leave some out
        ("weighted", [False, False], ["", ""]),  # places matter
    ],
)
def test_a_copy_goes_where_the_forward_pass_runs_it(
    through: str, listed: list[bool], counts: list[str]
) -> None:
    model, graph = built(branch(), branch(), through=through)
    assert [block.in_module_list for block in graph.residual_blocks] == listed
    assert [
        "".join(one.name for one in block.depth_attributes) for block in graph.residual_blocks
    ] == counts
    before = model(X).detach()
    transaction(model, appended(model, graph), graph, probe=X)
    assert output_change([before], [model(X).detach()]) <= 1e-10
    assert (len(model.layers), model.n_layers) == ((4 if listed[0] else 2), (4 if counts[0] else 2))
    assert len(analyze(model, X).residual_blocks) == 4


class Configured(nn.Module):
    """A configuration says how many layers there are, and of which type each is."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_layers=2, layer_types=["plain", "scaled"])
        self.inp, self.layers, self.out = (
            nn.Linear(3, 4),
            nn.ModuleList([branch(), branch()]),
            nn.Linear(4, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        for layer, kind in zip(
            self.layers[: self.config.num_layers], self.config.layer_types, strict=True
        ):
            x = layer(x) * (0.5 if kind == "scaled" and layer is self.layers[-1] else 1.0)
        return self.out(x)


def test_configurations_follow() -> None:
    torch.manual_seed(0)
    model = Configured().double()
    graph = analyze(model, X)
    assert [[one.name for one in block.depth_attributes] for block in graph.residual_blocks] == [
        ["config.num_layers"]
    ] * 2
    before = model(X).detach()
    receipt = transaction(model, appended(model, graph)[:1], graph, probe=X)
    assert output_change([before], [model(X).detach()]) <= 1e-10
    assert (model.config.num_layers, model.config.layer_types) == (3, ["plain", "plain", "scaled"])
    receipt.undo()
    assert (model.config.num_layers, model.config.layer_types) == (2, ["plain", "scaled"])


def test_a_sequence_keeps_the_names_of_its_parts() -> None:
    torch.manual_seed(0)
    parts = OrderedDict(inp=nn.Linear(3, 4), body=branch(), act=nn.Tanh(), out=nn.Linear(4, 2))
    model = nn.Sequential(parts).double()
    graph = analyze(model, X)
    before = model(X).detach()
    transaction(
        model, [*appended(model, graph), Insert("out", branch().double())][:1], graph, probe=X
    )
    assert [*model._modules] == ["inp", "body", "body_2", "act", "out"]
    assert output_change([before], [model(X).detach()]) <= 1e-10


def test_copies_go_with_other_changes_of_the_same_list_but_not_of_the_stream() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), branch(), nn.Linear(4, 2)).double()
    twin = copy.deepcopy(model)
    graph = analyze(model, X)
    (block,) = graph.residual_blocks
    silent = Residual(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 4))).double()
    nn.init.zeros_(silent.branch[2].weight)
    nn.init.zeros_(silent.branch[2].bias)
    inner = graph.group("1.branch.0")
    rows = {
        coupled.name: torch.randn(1, *get_tensor(model, coupled.name).shape[1:])
        for coupled in inner.dims_of("producer")
    }
    moves = [*appended(model, graph), Insert("2", silent), Widen(inner.name, 1, rows)]
    before = model(X).detach()
    receipt = transaction(model, moves, graph, averaged=[twin], probe=X)
    for one in (model, twin):
        assert output_change([before], [one(X).detach()]) <= 1e-10
        assert [type(layer) for layer in one] == [nn.Linear, Residual, Residual, nn.Sequential]
        assert [layer.branch[0].out_features for layer in one[1:3]] == [6, 5]
    receipt.undo()
    assert [type(layer) for layer in model] == [nn.Linear, Residual, nn.Linear]
    stream = graph.group("0")
    rows = {
        coupled.name: torch.randn(1, *get_tensor(model, coupled.name).shape[1:])
        for coupled in stream.dims_of("producer")
    }
    with pytest.raises(
        senn.SennError, match=f"after '{block.module}' and a change of what it is given"
    ):
        transaction(model, [*appended(model, graph), Widen("0", 1, rows)], graph, probe=X)


def test_parameters_join_the_groups_of_those_of_the_same_name() -> None:
    model, graph = built(branch(), branch())
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": matrices}, {"params": others, "weight_decay": 0.0}])
    transaction(model, appended(model, graph), graph, optimizer=optimizer, probe=X)
    for group, dims in zip(optimizer.param_groups, (2, 1), strict=True):
        assert [id(p) for p in group["params"]] == [
            id(p) for p in model.parameters() if p.dim() == dims
        ]


def test_widths_that_changed_leave_blocks_as_they_were() -> None:
    model, graph = built(branch(), branch())
    inner = graph.groups[1]
    rows = {
        coupled.name: torch.randn(1, *get_tensor(model, coupled.name).shape[1:])
        for coupled in inner.dims_of("producer")
    }
    receipt = transaction(model, [Widen(inner.name, 1, rows)], graph, probe=X)
    assert receipt.graph is not None
    assert (
        receipt.graph.residual_blocks == graph.residual_blocks == analyze(model, X).residual_blocks
    )
    transaction(model, appended(model, receipt.graph), receipt.graph, probe=X)


def test_ties_inside_a_block_are_ties_in_its_copy() -> None:
    tied = branch()
    tied.branch[2] = nn.Linear(5, 4)
    tied.branch[0].weight = nn.Parameter(torch.randn(4, 4))
    tied.branch[0].bias = None
    tied.branch[2] = nn.Linear(4, 4)
    tied.branch.insert(1, nn.Linear(4, 4, bias=False))
    tied.branch[1].weight = tied.branch[0].weight
    model, graph = built(tied)
    transaction(model, appended(model, graph), graph, probe=X)
    first, second = model.layers
    assert second.branch[1].weight is second.branch[0].weight
    assert second.branch[0].weight is not first.branch[0].weight


# -- what is no block, or can't be repeated


class AfterSum(nn.Module):
    """relu(x + f(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.outer(F.relu(self.inner(x))))


def test_what_only_looks_like_a_block_is_none() -> None:
    fresh = nn.TransformerEncoderLayer(
        4, 2, 6, 0.0, batch_first=True
    )  # norm of ones and zeros after the sum
    gate = nn.Sequential(nn.Linear(4, 4), nn.PReLU(4, init=0.0))
    assert built(AfterSum(), gate)[1].residual_blocks == ()
    assert built(nn.ReLU(), AfterSum())[1].residual_blocks[0].module == "layers.1"
    model = nn.Sequential(nn.Linear(3, 4), fresh).double()
    assert analyze(model, X.view(2, 4, 3)).residual_blocks == ()
    raw = nn.Sequential(AfterSum(), nn.Linear(4, 2)).double()
    assert (
        analyze(raw, torch.rand(8, 4).double()).residual_blocks == ()
    )  # the example is positive, other inputs may not be
    shared = branch()
    assert built(shared, shared)[1].residual_blocks == ()


class Normalised(nn.Module):
    """x + norm(f(x)), the norm without a weight: zeros there would be divided by nearly nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.layer_norm(self.map(x), (4,))


def test_blocks_that_cannot_be_repeated_are_named() -> None:
    frozen = branch()
    frozen.branch[2].weight.requires_grad_(False)
    model, graph = built(branch(nn.ReLU()), frozen, branch())
    reasons = {refusal.place: refusal.reason for refusal in graph.refusals}
    assert "layers.0.branch.2.weight has no gradient at zero" in reasons["layers.0"]
    assert "layers.1.branch.2.weight is frozen" in reasons["layers.1"]
    assert [block.module for block in graph.residual_blocks] == ["layers.2"]
    assert analyze(model, X, ignore=["layers.2"]).residual_blocks == ()
    assert [one.reason for one in built(Normalised())[1].refusals if one.place == "layers.0"] == [
        "nothing like it can be put after it: what it adds is normalized, however small it is"
    ]
    with pytest.raises(senn.SennError, match=r"no block 'layers\.1' .* blocks: 'layers\.2'"):
        transaction(model, [Append("layers.1", branch())], graph)
    text = explain(graph)
    assert "can be repeated" in text
    assert "branch.2.weight, branch.2.bias" in text


class Sealed(nn.Sequential):
    """Runs with the parameters it was made with, only."""

    def forward(self, x: Tensor) -> Tensor:
        if self[0].weight[0, 0] != 0.5:
            raise ValueError("the seal is broken")
        return super().forward(x)


def test_a_model_that_runs_with_its_own_parameters_only_has_no_blocks_and_says_so() -> None:
    model = Sealed(nn.Linear(3, 4), branch(), nn.Linear(4, 2)).double()
    nn.init.constant_(model[0].weight, 0.5)
    graph = analyze(model, X)
    assert graph.residual_blocks == ()
    reasons = {refusal.place: refusal.reason for refusal in graph.refusals}
    assert (
        "with other parameters its forward pass fails (ValueError: the seal is broken, at "
        in reasons[""]
    )


def test_a_copy_that_is_not_silent_is_rolled_back() -> None:
    model, graph = built(branch())
    before = everything(model)
    with pytest.raises(senn.SurgeryError, match="changed the outputs"):
        transaction(model, [Append("layers.0", branch().double())], graph, probe=X)
    assert everything(model) == before


@pytest.mark.parametrize("name", some([name for name in ("hf llama", "hf gpt2") if name in ZOO], 2))
def test_caches_of_keys_and_values_know_the_new_layer(name: str) -> None:
    model, inputs, graph = case(name)
    model.eval()
    with torch.no_grad():
        expected = model(inputs).logits
        transaction(model, appended(model, graph), graph, probe=inputs)
        layers = model.get_submodule(graph.residual_blocks[0].module.rpartition(".")[0])
        places = [
            [m.layer_idx for m in layer.modules() if hasattr(m, "layer_idx")] for layer in layers
        ]
        assert places == [[0], [1], [2], [3]]
        assert model.config.num_hidden_layers == 4
        assert (
            analyze(model, {"input_ids": inputs, "use_cache": True}).residual_blocks
            == analyze(model, inputs).residual_blocks
        )
        first = model(inputs[:, :5], use_cache=True)
        second = model(inputs[:, 5:], past_key_values=first.past_key_values, use_cache=True)
    together = torch.cat([first.logits, second.logits], 1)
    assert output_change([expected], [together]) <= 1e-5
