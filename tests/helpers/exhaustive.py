"""Whether a test tries all that there is, or a sample of it: `SENN_ALL=1 pytest FILE` tries all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeVar

EVERYTHING = bool(os.environ.get("SENN_ALL"))

One = TypeVar("One")


def some(everything: Iterable[One], one_in: int, first: int = 0) -> list[One]:
    """One in so many, spread evenly from a first one on; each of them where all are to be tried."""
    listed = list(everything)
    return listed if EVERYTHING else listed[first::one_in]
