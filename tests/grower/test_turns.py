"""Rounds that score a part of the linear maps, in turn."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import senn
from senn.errors import SennError

generator = torch.Generator().manual_seed(0)
X = torch.randn(200, 5, generator=generator)
Y = (X[:, 0] * X[:, 1] > 0).long() + (X[:, 2] > X[:, 3]).long()


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 7), nn.Tanh()),
        *(nn.Linear(7, 8), nn.Tanh(), nn.Linear(8, 3)),
    )


class Nothing(senn.Policy):
    def choose(self, candidates, accepted):
        return None


def _grower(**arguments) -> senn.Grower:
    arguments.setdefault("policy", Nothing())
    return senn.Grower(_model(), None, F.cross_entropy, samples=1000, **arguments)


def test_every_map_is_scored_once_in_a_cycle_with_figures_as_in_a_round_of_all():
    config = senn.RoundConfig(maps_per_round=0.3)
    assert config.n_turns == 4
    grower, seen = _grower(round_config=config), []
    for _ in range(4):
        assert grower.grow([(X, Y)]) == []
        assert grower.last_round is not None
        seen.append([*grower.last_round.eta_by_map])
        places = {one.candidate.place for one in grower.last_round.refused}
        groups = {
            one.name: {dim.map for dim in one.dims_of("consumer")} for one in grower.graph.groups
        }
        read_here = {name for name, readers in groups.items() if readers <= {*seen[-1]}}
        assert places <= read_here | {*seen[-1]}
        assert places, "nothing was scored"
        assert grower.last_round.eta == pytest.approx(sum(grower.last_round.eta_by_map.values()))
    assert sorted(name for of in seen for name in of) == ["0", "2", "4", "6"]
    whole = _grower()
    whole.grow([(X, Y)])
    assert whole.last_round is not None
    first = _grower(round_config=config)
    first.grow([(X, Y)])
    assert first.last_round is not None
    for name, eta in first.last_round.eta_by_map.items():
        assert eta == pytest.approx(whole.last_round.eta_by_map[name], rel=0.1)


def test_turns_move_on_after_each_cycle_so_that_moves_of_every_other_round_reach_all_maps():
    grower = _grower(round_config=senn.RoundConfig(maps_per_round=0.5))
    seen: dict[str, set[str]] = {"width": set(), "prune": set()}
    for number in range(4):
        move = ("width", "prune")[number % 2]
        grower.grow([(X, Y)], (move,))
        assert grower.last_round is not None
        seen[move] |= {*grower.last_round.eta_by_map}
    assert seen["width"] == seen["prune"] == {"0", "2", "4", "6"}


def test_what_a_round_adds_is_measured_only_where_its_readers_are_scored():
    policy = senn.PricePolicy(kappa=1e-6, confidence=0.0)
    for share, is_measured in ((1.0, True), (0.3, False)):
        config = senn.RoundConfig(maps_per_round=share)
        grower = _grower(policy=policy, round_config=config, moves=("width",), max_width=12)
        events = []
        while not events and grower.rounds < 4:
            events = grower.grow([(X, Y)])
        assert events
        grower.score_candidates([(X, Y)])
        assert (events[0].realized_decrease is not None) == is_measured


def test_a_policy_that_needs_the_whole_score_is_refused_with_turns():
    grower = _grower(policy=senn.PaperPolicy(), round_config=senn.RoundConfig(maps_per_round=0.5))
    with pytest.raises(SennError, match="maps_per_round must be 1"):
        grower.grow([(X, Y)])


@pytest.mark.parametrize(
    "wrong", [{"maps_per_round": 0.0}, {"maps_per_round": 2}, {"reduce_dtype": torch.int8}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(SennError, match=f"{next(iter(wrong))} must be"):
        senn.RoundConfig(**wrong)


def test_candidate_columns_are_limited():
    grower = _grower(candidate_config=senn.CandidateConfig(max_columns=5), moves=("width",))
    found = grower.score_units([(X, Y)])
    assert found
    assert all(len(one) == 5 for one in found.values())


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return x + self.second(torch.relu(self.first(x)))


def test_copies_of_blocks_have_turns_and_run_maps_of_other_turns():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), Block(), Block(), nn.Linear(6, 3))
    config = senn.RoundConfig(maps_per_round=0.4)
    grower = senn.Grower(
        model, None, F.cross_entropy, Nothing(), samples=1000, round_config=config, moves=("depth",)
    )
    seen = []
    for _ in range(config.n_turns):
        grower.grow([(X, Y)])
        assert grower.last_round is not None
        offered = [one.candidate for one in grower.last_round.refused]
        seen += [one.place for one in offered if one.detail == "a copy after it"]
    assert sorted(seen) == ["1", "2"]
