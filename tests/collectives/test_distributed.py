"""Wrapped models grow as a plain one does, and are wrapped again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from worlds import world
from wrapped_cases import alone, both

from senn.distributed import full_parameters, rewrap_ddp
from senn.errors import SennError


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return alone()


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    found = world(2, both)
    assert all(isinstance(rank, dict) for rank in found), found
    return found


@pytest.mark.parametrize("how", ["replicated", "sharded"])
def test_a_wrapped_model_grows_and_trains_as_a_plain_one(how: str, one: Any, two: Any) -> None:
    assert len(one["events"]) >= 3
    for rank in two:
        assert rank[how]["events"] == one["events"]
        for name, value in one["weights"].items():
            torch.testing.assert_close(rank[how]["weights"][name], value, rtol=1e-8, atol=1e-8)


def test_a_wrapper_says_that_it_is_stale_and_keeps_its_settings(two: Any) -> None:
    for rank in two:
        assert "call senn.distributed.rewrap_ddp(model)" in rank["replicated"]["stale"]
        assert rank["replicated"]["kept"]


def test_what_was_sharded_is_sharded_again(two: Any) -> None:
    for rank in two:
        assert (
            "with senn.distributed.full_parameters(model, optimizer):" in rank["sharded"]["refused"]
        )
        assert rank["sharded"]["halves"]
        assert rank["sharded"]["class"]
        assert sum(rank["sharded"]["units"]) >= 3


def test_gradients_are_still_reduced_after_a_round_that_failed(two: Any) -> None:
    first, second = (rank["broken off"] for rank in two)
    for rank in (first, second):
        assert "not with these sizes" in rank["said"]
        assert rank["kept"]
    for mine, its in zip(first["gradients"], second["gradients"], strict=True):
        assert all(map(torch.equal, mine, its))


def test_other_models_are_refused_by_name() -> None:
    with pytest.raises(SennError, match="a Linear"):
        rewrap_ddp(nn.Linear(2, 2))  # type: ignore[arg-type]
    with (
        pytest.raises(SennError, match="fully_shard has sharded"),
        full_parameters(nn.Linear(2, 2)),
    ):
        pass
