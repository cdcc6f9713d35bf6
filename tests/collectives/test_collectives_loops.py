"""Two processes of a loop of others grow one model, as one process does that sees the joined batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import worlds

for name in ("lightning.pytorch", "transformers", "accelerate"):
    pytest.importorskip(name)

from loop_cases import RUNS, several  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loops")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    worlds.preload(
        "senn.integrations.lightning", "senn.integrations.transformers", "transformers.trainer"
    )
    answers = worlds.world(2, several, str(folder))
    assert all(isinstance(rank, dict) for rank in answers), answers
    return answers


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_are_as_one(name: str, two: Any, folder: Path) -> None:
    one = RUNS[name][0](0, 1, folder / name / "1")
    assert {event[1] for event in one["events"]} >= {"widen"}
    for number, rank in enumerate(two):
        whole, resumed = rank[name]
        assert whole["events"] == one["events"]
        assert "fault" not in whole["told"]
        for run in rank[name]:
            torch.testing.assert_close(run["figures"], one["figures"], rtol=1e-8, atol=1e-8)
            for kind in ("weights", "average", "state"):
                torch.testing.assert_close(run[kind], one[kind], rtol=1e-8, atol=1e-8)
        assert resumed["told"] == whole["told"]
        assert whole["heard"] == (whole["told"] if number == 0 else [])


def test_training_goes_on_where_one_process_has_no_batch(two: Any) -> None:
    first, second = (rank["troubled"] for rank in two)
    assert first["history"] == second["history"]
    torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=0)
    faults = [
        (record["step"], record["text"])
        for record in first["history"]
        if record["event"] == "fault"
    ]
    said = "on rank 1, KeyError: 'label'"
    assert faults == [(4, f"the round was skipped: {said}"), (7, f"a batch was left out: {said}")]
    assert any(record["event"] == "growth" for record in first["history"])
