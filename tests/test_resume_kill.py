"""`kill -9` at any moment, then `senn fit --resume`: the run that comes out is the one that nothing has disturbed."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from kill_cases import ROOMS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes can't be forked here")
ARGV = ["wine", "--epochs", "16", "--seed", "3"]
FEW = {"surgery": 4, "survey.py": 2, "menu.py": 2, "runs.py": 4, "disk.py": 3, "training": 2}
"""Trials at a random call of a function in each room."""
BY_TIME = 3


def served(folder, trials):
    """What came of them."""
    script = Path(__file__).with_name("kill_cases.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], input=json.dumps(trials), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def content(run):
    """All that a finished run's folder says, but for its seconds."""
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    results = json.loads((run / "results.json").read_text())
    for record in (*history, results):
        record.pop("seconds", None)
    for name in ("checksum", "files"):
        results.pop(name)
    files = {name: (run / name).read_bytes() for name in ("model.json", "model.safetensors", "growth.png")}
    return results, history, files, sorted(entry.name for entry in run.iterdir())


def test_twenty_of_twenty_kills_cost_nothing(tmp_path):
    (whole,) = served(tmp_path / "whole", [{"argv": ARGV, "room": "none"}])
    assert whole["first"]["code"] == 0, whole
    expected = content(tmp_path / "whole" / "0")
    assert any(record["event"] == "growth" for record in expected[1])
    draw = random.Random(0)
    trials = [
        {"argv": ARGV, "resume": True, "room": room, "at": draw.randint(1, whole["first"]["counts"][room])}
        for room in ROOMS
        for _ in range(FEW[room])
    ]
    trials += [{"argv": ARGV, "resume": True, "after": draw.uniform(0.05, 0.6)} for _ in range(BY_TIME)]
    assert len(trials) == 20
    done = served(tmp_path / "cut", trials)
    for number, (trial, one) in enumerate(zip(trials, done, strict=True)):
        assert one["first"]["code"] in (-9, 0), (trial, one)
        assert one["first"]["code"] == -9 or "after" in trial
        assert one["second"]["code"] in (0, 2), (trial, one)
        assert content(tmp_path / "cut" / str(number)) == expected, (trial, one)
    assert sum("checkpoint" in " ".join(one["left"] or ()) for one in done) > 12
