"""Tails of numbers: whether a few of them lie far outside where most do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HEAVY = 8.0
"""Numbers are heavy-tailed if 98 % of them spread over more than so many times what the middle half does (3.4 for
normal ones, 64 for exp(2.5 z))."""


def is_heavy_tailed(values: NDArray[np.float64]) -> bool:
    """Return True if the tails of numbers are heavy; False where the middle half is a single number.

    Args:
        values: (n,) numbers, at least one.

    >>> import numpy as np
    >>> z = np.random.default_rng(0).normal(size=1000)
    >>> is_heavy_tailed(z), is_heavy_tailed(np.exp(2.5 * z))
    (False, True)
    """
    # halved: the difference of two numbers near the end of the float range would overflow
    low, first, third, high = np.quantile(values / 2, [0.01, 0.25, 0.75, 0.99])
    return bool(high - low > HEAVY * (third - first) > 0)
