"""Several processes are as one on the joined batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rank_cases import CASES, SAMPLES, grow, several
from worlds import world

from senn.ranks import Ranks

SHARES = {2: (77, 43), 3: (50, 0, 70)}


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return {name: grow(name, (SAMPLES,), 0, Ranks()) for name in CASES}


@pytest.fixture(scope="module", params=[2, 3])
def together(request: pytest.FixtureRequest) -> list[list[dict[str, Any]]]:
    size = request.param
    found = world(size, several, [(name, SHARES[size]) for name in CASES])
    assert all(isinstance(one, list) for one in found), found
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_same_growth_and_weights_as_one_process(name: str, alone: Any, together: Any) -> None:
    one = alone[name]
    assert one["events"] or name == "paper", "nothing grew, so nothing is compared"
    for rank in together:
        several = rank[CASES.index(name)]
        assert [event[:3] for event in several["events"]] == [event[:3] for event in one["events"]]
        _close([event[3:] for event in several["events"]], [event[3:] for event in one["events"]])
        _close(several["figures"], one["figures"])
        for key, tensor in one["weights"].items():
            torch.testing.assert_close(several["weights"][key], tensor, rtol=1e-8, atol=1e-8)
        for mine, its in zip(several["state"], one["state"], strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-8, atol=1e-8)


def _close(found: Any, expected: Any) -> None:
    found, expected = (torch.tensor(x, dtype=torch.float64) for x in (found, expected))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
