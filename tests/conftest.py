"""Several processes run the tests side by side, each on one core."""

import gc
import os

# Set before torch is imported: more threads than cores wait for each other asleep, not spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest

# Nearly all that is made while tests are collected stays, so looking for garbage among it is in vain.
gc.disable()

LONGEST = {
    "test_four_of_four_kills_cost_nothing",
    "test_damaged_folders",
    "test_torchrun_ends_together_and_goes_on",
    "test_random_models_in_random_orders",
}
"""Tests, and files of tests that share what takes long, which begin first: at the end no process waits for another."""


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return  # it only hands tests out, and all others wait until it has begun
    import torch

    config.pluginmanager.import_plugin("browser_cases")
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def is_short(item: pytest.Item) -> bool:
        name = item.name.partition("[")[0]
        return LONGEST.isdisjoint((item.path.stem, name))

    items.sort(key=is_short)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()
