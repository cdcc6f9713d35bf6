"""The bench of wild models on models of plain torch: its short form."""

import importlib

import pytest
from wild import examine, table, vague_places
from wild_models import MODELS, Wild

PLAIN = [name for name, one in MODELS.items() if one.package == "torch"]


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_model_changes_size_trains_grows_and_is_loaded(name):
    found = examine(name, pruning=False)
    assert found["failed"] is None, found
    assert found["groups"] >= 2
    assert found["worst"] <= 1e-12
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
    late = {"model": "late", "package": "gone", "failed": "time"}
    rows = table([found, late]).splitlines()
    assert "build: ModuleNotFoundError" in rows[-2]
    assert "time" in rows[-1]


def test_vague_reasons_are_counted():
    said = [
        {"reason": "its units are the model's outputs", "line": ""},
        {"reason": "a (Net) mixes its units (sum)", "line": "net.py:3, `x.sum(1)`"},
        {"reason": "its size is fixed by view in a (Net)", "line": ""},
        {"reason": "its units meet fold in a (Net), which isn't understood yet", "line": "n.py:3"},
    ]
    assert vague_places({"refusals": said}) == 2


def test_models_of_many_packages():
    assert len(MODELS) >= 131
    assert len({one.package for one in MODELS.values()}) >= 20
