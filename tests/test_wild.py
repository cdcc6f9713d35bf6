"""The bench of wild models on models of plain torch: its short form."""

import importlib

import pytest
from wild import TOLERANCE, examine, table
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
    assert name in table([found])


def test_a_missing_package_is_a_row(monkeypatch):
    gone = Wild(
        package="gone", build=lambda: importlib.import_module("a_package_that_is_not_there")
    )
    monkeypatch.setitem(MODELS, "gone", gone)
    found = examine("gone", pruning=False)
    assert found["failed"] == "build"
    assert "build: ModuleNotFoundError" in table([found])


def test_at_least_forty_models_of_many_packages():
    assert len(MODELS) >= 40
    assert len({one.package for one in MODELS.values()}) >= 15
