"""Padding, memory formats, indices and messages move rows; units along other dimensions stay and can grow."""

import pytest
import torch
from exact_growth import grown
from graph_nets import Net, batch, columns, each, linear_pair, names, reasons
from torch import nn
from torch.nn import functional as F

from senn.graph import analyze

CAUSAL = nn.Sequential(
    nn.Conv1d(3, 4, 2), nn.ReLU(), nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(4, 2, 3)
)
PIXELS = {
    "zeros": nn.ZeroPad2d(1),
    "a constant, cropped at one side": nn.ConstantPad2d((1, 2, -1, 0), 3.0),
    "reflection": nn.ReflectionPad2d(1),
    "replication": nn.ReplicationPad2d(2),
    "circular": nn.CircularPad2d(1),
}
CONVOLUTIONS = {
    "even kernel, same size": {"kernel_size": 4, "padding": "same"},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    "reflect": {"kernel_size": 3, "padding": (0, 2), "padding_mode": "reflect"},
    "replicate, dilated": {
        "kernel_size": (2, 3),
        "padding": "same",
        "padding_mode": "replicate",
        "dilation": 2,
    },
}


def _pixels(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), *layers)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions_that_pad_their_input(kind):
    grown(_pixels(nn.Conv2d(4, 2, **CONVOLUTIONS[kind])), batch(2, 3, 6, 6), ["0"])


@pytest.mark.parametrize("kind", PIXELS)
def test_padded_pixels_belong_to_their_channel(kind):
    grown(_pixels(PIXELS[kind], nn.Conv2d(4, 2, 3)), batch(2, 3, 5, 6), ["0"])


def test_causal_padding_belongs_to_each_channel():
    grown(CAUSAL, batch(2, 3, 6), ["0"])


def test_padded_features_belong_to_no_unit_and_padded_tokens_to_all():
    def forward(m, x):
        return m.b(F.pad(m.a(x), (1, 2, 3, 0), value=1.0))

    graph = grown(Net(forward, a=(3, 4), b=(7, 2)), batch(2, 5, 3), ["a"])
    assert columns(graph, "a", "b") == (each(4, start=1), False)


@pytest.mark.parametrize("tokens", [False, True])
def test_a_single_unit_is_told_from_padding(tokens):
    shape = (2, 5, 3) if tokens else (5, 3)
    widths = (1, 2, 3, 0) if tokens else (1, 2)
    model = Net(lambda m, x: m.b(F.pad(m.a(x), widths)), a=(3, 1), b=(4, 2))
    assert columns(grown(model, batch(*shape), ["a"]), "a", "b") == ([[1]], False)


def test_single_units_side_by_side_stay_two_groups():
    model = Net(lambda m, x: m.b(torch.cat([m.a(x), m.c(x)], 1)), a=(3, 1), c=(3, 1), b=(2, 2))
    graph = grown(model, batch(5, 3), ["a", "c"])
    assert columns(graph, "c", "b") == ([[1]], False)


@pytest.mark.parametrize(
    "pool", [nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(2), nn.MaxPool2d(2)]
)
def test_channels_last_changes_nothing(pool):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 1),
        pool,
        nn.Conv2d(5, 2, 1),
    )
    inputs = batch(2, 3, 7, 7).to(memory_format=torch.channels_last)
    grown(model.to(memory_format=torch.channels_last), inputs, ["0", "3"])


def test_windows_made_of_strides_keep_their_features():
    def forward(m, x):
        h = m.a(x)
        n, t, _ = h.stride()
        return m.b(h.as_strided((len(h), 3, 2, h.shape[2]), (n, t, t, 1)))

    grown(linear_pair(forward), batch(2, 4, 3), ["a"])


def test_strides_that_cut_features_are_refused():
    model = Net(lambda m, x: m.b(m.a(x).as_strided((5, 2), (4, 2))), a=(3, 4), b=(2, 2))
    assert "different numbers of positions" in reasons(analyze(model, batch(5, 3)))["a"]


def test_features_divided_by_their_norm_blame_nothing():
    model = Net(
        lambda m, x: m.c(F.normalize(m.b(m.a(x).relu()), dim=-1)), a=(3, 6), b=(6, 4), c=(4, 2)
    )
    grown(model, batch(5, 3), ["a", "b"])


def test_an_expanded_tensor_without_units_follows_the_units_it_meets():
    model = linear_pair(lambda m, x: m.b((h := m.a(x)) / x.sum(1, keepdim=True).expand_as(h)))
    grown(model, batch(5, 3), ["a"])


FOLLOWING = torch.tensor([1, 2, 3, 4, 0])
TARGETS = torch.tensor([1, 0, 3, 3, 6])
SOME = torch.tensor([True, False, True, False, False])


def _each_feature(h):
    return TARGETS[:, None].expand_as(h)


def _put(h):
    h = h * 1
    h[SOME] = 0.0
    return h


def _put_rows(h):
    larger = h.new_zeros(7, h.shape[1])
    larger[TARGETS] = h
    return larger


