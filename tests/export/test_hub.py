"""Folders for the Hugging Face hub: the card, the weights and the configuration, as its own tools read them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cli_cases import people
from safetensors.torch import load_file
from torch import nn

import senn
from senn.cli.main import main
from senn.errors import SennError
from senn.export import push_to_hub, python_source, to_hub
from senn.export.module_source import build_from_source
from senn.nn import MLP

hub = pytest.importorskip("huggingface_hub")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and beside it `run-hub`."""
    place = tmp_path_factory.mktemp("hub")
    frame = people(60).rename(columns={"color": 'a "colour": `#1`\n'})
    frame.to_csv(place / "people: 60.csv", index=False)
    argv = [
        "fit",
        place / "people: 60.csv",
        "--target",
        "kind",
        "--out",
        place / "run",
        "--epochs",
        2,
        "--quiet",
    ]
    assert main([str(arg) for arg in argv]) == 0
    assert main(["export", str(place / "run"), "--to", "hub", "--license", "mit"]) == 0
    return place / "run"


def test_the_card_is_one_that_the_hub_reads(run: Path) -> None:
    folder = run.with_name("run-hub")
    assert {file.name for file in folder.iterdir()} == {
        *(
            "README.md",
            "config.json",
            "growth.png",
            "model.json",
            "model.safetensors",
            "net.py",
            "preprocessing.json",
        )
    }
    card = hub.ModelCard.load(folder / "README.md")
    data = hub.metadata_load(folder / "README.md")
    assert card.data.to_dict()["tags"] == data["tags"] == ["senn", "pytorch"]
    assert (data["license"], data["library_name"]) == ("mit", "pytorch")
    assert data["pipeline_tag"] == "tabular-classification"
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    found = {one.metric_type: one.metric_value for one in card.data.eval_results}
    assert found == results["test"]
    assert card.data.eval_results[0].dataset_name == "people: 60"
    assert card.data.model_name == "run"
    assert "`a \"colour\": '#1'`" in card.text
    assert "senn.load(" in card.text


def test_the_weights_are_read_by_everything_that_reads_such_folders(run: Path) -> None:
    folder = run.with_name("run-hub")
    wanted = senn.load(run)
    state = load_file(folder / "model.safetensors")
    assert all(torch.equal(x, state[name]) for name, x in wanted.state_dict().items())
    assert all(torch.equal(x, senn.load(folder).state_dict()[name]) for name, x in state.items())
    net = build_from_source(python_source(wanted))
    mixed = type("Mixed", (type(net), hub.PyTorchModelHubMixin), {}).from_pretrained(folder)
    assert all(torch.equal(x, mixed.state_dict()[name]) for name, x in state.items())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Net"]
    assert config["parameters"] == sum(x.numel() for x in wanted.parameters())


def test_a_model_of_ones_own_has_a_card_without_what_nobody_knows(tmp_path: Path) -> None:
    done = to_hub(tmp_path / "Mein Netz", MLP(3, (2,), 2), torch.randn(4, 3))
    assert done.difference == 0
    card = hub.ModelCard.load(tmp_path / "Mein Netz" / "README.md")
    assert card.data.to_dict() == {"library_name": "pytorch", "tags": ["senn", "pytorch"]}
    assert card.text.startswith("\n# Mein Netz\n") or card.text.startswith("# Mein Netz\n")
    assert "senn.load" not in card.text
    with pytest.raises(SennError, match=r"holds no saved model: it lacks model.safetensors"):
        to_hub(tmp_path / "other", nn.Linear(1, 1), saved=tmp_path)


def test_pushing_sends_a_folder_that_is_one(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(hub, "create_repo", lambda *args, **options: calls.append((args, options)))

    def upload(**options: Any) -> SimpleNamespace:
        calls.append(options)
        return SimpleNamespace(commit_url="there")

    monkeypatch.setattr(hub, "upload_folder", upload)
    folder = run.with_name("run-hub")
    assert push_to_hub(folder, "me/net", private=True) == "there"
    assert calls[0] == (("me/net",), {"private": True, "token": None, "exist_ok": True})
    assert (calls[1]["repo_id"], calls[1]["folder_path"]) == ("me/net", folder)
    with pytest.raises(SennError, match=r"is no folder for the hub: it lacks model\.safetensors"):
        push_to_hub(tmp_path, "me/net")
    monkeypatch.setattr(hub, "create_repo", lambda *args, **options: 1 / 0)
    with pytest.raises(SennError, match="'me/net' can't be pushed to: division by zero"):
        push_to_hub(folder, "me/net")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SennError, match=r"pip install 'senn\[huggingface\]'"):
        push_to_hub(folder, "me/net")
