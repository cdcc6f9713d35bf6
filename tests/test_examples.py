"""The examples run, in a short form, and print what the gallery shows."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def load(name: str, monkeypatch):
    spec = importlib.util.spec_from_file_location(f"examples_{name}", ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


def test_a_transformers_model_grows_in_its_own_loop(capsys, monkeypatch):
    pytest.importorskip("transformers")
    example = load("hugging_face", monkeypatch)
    example.LOOK, example.BUDGET = 128, 5_000
    example.main(["--seeds", "1", "--epochs", "2", "--rounds", "1"])
    printed = capsys.readouterr().out
    ungrown, grown = (int(size.replace(",", "")) for size in re.findall(r"grown: ([\d,]+) parameters", printed))
    assert ungrown < grown <= 5_000
    changes = re.findall(r"step \d+: \w+ \S+: .*promised -.* nats, \+([\d,]+) parameters", printed)
    assert sum(int(change.replace(",", "")) for change in changes) == grown - ungrown
    assert re.search(r"mean held-out accuracy: ungrown 0\.\d+, grown 0\.\d+\n$", printed)
