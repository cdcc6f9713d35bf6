"""Several processes run the tests side by side, each on one core."""

import os

import torch
from browser_cases import browser, pages, single

__all__ = ["browser", "pages", "single"]  # fixtures

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
