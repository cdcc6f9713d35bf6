"""Several processes run the tests side by side, each on one core."""

import os

# Set before torch is imported: more threads than cores wait for each other asleep, not spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from browser_cases import browser, pages, single

__all__ = ["browser", "pages", "single"]  # fixtures

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
