"""Scales of numbers: what a column is centered on and divided by, and how far a number may lie outside.

References:
    Holzmuller, Grinsztajn & Steinwart 2024, *Better by default: strong pre-tuned MLPs and boosted trees on tabular
    data*, arXiv 2407.04491, appendix A: robust scale and smooth clip.
    Gorishniy, Rubachev & Babenko 2022, *On embeddings for numerical features in tabular deep learning*, arXiv
    2203.05556, section 3.2: piecewise-linear encoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from senn.data.tabular.cells import Floats
from senn.data.tabular.target import Task
from senn.data.tails import HEAVY

FARTHEST = 1e6
"""Standardized numbers are clipped to this size, so that a wild but finite cell can't overflow float32."""

BOUND = 3.0
"""Size that smoothly clipped numbers don't reach."""

SPREADS = ((0.25, 1.349), (0.05, 3.290), (0.01, 4.653))
"""Quantiles beside whose mirror image a spread is read off, and how many normal standard deviations lie between."""

HEAVY_FACTOR = 4
"""How many times as many bins heavy-tailed numbers get."""

BINS = 8
"""Most bins of a column: with 5 or 12 nets end no better on the rows of `benchmarks/table_sizes.py --tuning`."""

ROWS_AN_INPUT: Mapping[Task, int] = {"classification": 4, "regression": 10}
"""Fewest training rows for each number and bin, by task: with fewer, bins fit the noise of a number to predict (seen on
a diabetes table of 331 rows and 10 columns), while classes tell more (seen on digits, 1,347 rows and 64 columns).
"""

FEWEST_BINS = 3
"""A column with fewer gets none: they tell hardly more than the number does."""

ROWS_A_BIN = 25
"""Fewest training rows for each bin of a column."""

MOST_INPUTS = 2048
"""Most inputs that columns of numbers and their bins may make; without bins there may be more."""


@dataclass(frozen=True, kw_only=True)
class NumberScale:
    """How one column of numbers is read: robustly scaled and clipped smoothly, and how far it lies through each bin.

    A few wild numbers change no scale by much, and none is read as more than 3. Bins let a network bend at any
    quantile without having to learn where these are.

    Attributes:
        median: becomes 0.
        scale: spread that becomes 1, above 0.
        edges: of the bins, rising; empty for no bins, else four at least.
    """

    median: float
    scale: float
    edges: tuple[float, ...] = ()

    @classmethod
    def fit(cls, values: Floats, bins: int = 0, weight: Floats | None = None) -> NumberScale:
        """Fit the scale to training numbers.

        The median is the lower one, a number that occurs. The scale is the standard deviation that normal numbers with
        these quantiles would have: by the quartiles or the outer twentieths, whichever is larger; if both are zero, by
        the outer hundredths, else half the range, else 1. Bins lie between quantiles, and are left out if there are
        fewer than three, which tell hardly more than the number does.

        Args:
            values: (n,) finite numbers, at least one.
            bins: most bins; heavy-tailed numbers get up to four times as many.
            weight: (n,) positive weights; None for equal ones.

        >>> import numpy as np
        >>> NumberScale.fit(np.array([*range(99), 5e9]))
        NumberScale(median=49.0, scale=37.06449221645663, edges=())
        """
        levels = [0.5, *(side for low, _ in SPREADS for side in (low, 1 - low))]
        ordered, share = _ordered(values, weight)
        median, *sides = _quantiles(ordered, share, levels)
        # divided first: the difference of two numbers near the end of the float range would overflow
        spreads = [
            sides[2 * at + 1] / deviations - sides[2 * at] / deviations
            for at, (_, deviations) in enumerate(SPREADS)
        ]
        # The quartiles alone would clip most of what a column says that is nearly always the same, such as a pixel.
        candidates = (
            max(spreads[:2]),
            spreads[2],
            float(ordered[-1]) / 2 - float(ordered[0]) / 2,
        )
        spread = next((one for one in candidates if one > 0 and isfinite(one)), 1.0)
        near, far = (sides[at + 1] / 2 - sides[at] / 2 for at in (0, 4))
        if far > HEAVY * near:
            # nearly all that such a column tells lies in its quantiles
            bins *= HEAVY_FACTOR
        # halves: edges so near to each other that their difference vanishes are one
        halves = {edge / 2 for edge in _quantiles(ordered, share, np.linspace(0, 1, bins + 1))}
        edges = tuple(2 * half for half in sorted(halves)) if len(halves) > FEWEST_BINS else ()
        return cls(median=median, scale=spread, edges=edges)

    @property
    def bins(self) -> int:
        """Number of bins."""
        return max(len(self.edges) - 1, 0)

    def encode(self, values: Floats) -> Floats:
        """Encode numbers.

        Args:
            values: (n,) finite numbers.

        Returns:
            (n, 1 + bins): z / sqrt(1 + (z / 3)^2) of the scaled number z; then for each bin -1 below it, 1 above it,
            and linear between.
        """
        with np.errstate(over="ignore"):  # what overflows is clipped
            return self._encoded(values)

    def _encoded(self, values: Floats) -> Floats:
        z = standardize(values, self.median, self.scale)
        columns = [(z / np.hypot(1.0, z / BOUND))[:, None]]
        if self.edges:
            # Halves, since the difference of two numbers near the end of the float range would overflow.
            halves = np.asarray(self.edges) / 2
            low, high = halves[:-1], halves[1:]
            columns.append(2 * np.clip((values[:, None] / 2 - low) / (high - low), 0, 1) - 1)
        return np.hstack(columns)


