"""Weights that a forward reshapes, slices, stacks or multiplies in ways of its own are still weights."""

import pytest
import torch
from exact_growth import grown
from graph_nets import Net, batch, coupled_dims, each, names, reasons
from torch import Tensor, nn
from torch.nn import functional as F

from senn.graph import analyze
from senn.surgery import Prune, transaction


def _net(forward, *, first=(3, 4), last=(4, 2), **parameters) -> nn.Module:
    model = Net(forward, a=first, b=last)
    for number, (name, shape) in enumerate(parameters.items()):
        setattr(model, name, nn.Parameter(batch(number + 1, *shape)[-1]))
    return model


def _conv(m, x: Tensor) -> Tensor:
    weight = m.conv.weight.squeeze(1).unsqueeze(1)
    hidden = F.pad(m.a(x).transpose(1, 2), (2, 0))
    hidden = F.conv1d(hidden, weight, m.conv.bias, groups=weight.shape[0])
    return m.b(hidden.transpose(1, 2))


def _conv_by_size(m, x: Tensor) -> Tensor:
    weight = m.conv.weight.view(m.conv.weight.size(0), m.conv.weight.size(2))
    hidden = m.a(x).transpose(1, 2)
    return m.b((hidden * weight.sum(1)[:, None]).transpose(1, 2))


def _depthwise(forward) -> nn.Module:
    return Net(forward, a=(3, 4), conv=nn.Conv1d(4, 4, 3, groups=4), b=(4, 2))


@pytest.mark.parametrize("forward", [_conv, _conv_by_size])
def test_depthwise_filters_applied_by_a_function(forward):
    graph = grown(_depthwise(forward), batch(2, 5, 3), ["a"])
    assert coupled_dims(graph.group("a"))["conv.weight"] == ("elementwise", 0, each(4))


PIXELWISE = {
    "a linear layer's weight as 1 x 1 filters": lambda m, x: F.conv1d(
        m.a(x).mT, m.b.weight.unsqueeze(-1), m.b.bias
    ),
    "a linear layer's weight, viewed": lambda m, x: F.conv2d(
        m.a(x).mT[..., None], m.b.weight.view(m.b.out_features, -1, 1, 1), m.b.bias
    ),
    "einsum": lambda m, x: torch.einsum("btd,od->bto", m.a(x), m.b.weight) + m.b.bias,
    "einsum, weight first": lambda m, x: torch.einsum("od,btd->bot", m.b.weight, m.a(x)),
    "weight times features first": lambda m, x: m.b.weight @ m.a(x).mT,
    "tensordot": lambda m, x: torch.tensordot(m.a(x), m.b.weight, ([2], [1])),
    "in two halves": lambda m, x: torch.cat(
        [F.linear(m.a(x), half) for half in m.b.weight.chunk(2)], -1
    ),
    "row by row": lambda m, x: torch.stack([m.a(x) @ row[:, None] for row in m.b.weight], -1),
}


@pytest.mark.parametrize("kind", PIXELWISE)
def test_ways_to_apply_a_matrix(kind):
    graph = grown(_net(PIXELWISE[kind]), batch(2, 5, 3), ["a"])
    assert coupled_dims(graph.group("a"))["b.weight"] == ("consumer", 1, each(4))


STACKS = {
    "matmul": lambda m, x: (x[None] @ m.w).relu() @ m.v,
    "bmm": lambda m, x: torch.bmm(torch.bmm(x.expand(2, -1, -1), m.w).relu(), m.v),
    "einsum": lambda m, x: torch.einsum(
        "eno,eop->enp", torch.einsum("ni,eio->eno", x, m.w).relu(), m.v
    ),
    "baddbmm": lambda m, x: torch.baddbmm(m.bias, x.expand(2, -1, -1), m.w).relu() @ m.v,
    "one by one": lambda m, x: torch.stack(
        [(x @ w).relu() @ v for w, v in zip(m.w, m.v, strict=True)]
    ),
    "chosen by the data": lambda m, x: torch.bmm(
        torch.bmm(x[:, None], m.w[(x[:, 0] > 0).long()]).relu(), m.v[(x[:, 0] > 0).long()]
    )[None],
    "with a gate": lambda m, x: (x @ m.w).relu() @ m.v * x.mT.softmax(0)[:2, :, None],
}


def _stack(kind: str) -> nn.Module:
    model = Net(lambda m, x: STACKS[kind](m, x).sum(0))
    model.w, model.v = nn.Parameter(batch(2, 3, 4)), nn.Parameter(batch(2, 4, 2))
    if kind == "baddbmm":
        model.bias = nn.Parameter(batch(2, 1, 4))
    return model


