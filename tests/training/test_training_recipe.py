"""Recipes, the plans that follow from them, and the validation split."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from senn.errors import SennError
from senn.schedule import GrowthSchedule
from senn.training import TrainConfig
from senn.training.batches import validation_split


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    fraction=st.floats(0, 0.6),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_classes_are_held_out_in_proportion(counts, fraction, seed):
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    kept, held = validation_split(y, fraction, torch.Generator().manual_seed(seed))
    assert sorted(torch.cat([kept, held]).tolist()) == list(range(len(y)))
    assert len(held) <= round(fraction * len(y))
    for label, count in enumerate(counts):
        out = (y[held] == label).sum().item()
        assert out < count or count == 0
        assert abs(out - fraction * count) <= 1.5 or out == count - 1


def test_the_split_is_deterministic_and_seeded():
    y = torch.arange(100) % 4
    first, again, other = (
        validation_split(y, 0.2, torch.Generator().manual_seed(s))[1] for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_too_few_validation_rows_are_not_held_out():
    shares = {rows: TrainConfig().validation_share(rows) for rows in (39, 40, 94, 95, 1000)}
    assert shares == {39: 0.0, 40: 0.25, 94: 10 / 94, 95: 0.1, 1000: 0.1}
    assert TrainConfig(validation_fraction=0.0).validation_share(60) == 0
    for rows in range(40, 96):
        share = TrainConfig().validation_share(rows)
        assert len(validation_split(torch.zeros(rows), share, torch.Generator())[1]) == 10


FIVE = TrainConfig(addition_rounds=(0.02, 0.04, 0.08, 0.16, 0.32), pruning_rounds=(0.4, 0.5))


def rounds_of(recipe, steps, until=None):
    """Steps with a round of additions and with one of removals, when every step up to `until` is asked about."""
    rounds = GrowthSchedule(recipe, steps)
    due = {step: rounds.due(step) for step in range(1, (until or steps) + 1)}
    assert set(due.values()) <= {(), ("width", "depth"), ("prune",)}
    return [step for step, moves in due.items() if "width" in moves], [
        s for s, m in due.items() if m == ("prune",)
    ]


@pytest.mark.parametrize(
    ("steps", "additions", "removals"),
    [
        (1, [1], []),
        (20, [1, 2, 3, 6], [8, 10]),
        (1500, [30, 60, 120, 240, 480], [600, 750]),
        (100_000, [40, 80, 160, 320, 640], [800, 1000]),
    ],
)
def test_rounds_of_a_short_and_of_a_long_run(steps, additions, removals):
    assert rounds_of(FIVE, steps, min(steps, 5000)) == (additions, removals)


def test_the_default_rounds():
    assert rounds_of(TrainConfig(), 10_000) == ([10, 20, 40, 80, 160, 320], [800])


def test_rounds_without_a_planned_end_come_again_twice_as_late():
    additions, removals = rounds_of(FIVE, None, 10_000)
    assert additions == [40, 80, 160, 320, 640, 1280, 2560, 5120]
    assert removals == [800, 1000, 2000, 4000, 8000]


def test_rounds_of_one_kind_do_not_wait_for_those_of_the_other():
    additions, removals = rounds_of(
        TrainConfig(addition_rounds=(0.02,), pruning_rounds=(0.5,)), None, 3000
    )
    assert additions == [40, 80, 160, 320, 640, 1280, 2560]
    assert removals == [1000, 2000]


def test_rounds_of_one_kind_do_not_take_the_place_of_those_of_the_other():
    """Twice 0.2 is 0.4: both would fall on one step again and again."""
    additions, removals = rounds_of(
        TrainConfig(growth_steps=100, addition_rounds=(0.2,), pruning_rounds=(0.4,)), None, 400
    )
    assert additions == [20, 60, 120, 240]
    assert removals == [40, 80, 160, 320]


def test_a_fixed_net_has_no_rounds():
    assert (
        rounds_of(TrainConfig(grow=False), 1500)
        == rounds_of(TrainConfig(grow=False), None, 1500)
        == ([], [])
    )


fractions = st.lists(st.floats(0, 1), max_size=6).map(tuple)


@given(fractions, fractions, st.integers(1, 300), st.one_of(st.none(), st.integers(1, 400)))
@settings(max_examples=100, deadline=None)
def test_each_planned_round_comes_once_at_its_step(rounds, removals, growing, steps):
    recipe = TrainConfig(addition_rounds=rounds, pruning_rounds=removals, growth_steps=growing)
    found = rounds_of(recipe, steps, steps or growing)
    total = growing if steps is None else min(steps, growing)
    wanted = [{max(1, round(fraction * total)) for fraction in kind} for kind in (rounds, removals)]
    assert wanted[0] <= set(found[0])
    assert wanted[1] - wanted[0] <= set(found[1]) | set(found[0])
    if steps is not None:
        assert found == (sorted(wanted[0]), sorted(wanted[1] - wanted[0]))


@given(st.integers(1, 100_000))
def test_nothing_is_removed_before_something_could_be_added(steps):
    additions, removals = rounds_of(TrainConfig(), steps, min(steps, 2000))
    assert not removals or max(additions) < min(removals)


def test_rounds_that_were_passed_over_are_left_out_but_for_the_last():
    rounds = GrowthSchedule(FIVE, 2000)
    assert [rounds.due(step) for step in (39, 100, 100, 900, 999)] == [
        (),
        ("width", "depth"),
        (),
        ("prune",),
        (),
    ]
    assert rounds.due(5000) == ("prune",)
    assert rounds.due(5001) == ()


@pytest.mark.parametrize(("epochs", "end"), [(1, 10), (50, 500), (200, 1000)])
def test_growth_ends_with_the_last_round(epochs, end):
    recipe = replace(FIVE, epochs=epochs, batch_size=64)
    plan = recipe.plan(64 * 20)
    assert (plan.steps, plan.growth_end) == (20 * epochs, end)
    additions, removals = rounds_of(recipe, plan.steps)
    assert max(additions + removals) == end
    assert replace(recipe, addition_rounds=(), pruning_rounds=()).plan(64 * 20).growth_end == 0


def test_a_plan_follows_the_number_of_rows():
    recipe = TrainConfig()
    assert recipe.plan(1500).batches * 64 == pytest.approx(1500, rel=0.05)
    assert recipe.plan(20).batches == 1
    assert recipe.plan(20).epochs == recipe.max_epochs
    assert recipe.plan(10**6).epochs == recipe.min_epochs


def test_schedules():
    tail = TrainConfig(schedule="tail", tail=0.5)
    assert [tail.lr_factor(p) for p in (0, 0.5, 0.75, 1)] == [1, 1, 0.5, 0]
    cosine = TrainConfig(schedule="cosine")
    assert [round(cosine.lr_factor(p), 9) for p in (0, 0.5, 1)] == [1, 0.5, 0]
    assert TrainConfig(schedule="constant").lr_factor(0.9) == 1


@pytest.mark.parametrize(
    "field",
    [
        {"lr": 0.0},
        {"lr": -1},
        {"epochs": 0},
        {"batch_size": 2.5},
        {"steps": True},
        {"max_params": 0},
        {"addition_rounds": 8},
        {"addition_rounds": (0.1, 1.5)},
        {"pruning_rounds": (-0.1,)},
        {"pruning_rounds": [0.5]},
        {"growth_steps": 0},
        {"candidates_per_layer": 0},
        {"validation_fraction": 1.0},
        {"tail": 2},
        {"schedule": "steps"},
        {"average": "mean"},
    ],
)
def test_a_recipe_names_what_is_out_of_range(field):
    with pytest.raises(SennError, match=next(iter(field))):
        TrainConfig(**field)
