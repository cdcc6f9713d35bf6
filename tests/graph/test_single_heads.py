"""Attention with a single head: the head is the unit, as where there are several."""

import pytest
import torch
from graph_nets import Net, batch, names, reasons
from torch import nn
from torch.nn import functional as F

from senn.graph import analyze
from senn.surgery import Prune, Widen, transaction

SIZE = 4


def split(m, z):
    return z.view(*z.shape[:2], m.heads, SIZE).transpose(1, 2)


def attend(m, q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def by_hand(m, q, k, v):
    return ((q @ k.mT) / SIZE**0.5).softmax(-1) @ v


def separate(m, x):
    return [split(m, layer(x)) for layer in (m.q, m.k, m.v)]


def fused(m, x):
    packed = m.qkv(x).view(*x.shape[:2], 3, m.heads, SIZE)
    return packed.permute(2, 0, 3, 1, 4).unbind(0)


def free_count(m, x):
    return [z.unflatten(-1, (-1, SIZE)).transpose(1, 2) for z in m.qkv(x).chunk(3, -1)]


def normed(m, x):
    q, k, v = separate(m, x)
    return m.norm(q), m.norm(k), v


LAYERS = {"q": (6, SIZE), "k": (6, SIZE), "v": (6, SIZE)}
KINDS = {
    "function": (separate, attend, LAYERS),
    "by hand": (separate, by_hand, LAYERS),
    "fused": (fused, by_hand, {"qkv": (6, 3 * SIZE)}),
    "count left free": (free_count, attend, {"qkv": (6, 3 * SIZE)}),
    "norm of features": (normed, attend, {**LAYERS, "norm": nn.LayerNorm(SIZE)}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_head_keeps_the_function_and_can_leave_again(kind):
    parts, product, layers = KINDS[kind]

    def forward(m, x):
        mixed = product(m, *parts(m, x)).transpose(1, 2)
        return m.out(mixed.reshape(*x.shape[:2], m.heads * SIZE))

    model = Net(forward, out=(SIZE, 2), **layers)
    model.heads = 1
    model = model.double()
    x = batch(3, 5, 6).double()
    before, graph = model(x).detach(), analyze(model, x)
    (group,) = graph.groups
    generator = torch.Generator().manual_seed(0)
    values = {
        coupled.name: torch.randn(
            (coupled.index.shape[1], *model.get_parameter(coupled.name).shape[1:]),
            generator=generator,
            dtype=torch.float64,
        )
        for coupled in group.dims_of("producer")
    }
    transaction(model, [Widen(group.name, 1, values)], graph, probe=x)
    assert model.out.in_features == 2 * SIZE
    assert model.heads == 2
    assert torch.allclose(model(x), before, rtol=0, atol=1e-13)
    grown = analyze(model, x)
    assert grown.group(group.name).width == 2
    transaction(model, [Prune(group.name, (1,))], grown, probe=x)
    assert torch.equal(model(x), before)


def test_one_head_of_keys_for_several_of_queries_stays():
    def forward(m, x):
        q = m.q(x).unflatten(-1, (-1, SIZE)).transpose(1, 2)
        k, v = (z.unsqueeze(1) for z in m.kv(x).chunk(2, -1))
        return m.out(by_hand(m, q, k, v).transpose(1, 2).flatten(2))

    model = Net(forward, q=(6, 3 * SIZE), kv=(6, 2 * SIZE), out=(3 * SIZE, 2))
    graph = analyze(model, batch(3, 5, 6))
    assert names(graph) == []
    assert "several heads share one head of keys or values" in reasons(graph)["q"]


def test_a_group_norm_over_a_concatenation_is_named():
    def forward(m, x):
        return m.out(m.norm(torch.cat([m.a(x), m.b(x)], 1)).mean((2, 3)))

    convolutions = {"a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(3, 8, 3)}
    model = Net(forward, norm=nn.GroupNorm(4, 12), out=(12, 2), **convolutions)
    reason = reasons(analyze(model, batch(2, 3, 5, 5)))["a"]
    assert reason.startswith("norm (GroupNorm) normalizes groups of 3 channels")
    assert "a group with channels of a and b" in reason
    fitting = Net(forward, norm=nn.GroupNorm(2, 12), out=(12, 2), **convolutions)
    assert names(analyze(fitting, batch(2, 3, 5, 5))) == []
    convolutions["a"] = nn.Conv2d(3, 6, 3)
    fitting = Net(forward, norm=nn.GroupNorm(7, 14), out=(14, 2), **convolutions)
    assert names(analyze(fitting, batch(2, 3, 5, 5))) == ["a", "b"]
