"""Encodings of a column as numbers: a record per kind of column, fitted once, kept as JSON.

A further kind is one more frozen dataclass with `kind`, `fit`, `features` and `encode`, listed in `column_kinds.KINDS`.
`encode` maps the cells of any table to (n, k) float64 for the k names in `features`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar, Protocol

import numpy as np
import pandas as pd

from senn.data.tabular.cells import Floats, is_missing, numbers, texts
from senn.errors import SennError

MOST_CATEGORIES = 64
"""Categories that get a feature of their own; the rarer ones share one.

It bounds the width of the first layer: a column of names with thousands of rare values would be most of its parameters.
"""

FARTHEST = 1e6
"""Standardized numbers are clipped to this size, so that a wild but finite cell can't overflow float32."""


class Column(Protocol):
    """Interface of every kind of column."""

    kind: ClassVar[str]

    @property
    def name(self) -> str:
        """Name of the column in the table."""

    @property
    def note(self) -> str:
        """Remark for the user, or the empty string."""

    def features(self) -> list[str]:
        """List the names of the numbers that the column becomes."""

    def encode(self, cells: pd.Series[Any]) -> Floats:
        """Encode cells as (n, len(features)) float64."""


def mean_and_deviation(values: Floats) -> tuple[float, float]:
    """Compute mean and standard deviation (1 if there is none)."""
    # scaled by the largest value first: squares of numbers near the end of the float range would overflow
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    mean, deviation = float((values / largest).mean()), float((values / largest).std())
    if not deviation or not isfinite(deviation * largest):
        deviation = 1.0 / largest
    return mean * largest, deviation * largest


def standardize(values: Floats, mean: float, scale: float) -> Floats:
    """Standardize numbers, within `FARTHEST` deviations.

    Args:
        values: (n,) numbers.
        mean: of the training cells.
        scale: standard deviation of the training cells.

    Returns:
        (n,) float64.
    """
    # Halves first: the difference of two numbers near the end of the float range would overflow.
    out: Floats = np.clip((values / 2 - mean / 2) / scale * 2, -FARTHEST, FARTHEST)
    return out


def check_positive(scale: float) -> None:
    """Refuse a scale by which nothing can be divided.

    Raises:
        SennError: it isn't positive.
    """
    if not scale > 0:
        raise SennError(f"a scale must be positive, and {scale:g} isn't")


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """Column that isn't used; `note` says why."""

    kind: ClassVar[str] = "dropped"
    name: str
    note: str

    def features(self) -> list[str]:
        """Return no names: the column becomes no numbers."""
        return []

    def encode(self, cells: pd.Series[Any]) -> Floats:
        """Return an array of no columns, (n, 0)."""
        return np.empty((len(cells), 0))


