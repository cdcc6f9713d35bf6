"""`senn fit` under torchrun: the processes train one network, end together and go on together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from senn.cli.main import main
from senn.collectives import Communicator
from senn.errors import SennError
from senn.training import TrainConfig
from senn.training.train_step import TrainStep

TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "-m",
    "senn",
    "fit",
]


def test_torchrun_ends_together_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, table = tmp_path / "run", tmp_path / "table.csv"
    rows = [f"{at % 7},{at % 5},{'ab'[at % 7 * 2 > at % 5 + 4]}" for at in range(210)]
    table.write_text("\n".join(["x,y,kind", *rows]))
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        # A step that goes on for longer than a signal's grace is given up: on a busy machine the run would end before
        # its first checkpoint, and start over.
        "SENN_CHECKPOINT_SECONDS": "0",
        "CUDA_VISIBLE_DEVICES": "",
    }
    options = ["--target", "kind", "--epochs", "30", "--cv", "2", "--members", "1"]
    begun = subprocess.Popen(
        [*TORCHRUN, str(table), *options, "--out", str(out)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert begun.stdout is not None
    heads = [begun.stdout.readline()]
    while "widen" not in heads[-1]:
        heads.append(begun.stdout.readline())
        assert heads[-1], begun.stderr.read() if begun.stderr else ""
    assert sum(line.startswith("table: ") for line in heads) == 1, "both processes speak"
    assert sum(line.startswith("fold ") for line in heads) == 2
    begun.terminate()
    _, errors = begun.communicate(timeout=60)
    assert errors.count("senn: interrupted; ") == 1
    assert (out / "unfinished").is_dir()
    assert main(["fit", "--resume", str(out)]) == 0  # by one process
    assert "note: resumed after step" in capsys.readouterr().out
    assert not (out / "unfinished").exists()
    events = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events].count("start") == 1
    assert any(event["event"] == "growth" for event in events)
    results = json.loads((out / "results.json").read_text())
    assert results["test"]["accuracy"] > 0.8
    assert results["cross_validation"]["mean"]["accuracy"] > 0.8


def test_the_natural_gradient_is_refused() -> None:
    with pytest.raises(SennError, match="natural-gradient are taken by one process"):
        TrainStep(
            torch.nn.Linear(2, 2),
            TrainConfig(optimizer="natural-gradient"),
            "classification",
            10,
            Communicator(0, 2),
        )
