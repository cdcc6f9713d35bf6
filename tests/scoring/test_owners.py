"""Which rank keeps the account of which linear map, and how covariances are sent there."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from senn.collectives import Communicator
from senn.scoring.column_layout import ColumnLayout
from senn.scoring.joint_folds import _triangle, _whole
from senn.scoring.owners import Owners


def _layout(existing: int, **groups: int) -> ColumnLayout:
    columns = {group: torch.arange(units)[:, None] for group, units in groups.items()}
    return ColumnLayout(
        existing=existing, permutation=torch.arange(1), inputs=existing, groups=columns
    )


@pytest.mark.parametrize("size", range(6))
def test_a_covariance_is_sent_as_its_triangle(size):
    x = torch.randn(size, size + 2, dtype=torch.float64)
    covariance = x @ x.mT
    covariance = (covariance + covariance.mT) / 2  # to the last bit
    packed = _triangle(covariance)
    assert packed.numel() == size * (size + 1) // 2
    assert torch.equal(_whole(packed, covariance), covariance.tril() + covariance.tril(-1).mT)


def test_what_is_no_covariance_is_sent_as_it_is():
    for x in (torch.randn(5), torch.randn(4, 2)):
        assert torch.equal(_whole(_triangle(x), x), x)


def test_maps_that_read_one_group_have_one_owner():
    columns = {
        "a": _layout(9, one=2),
        "b": _layout(9, one=2, other=3),
        "c": _layout(9, other=3),
        "d": _layout(20),
    }
    owners = Owners.assign(Communicator(0, 3), columns, dict.fromkeys(columns, 4), ["x", "y"])
    assert owners.maps["a"] == owners.maps["b"] == owners.maps["c"] != owners.maps["d"]
    assert owners.blocks == {"x": 0, "y": 1}


@given(st.lists(st.integers(1, 300), min_size=1, max_size=12), st.integers(1, 5))
def test_no_rank_computes_more_than_its_share_and_one_map(widths, size):
    columns = {str(i): _layout(width) for i, width in enumerate(widths)}
    owners = Owners.assign(Communicator(0, size), columns, dict.fromkeys(columns, 1), [])
    work = [
        sum(width**3 for i, width in enumerate(widths) if owners.maps[str(i)] == rank)
        for rank in range(size)
    ]
    # list scheduling, with an allowance for what else an account takes
    assert max(work) <= sum(x**3 for x in widths) / size + 1.5 * max(widths) ** 3 + 1000
    assert owners.owns("0") == (owners.maps["0"] == 0)
