"""Arguments of a grower that are changed between rounds: checked and honored, or refused by name."""

import copy

import pytest
import torch
from growth_cases import FEW, Take, X, Y, net
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import senn
from senn import SennError
from senn.policies import Budget

BATCH = [(X[:200], Y[:200])]


def grower(model=None, **settings) -> senn.Grower:
    settings = {"moves": ["width"], "candidate_config": FEW, "policy": Take("widen")} | settings
    return senn.Grower(model or net(layers=2), None, **settings)


def test_layers_ignored_from_now_on_do_not_grow():
    one = grower()
    one.observe(*BATCH[0])
    one.ignore = ["0"]
    events = one.grow(BATCH)
    assert [event.place for event in events] == ["2"]
    assert one.ignore == ("0",)


def test_limits_hold_from_now_on():
    one = grower()
    assert one.grow(BATCH)
    one.max_width = 3
    assert one.grow(BATCH) == []
    assert one.max_width == 3
    one.max_width, one.round_to = None, 8
    assert one.grow(BATCH)
    assert one.architecture[0] % 8 == 0
    assert one.budget == Budget(None, None, 8)


def test_moves_of_one_round_do_not_stay():
    one = grower(moves=["width", "depth"])
    one.grow(BATCH, moves=["width"])
    assert one.moves == ("width", "depth")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("round_to", 1.5),
        ("max_params", "5"),
        ("moves", "width"),
        ("ignore", "0"),
        ("samples", -1),
        ("policy", "price"),
        ("candidate_config", 3),
        ("loss", torch.nn.functional.mse_loss),
        ("metric", "euclidean"),
        ("seed", 1),
        ("model", net()),
    ],
)
def test_wrong_and_fixed_settings_are_refused_by_name(name, value):
    one = grower()
    before = dict(vars(one))
    with pytest.raises(SennError, match=name):
        setattr(one, name, value)
    assert vars(one) == before


def test_a_copy_has_its_own_settings():
    one = grower()
    twin = copy.deepcopy(one)
    twin.max_width = 3
    assert one.max_width is None
    assert twin.max_width == 3


@pytest.mark.parametrize("moves", [["width"], ["prune"], ["width", "prune"]])
def test_a_model_that_no_move_can_change_is_refused_with_the_reason(moves):
    model = nn.Sequential(weight_norm(nn.Linear(64, 4)), nn.ReLU(), nn.Linear(4, 10))
    with pytest.raises(SennError, match=f"no place to grow by {' or '.join(moves)} .*parametriz"):
        grower(model, moves=moves).grow(BATCH)


def test_a_round_of_removals_is_no_error_where_only_layers_can_be_added():
    model = nn.Sequential(nn.Linear(64, 10))
    one = grower(model, moves=["depth", "prune"], policy=Take("insert", 0))
    assert one.grow(BATCH, moves=["prune"]) == []
