"""Hostile tables, images and saved models: a few of the cases of benchmarks/fuzz.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes can't be forked here")
def test_hostile_files_end_in_an_answer_or_a_sentence(tmp_path):
    out = tmp_path / "found.json"
    argv = [BENCHMARKS / "fuzz.py", "--short", "--cases", 8, "--seed", 25, "--out", out]
    done = subprocess.run([sys.executable, *map(str, argv)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["bad"] == []
    assert sum(sum(kinds.values()) for kinds in found["counts"].values()) == 8
    assert all(found["counts"][name] for name in ("tables", "images", "saved models"))
