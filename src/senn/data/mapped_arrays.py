"""Large arrays lie in a file that the system maps, and whose pages it can write back when memory is short."""

from __future__ import annotations

import math
import os
import tempfile
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

MAPPED_BYTES = 2**28
"""Size from which an array is mapped."""


def empty_array(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Make an array without values, mapped to a file without a name where it is large.

    The file lies in the folder for temporary files (`TMPDIR`), and is gone with the array. Where there is no room for
    it, or the system doesn't tell, the array is in memory.

    Args:
        shape: of the array.
        dtype: of its entries.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < MAPPED_BYTES or not hasattr(os, "posix_fallocate"):
        return np.empty(shape, dtype)
    try:
        with tempfile.TemporaryFile(prefix="senn-") as file:
            # Room is taken at once: a page that a full disk has no room for would end the process by a signal.
            os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype, mode="r+", shape=shape)
    except OSError:
        return np.empty(shape, dtype)
