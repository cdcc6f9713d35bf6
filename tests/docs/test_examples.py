"""The examples run, in a short form, and print what the gallery shows."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def load(name: str, monkeypatch):
    spec = importlib.util.spec_from_file_location(
        f"examples_{name}", ROOT / "examples" / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(
        sys.modules, module.__name__, module
    )  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


def test_a_transformers_model_grows_in_its_own_loop(capsys, monkeypatch):
    pytest.importorskip("transformers")
    example = load("hugging_face", monkeypatch)
    example.SCORED, example.BUDGET = 128, 5_000
    example.main(["--seeds", "1", "--epochs", "1", "--rounds", "1"])
    printed = capsys.readouterr().out
    ungrown, grown = (
        int(size.replace(",", "")) for size in re.findall(r"grown: ([\d,]+) parameters", printed)
    )
    assert ungrown < grown <= 5_000
    changes = re.findall(r"step \d+: \w+ \S+: .*promised \+.* nats, \+([\d,]+) parameters", printed)
    assert sum(int(change.replace(",", "")) for change in changes) == grown - ungrown
    assert re.search(r"mean held-out accuracy: ungrown 0\.\d+, grown 0\.\d+\n$", printed)


def test_a_lightning_module_grows_in_its_own_trainer(capsys, monkeypatch):
    pytest.importorskip("lightning")
    load("lightning_digits", monkeypatch).main(["--epochs", "3"])
    printed = capsys.readouterr().out
    assert re.search(r"step \d+: widen net\.0: 2 -> \d+, promised \+", printed)
    size, accuracy, same = re.search(
        r"([\d,]+) parameters, accuracy (0\.\d+); .* module (0\.\d+)\n$", printed
    ).groups()
    assert int(size.replace(",", "")) > 64 * 2 + 2 + 2 * 10 + 10
    assert accuracy == same


def test_a_bert_grows_in_the_trainer_of_transformers(capsys, monkeypatch):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    load("hugging_face_trainer", monkeypatch).main(["--steps", "12"])
    printed = capsys.readouterr().out
    start, end = re.search(
        r"([\d,]+) -> ([\d,]+) parameters, held-out accuracy 0\.\d+", printed
    ).groups()
    changes = re.findall(r"step \d+: \w+ \S+: .*, ([+-][\d,]+) parameters", printed)
    assert changes
    assert sum(int(one.replace(",", "")) for one in changes) == int(end.replace(",", "")) - int(
        start.replace(",", "")
    )
    assert "resumed from step 6 in a fresh small model: the same model\n" in printed


def test_a_network_grows_in_an_own_loop_with_accelerate(capsys, monkeypatch):
    pytest.importorskip("accelerate")
    load("accelerate_loop", monkeypatch).main(["--epochs", "1"])
    printed = capsys.readouterr().out
    assert re.search(r"step \d+: widen \S+: \d+ -> \d+, promised \+", printed)
    assert re.search(r"[\d,]+ parameters, held-out accuracy [01]\.\d+\n$", printed)


def test_a_gpt_grows_while_it_trains(capsys, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "examples")
    (tmp_path / "text").write_bytes(("the cat sat on the mat. " * 400).encode())
    example = load("grow_gpt", monkeypatch)
    example.QUICK["looks"] = 1
    run = example.main(
        ["--quick", "--budget", "1e8", "--data", str(tmp_path), "--optimizer", "muon"]
    )
    printed = capsys.readouterr().out
    assert run.text.vocabulary == 256
    assert re.search(r"% step \d+: (widen|insert) blocks", printed)
    assert run.model.sizes() != "2h/16"
    held = {id(p) for one in run.optimizers for group in one.param_groups for p in group["params"]}
    assert {id(p) for p in run.model.parameters()} == held
    assert run.progress > 0.95
    assert run.history[-1][1] < run.history[0][1]