MESSAGES = {
    "index_add": lambda h: torch.zeros_like(h).index_add(0, FOLLOWING, h) + h,
    "index_add in place": lambda h: h.new_zeros(7, h.shape[1]).index_add_(0, TARGETS, h),
    "added to itself": lambda h: h.index_add(0, FOLLOWING, h.relu()),
    "scatter_add": lambda h: h.new_zeros(7, h.shape[1]).scatter_add_(0, _each_feature(h), h),
    "scatter_reduce": lambda h: h.new_full((7, h.shape[1]), 0.0).scatter_reduce_(
        0, _each_feature(h), h, "amax", include_self=False
    ),
    "mean of messages": lambda h: (
        h.new_zeros(7, h.shape[1]).index_add_(0, TARGETS, h)
        / h.new_zeros(7).index_add_(0, TARGETS, h.new_ones(5)).clamp(1)[:, None]
    ),
    "scatter": lambda h: torch.zeros(7, h.shape[1]).to(h).scatter(0, _each_feature(h), h),
    "index_copy": lambda h: h.new_zeros(7, h.shape[1]).index_copy(0, TARGETS, h),
    "index_fill": lambda h: h.index_fill(0, TARGETS[:2], 0.5),
    "index_put": _put_rows,
    "mask": _put,
    "masked_scatter": lambda h: h.masked_scatter(SOME[:, None].expand_as(h), h[3:].relu()),
    "index_select": lambda h: h.index_select(0, FOLLOWING[:3]),
    "gather": lambda h: h.gather(0, FOLLOWING[:3, None].expand(-1, h.shape[1])),
    "added in place": lambda h: h.new_zeros(5, 1).expand_as(h).clone().add_(h),
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_rows_move_and_units_stay(kind):
    model = linear_pair(lambda m, x: m.b(MESSAGES[kind](m.a(x))))
    grown(model, batch(5, 3), ["a"])


def test_two_layers_that_write_into_one_tensor_are_one_group():
    model = Net(
        lambda m, x: m.b(m.a(x).index_copy(0, TARGETS[:2], m.c(x[:2]))),
        a=(3, 4),
        c=(3, 4),
        b=(4, 2),
    )
    grown(model, batch(5, 3), ["a"])


MIXED = {
    "index_add": lambda h: h.new_zeros(5, 6).index_add(1, torch.tensor([0, 1, 1, 2]), h),
    "scatter_add": lambda h: h.new_zeros(5, 6).scatter_add(
        1, torch.tensor([0, 1, 1, 2]).expand(5, 4), h
    ),
}


@pytest.mark.parametrize("kind", MIXED)
def test_sums_over_units_are_refused(kind):
    model = Net(lambda m, x: m.b(MIXED[kind](m.a(x))), a=(3, 4), b=(6, 2))
    assert f"mixes its units ({kind})" in reasons(analyze(model, batch(5, 3)))["a"]


def test_an_index_of_fixed_size_for_each_unit_is_refused():
    index = torch.tensor([[0, 1, 2, 1], [2, 2, 0, 3]])
    model = linear_pair(lambda m, x: m.b(m.a(x).gather(0, index)))
    assert (
        "meet a tensor that the forward's own code holds"
        in reasons(analyze(model, batch(5, 3)))["a"]
    )


class Windows(nn.Module):
    """Attention with a table of relative positions: one row for each distance, one column for each head."""

    def __init__(self, table: str) -> None:
        super().__init__()
        self.heads, self.kind = 2, table
        self.qkv, self.out = nn.Linear(6, 24), nn.Linear(8, 2)
        self.table = nn.Parameter(batch(2, 9) if table == "heads first" else batch(9, 2))
        self.register_buffer("distance", torch.arange(5)[:, None] - torch.arange(5)[None] + 4)

    def bias(self, t: int) -> torch.Tensor:
        if self.kind == "heads first":
            return self.table[:, self.distance]
        if self.kind == "index_select":
            return (
                self.table.index_select(0, self.distance.flatten()).view(t, t, -1).permute(2, 0, 1)
            )
        if self.kind == "gather":
            rows = self.distance.view(-1, 1).expand(-1, self.table.shape[1])
            return self.table.gather(0, rows).view(t, t, -1).permute(2, 0, 1)
        return self.table[self.distance.view(-1)].view(t, t, -1).permute(2, 0, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT + self.bias(t)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(b, t, -1))


@pytest.mark.parametrize("table", ["flat index", "index_select", "gather", "heads first"])
def test_a_table_of_relative_positions_grows_with_the_heads(table):
    graph = grown(Windows(table), batch(2, 5, 6), ["qkv"])
    (carrier,) = graph.groups[0].dims_of("elementwise")
    assert (carrier.name, carrier.dim) == ("table", 0 if table == "heads first" else 1)


def test_parts_of_a_concatenation_are_paired_by_where_their_units_lie():
    def forward(m, x):
        mixed = m.tokens(m.a(x).transpose(1, 2)).transpose(
            1, 2
        )  # units along tokens and along features
        return m.last(torch.cat([mixed, m.c(x[:, :1]).expand(-1, mixed.shape[1], -1)], 2))

    model = Net(forward, a=(3, 4), tokens=(5, 6), c=(3, 4), last=(8, 2))
    assert names(analyze(model, batch(2, 5, 3))) == ["a", "c"]
    graph = grown(model, batch(2, 5, 3), ["a", "c"])
    assert columns(graph, "a", "last") == (each(4), False)
    assert columns(graph, "c", "last") == (each(4, start=4), False)


def test_a_prefix_of_learned_rows_joins_the_units_of_what_it_precedes():
    def forward(m, x):
        return m.b(torch.cat([m.prefix.expand(len(x), -1, -1), m.a(x)], 1))

    model = linear_pair(forward)
    model.prefix = nn.Parameter(batch(1, 3, 4))
    grown(model, batch(2, 5, 3), ["a"])
