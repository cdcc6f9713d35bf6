"""Several processes are as one on the joined batch."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from exhaustive import EVERYTHING
from rank_cases import (
    CASES,
    SAMPLES,
    SHIFTED,
    endings,
    fit,
    grow,
    meetings,
    several,
    shifted,
    units,
)
from worlds import world

from senn.collectives import Communicator

SHARES = {2: (77, 43), 3: (50, 0, 70)}
DEALT = {2: CASES[:-1:2], 3: (*CASES[1::2], CASES[-1])}
"""Each case is tried with one number of ranks; `SENN_ALL=1` tries all with both."""
if EVERYTHING:
    DEALT = dict.fromkeys(SHARES, CASES)


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return {name: grow(name, (SAMPLES,), 0, Communicator()) for name in CASES} | {
        "fit": fit(Communicator())
    }


@functools.cache
def ranks(size: int) -> list[list[dict[str, Any]]]:
    """What each of so many processes finds; a parametrized fixture would be set up for each case."""
    found = world(size, several, [(name, SHARES[size]) for name in DEALT[size]])
    assert all(isinstance(one, list) for one in found), found
    return found


@pytest.fixture(params=[2, 3])
def together(request: pytest.FixtureRequest) -> list[list[dict[str, Any]]]:
    return ranks(request.param)


@pytest.mark.parametrize(
    ("together", "name"),
    [(size, name) for size, names in DEALT.items() for name in names],
    indirect=["together"],
)
def test_the_same_growth_and_weights_as_one_process(name: str, alone: Any, together: Any) -> None:
    one = alone[name]
    assert one["events"], "nothing grew, so nothing is compared"
    for rank in together:
        several = rank[DEALT[len(together)].index(name)]
        assert [event[:3] for event in several["events"]] == [event[:3] for event in one["events"]]
        _close([event[3:] for event in several["events"]], [event[3:] for event in one["events"]])
        _close(several["figures"], one["figures"])
        for key, tensor in one["weights"].items():
            torch.testing.assert_close(several["weights"][key], tensor, rtol=1e-8, atol=1e-8)
        for mine, its in zip(several["state"], one["state"], strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-8, atol=1e-8)


def test_every_account_has_one_owner_and_every_rank_its_scores(together: Any) -> None:
    one = units(Communicator())
    ranks = [rank[-4] for rank in together]
    owned = [name for rank in ranks for name in rank["owned"]]
    assert sorted(owned) == sorted(one["owned"]) == sorted(one["maps"])
    assert all(rank["owned"] for rank in ranks), "a rank has nothing to do"
    for rank in ranks:
        assert rank["maps"] == one["maps"]
        assert one["known"]
        for key in ("scores", "factors", "known"):
            torch.testing.assert_close(rank[key], one[key], rtol=1e-8, atol=1e-8)


def test_one_rank_gets_the_sum_and_the_samples_and_sends_the_result(together: Any) -> None:
    for rank in together:
        for found, expected in rank[-3]:
            assert (found is None) == (expected is None)
            if found is not None:
                torch.testing.assert_close(found, expected)


def test_a_tensor_as_long_as_a_part_of_the_samples_stays_whole(together: Any) -> None:
    one = shifted(Communicator(), SHIFTED[len(together)][1])
    assert len(one) > 1
    for rank in together:
        _close(rank[-2], one)


def test_the_same_training_as_one_process(alone: Any, together: Any) -> None:
    one = alone["fit"]
    assert len(one["losses"]) == 6
    assert sum(one["architecture"]) > 2
    for rank in together:
        several = rank[-1]
        assert several["architecture"] == one["architecture"]
        _close(several["losses"], one["losses"])
        for found, expected in (
            (several["weights"], one["weights"]),
            (several["sent"]["weights"], one["sent"]["weights"]),
        ):
            for key, tensor in expected.items():
                torch.testing.assert_close(found[key], tensor, rtol=1e-8, atol=1e-8)


def _close(found: Any, expected: Any) -> None:
    found, expected = (torch.tensor(x, dtype=torch.float64) for x in (found, expected))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_ranks_meet_in_their_group_as_they_do_in_the_store() -> None:
    for rank, (store, group, short) in enumerate(found := world(3, meetings)):
        assert store == group
        long, failure, elsewhere, interrupted, events = store
        assert [len(text) for text, _ in long] == [0, 300, 600]
        assert failure == ("no" if rank == 1 else "rank 1 failed to fail: ValueError: no")
        assert "rank 1 was about to be elsewhere and rank 0 to be here" in elsewhere
        assert interrupted == "rank 1 failed to sum: it was asked to end; 3.0"
        assert events == found[0][0][-1] != []
        # gradients in bfloat16: the same decisions, and births of about their length
        assert [one[:3] for one in short[-1]] == [one[:3] for one in events]
        for one, exact in zip(short[-1], events, strict=True):
            assert one[3:] == pytest.approx(exact[3:], rel=0.05)
            assert one[3:] != exact[3:]


def test_one_that_differs_fails_or_is_missing_ends_all(tmp_path: Path) -> None:
    said = world(3, endings, str(tmp_path))
    assert said[1] is None, "rank 1 was to die"
    weight, shape, kind, policy, surgery, call, late, death = zip(said[0], said[2], strict=True)
    assert "rank 1 of 3 differs from the others in the weights body.0.weight" in weight[0]
    assert weight[0] == weight[1]
    assert "rank 2 of 3 has tensors of other shapes" in shape[0]
    assert shape[0] == shape[1]
    assert kind[0].startswith(
        "SennError: rank 2 failed to observe a batch: a batch's inputs must be"
    )
    assert "rank 2 of 3 differs from the others in its policy" in policy[0]
    assert policy[0] == policy[1]
    # A change that fails on one rank alone is left out on all of them, and they go on together.
    assert surgery[0].startswith("rank 1 failed to change the model: the outputs changed")
    assert surgery[0] == surgery[1]
    assert "rank 1 was about to do something else and rank 0 to" in call[0]
    assert call[0] == call[1]
    assert "rank 1 of 3 did not get ready to take a batch within 6 s" in late[0]
    assert late[0] == late[1]
    assert "rank 1 of 3 was lost while all ranks were to sum the moments" in death[0]
    assert death[0] == death[1]
