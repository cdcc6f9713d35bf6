"""Which adapters get rank and which give it up."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("peft")

from hypothesis import given, settings
from hypothesis import strategies as st

from senn.peft.allocation import PairScores, allocate

WORTH = st.floats(-1, 1, allow_nan=False)
PAIR = st.builds(
    PairScores,
    per_rank=st.integers(1, 20),
    decreases=st.lists(WORTH, max_size=4),
    costs=st.lists(WORTH, min_size=1, max_size=4),
    max_rank=st.one_of(st.none(), st.integers(4, 6)),
)
PAIRS = st.dictionaries(st.sampled_from("abcd"), PAIR, min_size=1)


def one(per_rank: int, decreases: list[float], costs: list[float]) -> PairScores:
    return PairScores(per_rank=per_rank, decreases=decreases, costs=costs)


def test_the_largest_decreases_for_each_parameter_come_first() -> None:
    scores = {"wide": one(10, [1.0], [0.0]), "narrow": one(1, [0.3, 0.2, 0.05], [0.0])}
    found = allocate(scores, max_params=13, swap_margin=2.0)
    assert found["narrow"].added == [0, 1]
    assert "wide" not in found  # its unit would not fit beside them


def test_a_unit_takes_the_place_of_one_that_is_worth_less_by_the_margin() -> None:
    scores = {"a": one(1, [0.9], [5.0]), "b": one(1, [], [0.4, 9.0])}
    assert allocate(scores, max_params=3, swap_margin=2.0)["b"].removed == [0]
    assert allocate(scores, max_params=3, swap_margin=2.5) == {}
    assert allocate(scores, max_params=3, swap_margin=math.inf) == {}


def test_a_budget_below_the_present_size_is_met_by_the_cheapest_units() -> None:
    scores = {"a": one(1, [], [3.0, 1.0, 2.0]), "b": one(1, [], [0.1])}
    found = allocate(scores, max_params=2, swap_margin=2.0)
    assert found["a"].removed == [1, 2]
    assert "b" not in found  # its only unit stays


@settings(max_examples=60, deadline=None)
@given(scores=PAIRS, room=st.integers(0, 60))
def test_budgets_and_limits_hold_and_nothing_useless_comes(
    scores: dict[str, PairScores], room: int
) -> None:
    least = sum(pair.per_rank for pair in scores.values())
    found = allocate(scores, max_params=least + room, swap_margin=2.0)
    total = 0
    for name, pair in scores.items():
        added, removed = (found[name].added, found[name].removed) if name in found else ([], [])
        rank = len(pair.costs) + len(added) - len(removed)
        assert len({*removed}) == len(removed) < len(pair.costs)
        assert all(pair.decreases[number] > 0 for number in added)
        assert pair.max_rank is None or rank <= pair.max_rank or not added
        total += rank * pair.per_rank
    assert total <= least + room