@dataclass(frozen=True, kw_only=True)
class NumberColumn:
    """Number, standardized; a missing one becomes the median, with an indicator if there were any at fit."""

    kind: ClassVar[str] = "number"
    name: str
    median: float
    mean: float
    scale: float
    indicator: bool
    note: str = ""

    def __post_init__(self) -> None:
        check_positive(self.scale)

    @classmethod
    def fit(cls, name: str, cells: pd.Series[Any]) -> Column:
        """Fit the encoding to training cells.

        Args:
            name: of the column.
            cells: its cells.

        Returns:
            The fitted column, or a `Dropped` one if it can't tell rows apart.

        Raises:
            SennError: a cell isn't a number.
        """
        values = numbers(name, cells)
        missing = np.isnan(values)
        known = values[~missing]
        # a constant tells rows apart only by where it is missing
        if known.size and not missing.any() and known.min() == known.max():
            return Dropped(name=name, note=f"is always {known[0]:g}")
        # the lower middle one, a value that occurs; np.median would average two
        median = float(np.sort(known)[(known.size - 1) // 2])
        # With the median for missing cells, as `encode` has it: what the network reads has mean 0.
        mean, scale = mean_and_deviation(np.where(missing, median, values))
        return cls(name=name, median=median, mean=mean, scale=scale, indicator=bool(missing.any()))

    def features(self) -> list[str]:
        """List the number and, if any were missing at fit, the indicator."""
        return [self.name, f"{self.name} missing"] if self.indicator else [self.name]

    def encode(self, cells: pd.Series[Any]) -> Floats:
        """Standardize the numbers."""
        values = numbers(self.name, cells)
        missing = np.isnan(values)
        standard = standardize(np.where(missing, self.median, values), self.mean, self.scale)
        return np.column_stack([standard, missing] if self.indicator else [standard]).astype(
            np.float64
        )


# 1 and -1 leave the middle to a missing cell; with 1 and 0 it would look like a false one.
_TRUTH = {"true": 1.0, "false": -1.0, "1": 1.0, "0": -1.0, "yes": 1.0, "no": -1.0}


@dataclass(frozen=True, kw_only=True)
class BooleanColumn:
    """Truth value: true is 1, false -1, missing 0."""

    kind: ClassVar[str] = "boolean"
    name: str
    note: str = ""

    @classmethod
    def fit(cls, name: str, cells: pd.Series[Any]) -> Column:
        """Fit the encoding to training cells.

        Args:
            name: of the column.
            cells: its cells.

        Returns:
            The fitted column, or a `Dropped` one if it can't tell rows apart.

        Raises:
            SennError: a cell isn't a boolean.
        """
        seen = set(texts(cells))
        if len(seen) == 1:
            return Dropped(name=name, note=f"is always {str(seen.pop()).lower()}")
        return cls(name=name)

    def features(self) -> list[str]:
        """List the truth value."""
        return [self.name]

    def encode(self, cells: pd.Series[Any]) -> Floats:
        """Encode truth values as 1, -1 or 0."""
        values = np.zeros((len(cells), 1))
        for at, (cell, missing) in enumerate(zip(texts(cells), is_missing(cells), strict=True)):
            if not missing:
                truth = _TRUTH.get(cell.strip().lower())
                if truth is None:
                    raise SennError(
                        f"column {self.name!r}, row {cells.index[at]}: {cell!r} is neither true nor false"
                    )
                values[at] = truth
        return values


@dataclass(frozen=True, kw_only=True)
class CategoryColumn:
    """Category, one feature per frequent one; rare and unseen ones share "other" if there were rare ones at fit."""

    kind: ClassVar[str] = "category"
    name: str
    categories: tuple[str, ...]
    other: bool
    indicator: bool
    note: str = ""

    @classmethod
    def fit(cls, name: str, cells: pd.Series[Any]) -> Column:
        """Fit the encoding to training cells.

        Args:
            name: of the column.
            cells: its cells.

        Returns:
            The fitted column, or a `Dropped` one if it can't tell rows apart, or holds identifiers.
        """
        known = [cell for cell in texts(cells) if cell is not None]
        counts = pd.Series(known, dtype=object).value_counts()
        indicator = len(known) < len(cells)
        if len(counts) < 2 and not indicator:
            return Dropped(name=name, note=f"is always {counts.index[0]!r}")
        # a text that differs in most rows names the row; in a small table that may be chance
        if len(cells) >= 20 and len(counts) > len(known) / 2:
            return Dropped(
                name=name,
                note=f"looks like an identifier: {len(counts):,} different texts in {len(known):,} rows",
            )
        # a category of fewer rows than this (1 % of a small table) would be learned by heart
        rare = min(10, max(1, len(cells) // 100))
        # Ties by their text: in the order of rows, a shuffled table would get other features.
        frequent = sorted(counts.index[counts >= rare], key=lambda text: (-counts[text], text))[
            :MOST_CATEGORIES
        ]
        if not frequent:
            return Dropped(
                name=name, note=f"has {len(counts):,} categories, each in fewer than {rare} rows"
            )
        # unseen categories use the feature of the rare ones, which training has taught; without rare ones they have
        # none
        merged = len(counts) - len(frequent)
        note = f"{merged:,} rare categories are taken together" if merged else ""
        return cls(
            name=name, categories=tuple(frequent), other=merged > 0, indicator=indicator, note=note
        )

    def features(self) -> list[str]:
        """List one feature per category, then "other" and "missing" if there were such cells at fit."""
        extra = [
            word for word, used in (("other", self.other), ("missing", self.indicator)) if used
        ]
        return [f"{self.name}={category}" for category in self.categories] + [
            f"{self.name} {word}" for word in extra
        ]

    def encode(self, cells: pd.Series[Any]) -> Floats:
        """Zeros and a single one per row (none at all for an unseen category where nothing was rare at fit)."""
        place: dict[str | None, int] = {category: at for at, category in enumerate(self.categories)}
        elsewhere = len(self.categories) if self.other else -1
        if self.indicator:
            place[None] = len(self.categories) + self.other
        at = np.asarray([place.get(cell, elsewhere) for cell in texts(cells)], dtype=np.int64)
        out = np.zeros((len(cells), len(self.features())))
        rows = np.flatnonzero(at >= 0)
        out[rows, at[rows]] = 1.0
        return out
