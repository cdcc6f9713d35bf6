"""Recipes, the plans that follow from them, and the validation split."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from senn.errors import SennError
from senn.training import Recipe
from senn.training.recipe import Rounds
from senn.training.split import validation_split


@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=6), fraction=st.floats(0, 0.6), seed=st.integers(0, 99))
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
    first, again, other = (validation_split(y, 0.2, torch.Generator().manual_seed(s))[1] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_too_few_validation_rows_are_not_held_out():
    kept, held = validation_split(torch.zeros(30), 0.1, torch.Generator(), minimum=10)
    assert (len(kept), len(held)) == (30, 0)


def round_steps(rounds, changing, steps):
    taken = []
    for step in range(1, steps + 1):
        if rounds.due(step):
            taken.append(step)
            rounds.done(step, changed=step in changing)
    return taken


def test_rounds_come_early_and_at_increasing_intervals_while_nothing_changes():
    recipe = Recipe(rounds_every=8, rounds_stretch=2.0, rounds=6)
    assert round_steps(Rounds(recipe, end=300), {8}, 1000) == [8, 16, 32, 64, 128, 256]
    assert round_steps(Rounds(recipe, end=100), {8, 32}, 1000) == [8, 16, 32, 40, 56, 88]
    assert round_steps(Rounds(recipe, end=50), {}, 1000) == [8, 24]
    assert round_steps(Rounds(replace(recipe, rounds=2)), range(100), 1000) == [8, 16]
    assert round_steps(Rounds(replace(recipe, grow=False)), {}, 1000) == []


def test_a_plan_follows_the_number_of_rows():
    recipe = Recipe()
    assert recipe.plan(1500).batches * 64 == pytest.approx(1500, rel=0.05)
    assert recipe.plan(20).batches == 1
    assert recipe.plan(20).epochs == recipe.max_epochs
    assert recipe.plan(10**6).epochs == recipe.min_epochs


def test_schedules():
    tail = Recipe(schedule="tail", tail=0.5)
    assert [tail.lr_factor(p) for p in (0, 0.5, 0.75, 1)] == [1, 1, 0.5, 0]
    cosine = Recipe(schedule="cosine")
    assert [round(cosine.lr_factor(p), 9) for p in (0, 0.5, 1)] == [1, 0.5, 0]
    assert Recipe(schedule="constant").lr_factor(0.9) == 1


@pytest.mark.parametrize(
    "field",
    [
        {"lr": 0.0},
        {"lr": -1},
        {"epochs": 0},
        {"batch_size": 2.5},
        {"steps": True},
        {"max_params": 0},
        {"rounds": -1},
        {"rounds_stretch": 0.5},
        {"validation_fraction": 1.0},
        {"tail": 2},
        {"schedule": "steps"},
        {"average": "mean"},
    ],
)
def test_a_recipe_names_what_is_out_of_range(field):
    with pytest.raises(SennError, match=next(iter(field))):
        Recipe(**field)
