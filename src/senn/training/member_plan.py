"""How many networks of a table are averaged, and how long the further ones are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from senn.errors import SennError
from senn.nn import MLP
from senn.policies import PaperPolicy
from senn.training.builders import ELEMENTWISE
from senn.training.train_config import TrainConfig

MOST_MEMBERS = 8
"""Members of an ensemble whose number isn't given; what they bring is in docs/results.md (`benchmarks/tables.py`)."""

MANY_ROWS = 20_000
"""Rows up to which that many are trained; up to five times as many rows have half of them, larger tables none."""

GAIN = 0.02
"""Share by which the validation loss falls with the learning rate in runs whose members are trained twice as long."""


@dataclass(frozen=True, kw_only=True)
class MemberPlan:
    """How many networks are averaged, and which rows they hold out.

    Attributes:
        count: number of networks, the run's own included.
        cross_fits: True to let each hold out other rows for its validation; False for those of the run.
        allows_linear: True to keep a linear model instead, and alone, where that is better.
        begun: networks that go on beside the run's own, `count` less one of one size; empty for fresh ones.
    """

    count: int = 1
    cross_fits: bool = False
    allows_linear: bool = False
    begun: tuple[MLP, ...] = ()


def plan_members(recipe: TrainConfig, rows: int, *, cross_fits: bool) -> MemberPlan:
    """Choose how many networks of a table are averaged.

    Args:
        recipe: their number, if it says one. A net whose size is limited or chosen by hand stays one by itself.
        rows: training and validation rows.
        cross_fits: True where training draws the validation rows.

    Raises:
        SennError: more than one is asked for with an optimizer or an average that several networks can't share.
    """
    obstacle = _obstacle(recipe)
    limits = (recipe.max_params, recipe.max_flops, recipe.max_width)
    is_paper = recipe.policy == "paper" or isinstance(recipe.policy, PaperPolicy)
    is_free = recipe.grow and not is_paper and all(one is None for one in limits)
    allows_linear = recipe.linear and is_free and "prune" in recipe.moves_of(is_table=True)
    if recipe.members is not None:
        if recipe.members > 1 and obstacle:
            raise SennError(f"members={recipe.members} can't be combined with {obstacle}")
        count = recipe.members
    else:
        count = MOST_MEMBERS if rows <= MANY_ROWS else MOST_MEMBERS // 2
        if obstacle or not is_free or rows > 5 * MANY_ROWS:
            return MemberPlan(allows_linear=allows_linear)
    return MemberPlan(count=count, cross_fits=cross_fits, allows_linear=allows_linear)


def continued_members(
    networks: Sequence[MLP], recipe: TrainConfig, *, cross_fits: bool
) -> MemberPlan:
    """Plan that networks of an ensemble go on beside its first one.

    Args:
        networks: those behind the first, of one size.
        recipe: of the run.
        cross_fits: True where training draws the validation rows.

    Raises:
        SennError: the optimizer, or an average, is one that several networks can't share.
    """
    if networks and (obstacle := _obstacle(recipe)) is not None:
        raise SennError(f"an ensemble can't go on with {obstacle}")
    return MemberPlan(count=1 + len(networks), cross_fits=cross_fits, begun=tuple(networks))


def member_epochs(history: Sequence[Mapping[str, Any]], planned: int) -> int:
    """Choose how many passes over the data members make: twice as many as the run, where that shows that it pays.

    At a constant learning rate validation losses are too noisy to tell whether a run is over. But a network that gains
    when the rate falls wasn't fitted to its rows too closely yet, and gains from a longer run as well; one that doesn't
    was at its best long before.

    Args:
        history: records of the run.
        planned: epochs of the run.
    """
    epochs = [one for one in history if one["event"] == "epoch"]
    if not epochs or any(one["validation_loss"] is None for one in epochs):
        return planned
    peak = max(one["lr"] for one in epochs)
    at_peak = [one["validation_loss"] for one in epochs if one["lr"] > 0.999 * peak]
    falling = [one["validation_loss"] for one in epochs if one["lr"] <= 0.999 * peak]
    gains = bool(falling) and min(falling) < (1 - GAIN) * min(at_peak)
    return 2 * planned if gains else planned


def _obstacle(recipe: TrainConfig) -> str | None:
    """Return what several networks in one tensor can't share; None for nothing."""
    if recipe.optimizer.lower().replace("_", "-") not in ELEMENTWISE:
        return f"the optimizer {recipe.optimizer!r}"
    return None if recipe.average is None else f"average={recipe.average!r}"
