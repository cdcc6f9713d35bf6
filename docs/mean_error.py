"""Means with their standard errors, as the pages of results write them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def error(values: Sequence[float]) -> float:
    """Standard error of the mean."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def plus_minus(mean: float, spread: float, digits: int = 4, sign: bool = False) -> str:
    """A mean with its standard error, if that is known."""
    text = f"{mean:{'+' if sign else ''}.{digits}f}"
    return text if math.isnan(spread) else f"{text} ± {spread:.{digits}f}"


def mean_error(values: Sequence[float], sign: bool = False) -> str:
    """Mean and standard error as text."""
    return plus_minus(statistics.fmean(values), error(values), sign=sign)
