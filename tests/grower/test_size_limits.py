"""Limits of parameters and operations: no round passes one, whatever it changes."""

import math
import random
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn import functional as F

import senn
from senn.errors import SennError, UnsupportedError
from senn.flops import forward_flops
from senn.policies import Policy

FEW = senn.CandidateConfig(units=6, residual_units=4, identity_bases=1)


class TakesAny(Policy):
    """A policy that accepts so many candidates of any kind, in an order drawn at random."""

    birth = "silent"
    uses_flops = True

    def __init__(self, seed: int, count: int) -> None:
        self.random, self.count = random.Random(seed), count

    def choose(self, candidates, accepted):
        return self.random.choice(candidates) if candidates and len(accepted) < self.count else None


class Block(nn.Module):
    """A residual block of attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).movedim(-2, -3)
        return x + self.out(F.scaled_dot_product_attention(*parts).movedim(-3, -2).flatten(-2))


def mlp(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3)
    )


def conv(width: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(width, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)),
    )


def attention(width: int) -> nn.Module:
    blocks = nn.Sequential(nn.Linear(2, 2 * width), Block(2 * width, 2))
    return nn.Sequential(blocks, nn.Flatten(), nn.Linear(6 * width, 3))


SHAPES: dict[Callable[[int], nn.Module], tuple[int, ...]] = {
    mlp: (4,),
    conv: (1, 8, 8),
    attention: (3, 2),
}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("build", SHAPES, ids=lambda build: build.__name__)
@settings(max_examples=3, deadline=None)
@given(
    seed=st.integers(0, 99), width=st.integers(1, 3), room=st.floats(0, 1.5), flops=st.booleans()
)
def test_no_round_passes_a_limit_and_each_change_is_counted(build, seed, width, room, flops):
    torch.manual_seed(seed)
    model, x, y = build(width), torch.randn(16, *SHAPES[build]), torch.arange(16) % 3
    size = forward_flops if flops else lambda model, x: parameters(model)
    before, limit = forward_flops(model, x), int((1 + room) * size(model, x))
    limits = {"max_flops" if flops else "max_params": limit}
    grower = senn.Grower(
        model, policy=TakesAny(seed, count=5), candidate_config=FEW, seed=seed, **limits
    )
    events = grower.grow([(x, y)])
    assert size(model, x) <= limit
    decided = [one.candidate for one in grower.last_round.accepted]
    if events and not any(one.kind == "prune" for one in decided):
        assert forward_flops(model, x) == before + sum(one.flops for one in decided)
    assert not events or any(one.flops for one in decided)


DATA = torch.randn(32, 4, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3


class TakesInTurn(Policy):
    """A policy that accepts candidates of these kinds and places, one after the other, where they are offered."""

    birth = "silent"

    def __init__(self, *wanted: tuple[str, str]) -> None:
        self.wanted = [*wanted]

    def choose(self, candidates, accepted):
        offered = {(one.kind, one.place): one for one in candidates}
        while self.wanted:
            one = self.wanted.pop(0)
            if one in offered:
                return offered[one]
        return None


def grown(model: nn.Module, *wanted: tuple[str, str], **limits: Any) -> list[tuple[str, str]]:
    grower = senn.Grower(model, policy=TakesInTurn(*wanted), candidate_config=FEW, **limits)
    grower.grow([DATA])
    return [(one.candidate.kind, one.candidate.place) for one in grower.last_round.accepted]


def test_weights_between_new_units_of_two_groups_count_too():
    # a unit before the square map brings 4 + 1 + 2 parameters, one after it 2 + 1 + 3, and both one more
    both, size = (("widen", "0"), ("widen", "2")), parameters(mlp(2))
    assert grown(mlp(2), *both, max_params=size + 13) == [both[0]]
    assert grown(model := mlp(2), *both, max_params=size + 14) == [*both]
    assert parameters(model) == size + 14


@pytest.mark.parametrize("limit", ["max_params", "max_flops"])
def test_removals_make_no_room_in_their_round(limit):
    # they may turn out to cost too much, and be left out where the additions stay
    model = mlp(3)
    size = parameters(model) if limit == "max_params" else forward_flops(model, DATA[0])
    wanted = (("prune", "0"), ("widen", "2"), ("insert", "4"))
    assert grown(model, *wanted, **{limit: size}) == [wanted[0]]


def test_operations_are_counted_where_a_limit_or_a_policy_asks_for_them():
    def found(**arguments: Any) -> list[senn.policies.Candidate]:
        return senn.Grower(mlp(2), candidate_config=FEW, **arguments).score_candidates([DATA])

    assert all(one.flops is one.flops_per_parameter is None for one in found())
    ratio = forward_flops(mlp(2), DATA[0]) / parameters(mlp(2))
    for arguments in ({"max_flops": 10**9}, {"policy": senn.PricePolicy(unit="flops")}):
        for one in found(**arguments):
            assert one.flops == {"widen": 2 * (6 if one.place == "0" else 5)}.get(
                one.kind, one.flops
            )
            assert one.flops_per_parameter == ratio
            assert (one.flops < 0) == (one.kind == "prune")


def test_a_limit_is_checked_and_can_be_changed():
    with pytest.raises(
        SennError, match="max_flops must be a whole number of at least 1 or None, not 0"
    ):
        senn.Grower(mlp(2), max_flops=0)
    grower = senn.Grower(mlp(2), policy=TakesAny(0, 3), candidate_config=FEW, max_flops=1)
    assert all(event.kind == "prune" for event in grower.grow([DATA]))
    grower.max_flops = None
    assert grower.max_flops is None
    assert any(event.kind != "prune" for event in grower.grow([DATA]))
    flops = grower.last_round.accepted[0].candidate.flops
    assert f"({flops:+,} FLOPs)" in str(grower.last_round)


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.pair = nn.Linear(4, 3), nn.Bilinear(4, 4, 2)
        self.last = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.cat([torch.relu(self.first(x)), self.pair(x, x)], 1))


def test_what_cant_be_counted_is_refused_by_name():
    assert grown(Bilinear(), ("widen", "first")) == [("widen", "first")]
    with pytest.raises(UnsupportedError, match=r"how much aten\._trilinear computes isn't known"):
        grown(Bilinear(), ("widen", "first"), max_flops=10**9)


class GroupNormed(nn.Module):
    """A convolution whose channels are normalized in groups of two."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3), nn.GroupNorm(3, 6)
        self.out, self.head = nn.Conv2d(6, 5, 3), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.out(torch.relu(self.norm(self.conv(x)))))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("build", [mlp, attention, GroupNormed], ids=lambda build: build.__name__)
def test_widths_are_multiples_after_growth_and_removal(build):
    model, shape = (GroupNormed(), (1, 7, 7)) if build is GroupNormed else (build(5), SHAPES[build])
    x, y = torch.randn(24, *shape), torch.arange(24) % 3
    config = senn.CandidateConfig(units=16, residual_units=8, identity_bases=0)
    grower = senn.Grower(model, candidate_config=config, round_to=4, seed=0)
    found = grower.score_candidates([(x, y)])
    changed = [one for one in found if one.kind != "insert" or one.layer_number is not None]
    assert {"widen", "insert"} <= {one.kind for one in changed}
    granularity = {group.name: group.granularity for group in grower.graph.groups}
    for one in changed:
        assert one.width % math.lcm(4, granularity.get(one.place, 1)) == 0
    grower.reset()
    grower.policy = TakesAny(1, 4)
    for event in grower.grow([(x, y)]):
        assert event.width_after % 4 == 0