def most_bins(rows: int, columns: int, task: Task, inputs: int | None = None) -> int:
    """Choose how many bins a column of numbers gets at most.

    Args:
        rows: training rows.
        columns: columns of numbers.
        task: `classification` or `regression`.
        inputs: most inputs that numbers and bins may make together; None for `MOST_INPUTS`.

    >>> [most_bins(rows, 10, "regression") for rows in (5000, 500, 100)]
    [8, 4, 0]
    >>> most_bins(5000, 10, "classification", inputs=40)
    3
    """
    most = most_inputs(rows, task, inputs)
    return max(0, min(BINS, rows // ROWS_A_BIN, most // max(columns, 1) - 1))


def most_inputs(rows: int, task: Task, inputs: int | None = None) -> int:
    """Return how many inputs numbers and bins may make together.

    Args:
        rows: training rows.
        task: `classification` or `regression`.
        inputs: a limit of the network's; None for none.

    >>> most_inputs(5000, "regression"), most_inputs(5000, "regression", 40)
    (500, 40)
    """
    most = MOST_INPUTS if inputs is None else min(inputs, MOST_INPUTS)
    return min(most, rows // ROWS_AN_INPUT[task])


def mean_and_deviation(values: Floats) -> tuple[float, float]:
    """Compute mean and standard deviation (1 if there is none)."""
    # scaled by the largest value first: squares of numbers near the end of the float range would overflow
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    mean, deviation = float((values / largest).mean()), float((values / largest).std())
    if not deviation or not isfinite(deviation * largest):
        deviation = 1.0 / largest
    return mean * largest, deviation * largest


def _ordered(values: Floats, weight: Floats | None) -> tuple[Floats, Floats]:
    """Sort values; return them with the weight of all up to each."""
    if weight is None:  # a sort takes a tenth of the time of finding the order
        return np.sort(values), np.arange(1.0, len(values) + 1)
    order = np.argsort(values, kind="stable")
    return values[order], np.cumsum(weight[order])


def _quantiles(ordered: Floats, share: Floats, levels: Any) -> list[float]:
    """Compute quantiles that occur among the values: the first whose share of the weight reaches each level."""
    # of n equal weights the one at n / 2, whatever their rounding
    at = np.searchsorted(share * (1 + 1e-12), np.asarray(levels) * share[-1])
    return [float(value) for value in ordered[np.minimum(at, len(ordered) - 1)]]


def standardize(values: Floats, center: float, scale: float) -> Floats:
    """Standardize numbers, within `FARTHEST` times the scale.

    Args:
        values: (n,) numbers.
        center: becomes 0.
        scale: becomes 1.

    Returns:
        (n,) float64.
    """
    # Halves first: the difference of two numbers near the end of the float range would overflow.
    out: Floats = np.clip((values / 2 - center / 2) / scale * 2, -FARTHEST, FARTHEST)
    return out
