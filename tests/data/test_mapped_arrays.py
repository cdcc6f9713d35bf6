"""Large arrays are mapped to a file: same values, and nothing left behind."""

import errno
import os

import numpy as np
import pytest
import torch

from senn.data import mapped_arrays
from senn.data.mapped_arrays import empty_array
from senn.training import batches
from senn.training.batches import Rows


@pytest.fixture
def mapped(monkeypatch, tmp_path):
    """Map arrays of a kilobyte already, to files in an empty folder."""
    monkeypatch.setattr(mapped_arrays, "MAPPED_BYTES", 1024)
    monkeypatch.setattr(batches, "MAPPED_BYTES", 1024)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_small_arrays_are_in_memory_and_large_ones_mapped_to_files_without_names(mapped):
    assert not isinstance(empty_array((16, 2), np.float32), np.memmap)
    large = empty_array((16, 32), np.float32)
    assert isinstance(large, np.memmap)
    large[:] = 3
    assert float(large.sum()) == 3 * 16 * 32
    assert not [*mapped.iterdir()]


def test_without_room_for_the_file_the_array_is_in_memory(mapped, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    found = empty_array((16, 32), np.float64)
    assert not isinstance(found, np.memmap)
    found[:] = 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8, torch.int64])
def test_rows_taken_into_a_mapped_array_are_those_taken_in_memory(mapped, dtype):
    x = (torch.arange(600).view(100, 2, 3) % 251).to(dtype)
    rows = torch.randperm(100, generator=torch.Generator().manual_seed(0))[:90]
    taken = Rows(x=x, y=torch.arange(100)).take(rows)
    assert torch.equal(taken.x, x[rows])
    assert taken.x.dtype == dtype
    assert torch.equal(taken.y, rows)
    taken.x[0] = 0  # its own memory
    assert torch.equal(x, (torch.arange(600).view(100, 2, 3) % 251).to(dtype))
