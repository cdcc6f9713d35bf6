"""The bench of wild models on models of plain torch: its short form."""

import importlib

import pytest
from wild import TOLERANCE, examine, in_process, table, vague_places
from wild_models import MODELS, Wild

PLAIN = [name for name, one in MODELS.items() if one.package == "torch"]


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_model_changes_size_trains_grows_and_is_loaded(name):
    found = examine(name, pruning=False)
    assert found["failed"] is None, found
    assert found["groups"] >= 2
    assert found["worst"] <= TOLERANCE
    assert found["events"]
    assert found["loaded"] == 0.0
    assert vague_places(found) == 0
    assert name in table([found])


def test_a_missing_package_is_a_row(monkeypatch):
    gone = Wild(
        package="gone",
        model=lambda: importlib.import_module("a_package_that_is_not_there"),
        batch=len,
    )
    monkeypatch.setitem(MODELS, "gone", gone)
    found = examine("gone", pruning=False)
    assert found["failed"] == "build"
    assert "build: ModuleNotFoundError" in table([found])


def test_a_model_without_end_costs_its_limit_only():
    assert in_process("torch-mlp", False, limit=0.0)["failed"] == "time"


def test_vague_reasons_are_counted():
    said = [
        {"reason": "its units are the model's outputs", "line": ""},
        {"reason": "a (Net) mixes its units (sum)", "line": "net.py:3, `x.sum(1)`"},
        {"reason": "a (Net) mixes its units (sum)", "line": ""},
        {"reason": "its units meet fold in a (Net), which isn't understood yet", "line": "n.py:3"},
    ]
    assert vague_places({"refusals": said}) == 2


def test_at_least_forty_models_of_many_packages():
    assert len(MODELS) >= 40
    assert len({one.package for one in MODELS.values()}) >= 15
