"""How much memory this process may use, so that what can't fit is refused before it is tried."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_CGROUP = Path("/sys/fs/cgroup/memory.max")
"""Limit of a container."""


def memory_limit() -> int:
    """Return the bytes that this process may use at most, as far as the system tells; else the largest size."""
    limits = [sys.maxsize]
    with suppress(OSError, ValueError, AttributeError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):
        limits.append(int(_CGROUP.read_text()))
    if resource is not None:
        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            limits.append(soft)
    return min(limits)


def bytes_text(number: float) -> str:
    """Format a number of bytes.

    >>> bytes_text(4_000_000_000_000), bytes_text(17)
    ('4 TB', '17 bytes')
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:,} bytes"


def is_out_of_memory(error: BaseException) -> bool:
    """Return True for an error that says that memory is at its end, whether Python or PyTorch asked for it."""
    # PyTorch raises a RuntimeError where the system's memory ends, and one of its own class for that of a GPU.
    name, text = type(error).__name__, str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (name == "OutOfMemoryError" or "can't allocate memory" in text)
    )