@pytest.mark.parametrize("kind", STACKS)
def test_a_unit_of_a_stack_of_experts_is_one_of_each(kind):
    graph = grown(_stack(kind), batch(5, 3), ["w"])
    found = coupled_dims(graph.group("w"))
    assert found["w"] == ("producer", 2, each(4))
    assert found["v"] == ("consumer", 1, each(4))


def test_one_map_that_reads_the_features_of_all_heads_makes_them_one_unit():
    model = Net(
        lambda m, x: torch.einsum(
            "bhnf,hfd->bnd", torch.einsum("bnd,hdf->bhnf", x, m.w).relu(), m.v
        )
    )
    model.w, model.v = nn.Parameter(batch(2, 3, 4)), nn.Parameter(batch(2, 4, 2))
    graph = grown(model, batch(2, 5, 3), ["w"])
    assert coupled_dims(graph.group("w"))["w"] == ("producer", 2, each(4))


class Heads(nn.Module):
    """Attention whose weights are (features, heads, size of a head)."""

    def __init__(self, stacked: bool) -> None:
        super().__init__()
        self.stacked = stacked
        shape = (2, 6, 4) if stacked else (6, 2, 4)
        for name in "qkv":
            setattr(self, name, nn.Parameter(batch(*shape) / 3))
        self.o = nn.Parameter(batch(2, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        if self.stacked:
            q, k, v = (x[:, None] @ weight for weight in (self.q, self.k, self.v))
        else:
            q, k, v = (
                torch.einsum("btd,dhk->bhtk", x, weight) for weight in (self.q, self.k, self.v)
            )
        return torch.einsum("bhtk,hkd->btd", (q @ k.mT).softmax(-1) @ v, self.o)


@pytest.mark.parametrize("stacked", [False, True])
def test_heads_are_a_dimension_of_their_weights(stacked):
    graph = grown(Heads(stacked), batch(2, 5, 6), ["q"])
    found = coupled_dims(graph.group("q"))
    dim = 0 if stacked else 1
    assert {name: place[:2] for name, place in found.items()} == {
        **dict.fromkeys("qkv", ("producer", dim)),
        "o": ("consumer", 0),
    }


class Scaled(nn.Module):
    """A linear map whose forward computes its weight."""

    def __init__(self, inputs: int, outputs: int, compute) -> None:
        super().__init__()
        self.w, self.compute = nn.Parameter(batch(outputs, inputs)), compute

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.compute(self.w), torch.zeros(len(self.w)).to(x))


def _computed(compute) -> nn.Module:
    return nn.Sequential(Scaled(3, 4, compute), nn.ReLU(), Scaled(4, 2, compute))


def test_a_weight_scaled_by_a_number_is_still_a_weight():
    graph = grown(_computed(lambda w: -0.5 * w / 3), batch(5, 3), ["0.w"])
    assert coupled_dims(graph.group("0.w"))["2.w"] == ("consumer", 1, each(4))


def test_a_weight_scaled_by_its_size_names_the_reason():
    graph = analyze(_computed(lambda w: w / w.shape[1] ** 0.5), batch(5, 3))
    assert reasons(graph)["0.w"] == "the outputs depend on the number of its units"


COMPUTED = {
    "standardized": (lambda w: (w - w.mean(1, keepdim=True)) / w.std(1, keepdim=True), "mean"),
    "masked": (lambda w: w * torch.ones_like(w).tril(), "ones_like"),
    "softmax": (lambda w: w.softmax(1), "softmax"),
}


@pytest.mark.parametrize("kind", COMPUTED)
def test_no_weight_that_the_forward_computes_is_passed_over(kind):
    compute, operation = COMPUTED[kind]
    found = reasons(analyze(_computed(compute), batch(5, 3)))
    for place in "02":
        assert found[f"{place}.w"] == (
            f"no linear map applies it as it is: it is read by {operation} in {place} (Scaled)"
        )


def test_standardized_filters_are_named_and_so_is_what_they_read():
    def forward(m, x):
        weight = m.b.weight - m.b.weight.mean((1, 2), keepdim=True)
        return m.c(F.conv1d(m.a(x), weight / weight.std((1, 2), keepdim=True), m.b.bias))

    model = Net(forward, a=nn.Conv1d(3, 4, 2), b=nn.Conv1d(4, 5, 2), c=nn.Conv1d(5, 2, 2))
    found = reasons(analyze(model, batch(2, 3, 9)))
    assert found["a"].startswith(
        "its units are read by a weight that is computed from b.weight by "
    )
    assert found["b"].startswith("no linear map applies it as it is: it is read by mean in ")


def test_factors_of_a_weight_of_low_rank_are_named():
    model = _net(lambda m, x: m.b(F.linear(x, m.a.weight + m.up @ m.down)), up=(4, 2), down=(2, 3))
    found = reasons(analyze(model, batch(5, 3)))
    for place, operation in {"a": "add", "up": "mm", "down": "mm"}.items():
        assert f"it is read by {operation} in " in found[place]


def test_units_that_a_computed_weight_reads_say_so():
    model = nn.Sequential(
        nn.Linear(3, 4), Scaled(4, 2, COMPUTED["softmax"][0]), nn.Linear(2, 2), nn.Linear(2, 1)
    )
    graph = analyze(model, batch(5, 3))
    assert reasons(graph)["0"] == (
        "its units are read by a weight that is computed from 1.w by softmax in 1 (Scaled)"
    )
    assert names(graph) == ["2"]


def test_a_learned_graph_moves_rows_and_is_named():
    model = Net(lambda m, x: m.b(m.edges.softmax(1) @ m.a(x).relu()), a=(3, 4), b=(4, 2))
    model.edges = nn.Parameter(batch(5, 5))
    graph = grown(model, batch(2, 5, 3), ["a"])
    assert reasons(graph)["edges"].startswith("no linear map applies it as it is")


class Positions(nn.Module):
    """A frozen table of positions, added to a stream; behind a norm over the features or not."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(3, 4), norm, nn.Linear(4, 2)
        self.positions = nn.Embedding(5, 4).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.embed(x) + self.positions(torch.arange(5))))


@pytest.mark.parametrize("norm", [nn.Identity(), nn.LayerNorm(4), nn.RMSNorm(4, eps=1e-5)])
def test_frozen_positions_go_along_with_the_stream_and_stay_frozen(norm):
    model = Positions(norm)
    graph = grown(model, batch(2, 5, 3), ["embed"])
    assert coupled_dims(graph.group("embed"))["positions.weight"] == ("elementwise", 1, each(4))
    assert not model.positions.weight.requires_grad
    assert model.positions.weight.grad is None
    assert model.positions.embedding_dim == 6


def test_a_frozen_table_that_makes_a_stream_alone_is_named():
    model = Net(
        lambda m, x: m.b(m.table(x[..., 0].long().abs())), table=nn.Embedding(9, 4), b=(4, 2)
    )
    model.table.requires_grad_(False)
    assert reasons(analyze(model, batch(5, 3)))["table"] == "it has a frozen weight"


class Windows(nn.Module):
    """A stream of tokens with learned positions, of which a window may read the first ones only."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.tokens, self.table = nn.Embedding(20, 6), nn.Embedding(9, 6)
        self.positions = nn.Parameter(torch.randn(1, 9, 6))
        self.up, self.down, self.head = nn.Linear(6, 5), nn.Linear(5, 6), nn.Linear(6, 20)

    def forward(self, ids):
        length = ids.shape[1]
        if self.kind == "parameter":
            x = self.tokens(ids) + self.positions[:, :length]
        elif self.kind == "rows of a table":
            x = self.tokens(ids) + self.table.weight[:length]
        else:  # the last positions belong to somebody else
            x = self.tokens(ids) + self.positions[:, :length]
            x = x + self.down(torch.relu(self.up(x) + self.positions[0, 7:, :5].sum(0)))
        return self.head(x + self.down(torch.relu(self.up(x))))


@pytest.mark.parametrize("kind", ["parameter", "rows of a table"])
def test_positions_that_a_short_window_leaves_unread_grow_with_the_others(kind):
    torch.manual_seed(0)
    model = Windows(kind)
    long, short = torch.randint(0, 20, (3, 9)), torch.randint(0, 20, (3, 4))
    whole, part = analyze(model, long), analyze(model, short)
    for name in ("tokens", "up"):
        one, other = whole.group(name), part.group(name)
        assert one.width == other.width
        assert [(x.name, x.dim, x.role) for x in one.dims] == [
            (x.name, x.dim, x.role) for x in other.dims
        ]
    before = [model(ids) for ids in (long, short)]
    transaction(model, [Prune("tokens", (2,), {})], part)
    assert model.head.in_features == 5
    assert model(long).shape == before[0].shape
    assert not torch.equal(model(short), before[1])


def test_positions_that_somebody_else_reads_stay():
    model = Windows("shared")
    graph = analyze(model, torch.randint(0, 20, (3, 4)))
    assert [one.name for one in graph.groups if one.name == "tokens"] == []
    assert any(one.place == "tokens" for one in graph.refusals)
