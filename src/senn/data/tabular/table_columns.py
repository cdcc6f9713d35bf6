"""Encodings of a column as numbers: a record per kind of column, fitted once, kept as JSON.

A further kind is one more frozen dataclass with `kind`, `fit`, `features` and `encode`, listed in `column_kinds.KINDS`.
`encode` maps the cells of any table to (n, k) float64 for the k names in `features`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from senn.data.tabular.cell_texts import TRUTH
from senn.data.tabular.cells import Floats, FoundKind, is_missing, numbers, shown, style_of, texts
from senn.data.tabular.number_scale import NumberScale, mean_and_deviation, standardize
from senn.data.tabular.number_style import PLAIN, Mark, NumberStyle
from senn.data.tabular.written_numbers import full_unit, settled_decimal, written_number
from senn.errors import SennError

EXACT = 2.0**53
"""Magnitude from which floats are no longer all whole numbers."""

FAR_OUTSIDE = 50
"""Spreads from the median beyond which a number that training never reached is told: a unit or a mark is another."""


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

    def surprises(self, cells: pd.Series[Any]) -> list[str]:
        """Say which cells training never saw, or read otherwise: ends of sentences about the column."""


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

    def surprises(self, cells: pd.Series[Any]) -> list[str]:
        """Return nothing: the column isn't used."""
        return []


@dataclass(frozen=True, kw_only=True)
class NumberColumn:
    """Number, read as of `NumberScale`; a missing one is the median, with an indicator if any were missing at fit.

    Attributes:
        name: of the column.
        median: of the training cells; stands for a missing number.
        scale: spread of the training cells.
        indicator: whether a number is missing is a feature.
        style: how the training table writes the numbers.
        note: end of a sentence about the column.
        edges: of bins between quantiles of the training cells; empty for none.
        mean: None, but in runs of version 0.1, which count from the mean, in standard deviations, and don't clip.
    """

    kind: ClassVar[str] = "number"
    name: str
    median: float
    scale: float
    indicator: bool
    style: NumberStyle = PLAIN
    note: str = ""
    edges: tuple[float, ...] = ()
    mean: float | None = None

    def __post_init__(self) -> None:
        check_positive(self.scale)

    @classmethod
    def fit(
        cls,
        name: str,
        cells: pd.Series[Any],
        decimal: Mark | None = None,
        found: FoundKind | None = None,
    ) -> Column:
        """Fit the encoding to training cells.

        Args:
            name: of the column.
            cells: its cells.
            decimal: decimal mark of the table's numbers, where that is known.
            found: what `kind_of` says of the cells; None to ask how its numbers are written.

        Returns:
            The fitted column, or a `Dropped` one if it can't tell rows apart.

        Raises:
            SennError: a cell isn't a number.
        """
        style, note = (found.style, found.note) if found else style_of(name, cells, decimal)
        values = numbers(name, cells, style)
        missing = np.isnan(values)
        known = values[~missing]
        # a constant tells rows apart only by where it is missing
        if known.size and not missing.any() and known.min() == known.max():
            return Dropped(name=name, note=f"is always {known[0]:g}")
        scale = NumberScale.fit(known)
        note = note or _rounded(cells, values)
        return cls(
            name=name,
            median=scale.median,
            scale=scale.scale,
            indicator=bool(missing.any()),
            style=style,
            note=note,
        )

    def with_bins(
        self, cells: pd.Series[Any], bins: int, weight: Floats | None = None
    ) -> NumberColumn:
        """Return the column with bins between quantiles of its training cells.

        Args:
            cells: the training cells.
            bins: most bins.
            weight: (n,) positive weights, by which median, spread and bins go; None for equal ones.
        """
        values = numbers(self.name, cells, self.style)
        known = ~np.isnan(values)
        scale = NumberScale.fit(values[known], bins, None if weight is None else weight[known])
        return replace(self, median=scale.median, scale=scale.scale, edges=scale.edges)

    def original(self, cells: pd.Series[Any]) -> NumberColumn:
        """Return the column as version 0.1 fitted it: by mean and standard deviation, with the median where one lacks.

        Args:
            cells: the training cells.
        """
        values = numbers(self.name, cells, self.style)
        mean, scale = mean_and_deviation(np.where(np.isnan(values), self.median, values))
        return replace(self, mean=mean, scale=scale, edges=())

    def features(self) -> list[str]:
        """List the number, its bins and, if any were missing at fit, the indicator."""
        bins = [f"{self.name} bin {number}" for number in range(1, len(self.edges))]
        return [self.name, *bins, *([f"{self.name} missing"] * self.indicator)]

    def encode(self, cells: pd.Series[Any]) -> Floats:
        """Standardize the numbers."""
        values = numbers(self.name, cells, self._style_of(cells))
        missing = np.isnan(values)
        values = np.where(missing, self.median, values)
        if self.mean is None:
            read = NumberScale(median=self.median, scale=self.scale, edges=self.edges)
            standard = read.encode(values)
        else:
            standard = standardize(values, self.mean, self.scale)
        return np.column_stack([standard, missing] if self.indicator else [standard]).astype(
            np.float64
        )

    def surprises(self, cells: pd.Series[Any]) -> list[str]:
        """Say if cells are missing that never were, or if numbers are written otherwise than in training."""
        missing = is_missing(cells)
        found = [] if self.indicator else empty_cells(missing)
        style = self._style_of(cells)
        # Cells that are numbers already are written in no way.
        if self.style.unit or not pd.api.types.is_numeric_dtype(cells.dtype):
            found += self._written_otherwise(cells[~missing], len(cells), style)
        found += self._far_outside(cells, style)
        return [f"{one}, as no cell in training" for one in found]

    def _written_otherwise(self, known: pd.Series[Any], of: int, style: NumberStyle) -> list[str]:
        """Say how many of the cells that aren't missing are written otherwise than those of the training table."""
        found = []
        if style != self.style:
            phrases = {",": "with a decimal comma", ".": "with a decimal point"}
            found.append(counted(known, of, f"are written {phrases[style.decimal]}"))
        elif len(known):
            units = np.asarray([_unit(cell, style) for cell in known], dtype=object)
            lacking = known[(units == "") & (known.astype("str") != "0").to_numpy()]
            further = known[units != ""]
            if self.style.unit and len(lacking):
                found.append(counted(lacking, of, f"lack the unit {self.style.unit!r}"))
            if not self.style.unit and len(further):
                found.append(counted(further, of, "have a unit"))
        return found

    def _far_outside(self, cells: pd.Series[Any], style: NumberStyle) -> list[str]:
        """Say how many numbers lie outside the training cells, and `FAR_OUTSIDE` spreads from their median or more."""
        if not self.edges:
            return []
        low, high = self.edges[0], self.edges[-1]
        values = numbers(self.name, cells, style)
        with np.errstate(over="ignore"):  # what overflows is far
            z = np.abs(standardize(values, self.median, self.scale))
        far = (z > FAR_OUTSIDE) & ((values < low) | (values > high))
        if not far.any():
            return []
        return [counted(cells[far], len(cells), f"lie far outside {low:g} to {high:g}")]

    def _style_of(self, cells: pd.Series[Any]) -> NumberStyle:
        """Return how these cells are written: as in training, unless only the other decimal mark reads them all."""
        if pd.api.types.is_numeric_dtype(cells.dtype):
            return self.style
        known = [cell for cell in cells[~is_missing(cells)] if isinstance(cell, str)]
        mark: Mark = "," if settled_decimal(known, self.style.decimal) == "," else "."
        return replace(self.style, decimal=mark)


def _rounded(cells: pd.Series[Any], values: Floats) -> str:
    """Say if whole numbers are too large to be told from their neighbors, as those of long keys are; "" if not."""
    for at in np.flatnonzero(np.abs(values) >= EXACT)[:100]:
        digits = str(cells.iloc[at]).strip()
        if digits.lstrip("-").isdecimal() and int(digits) != int(values[at]):
            return f"has whole numbers such as {shown(digits)}, of which the first 16 digits count"
    return ""


def _unit(cell: Any, style: NumberStyle) -> str:
    """Return the unit that a cell has beside its number."""
    found = written_number(cell, style.decimal) if isinstance(cell, str) else None
    return "" if found is None else full_unit(found[1], "" if style.scaled else found[2])


def counted(some: pd.Series[Any], of: int, what: str) -> str:
    """Say of how many cells something is true, and show the first."""
    return f"{len(some):,} of {of:,} cells {what}, the first being {shown(some.iloc[0])}"


def empty_cells(missing: NDArray[np.bool_]) -> list[str]:
    """Say how many cells are missing, in a list that is empty if none are."""
    count = int(missing.sum())
    return [f"{count:,} of {len(missing):,} cells are empty"] if count else []


def with_count_of_bins(column: Column) -> str:
    """Return the name of a column, with the number of its bins if it has some.

    >>> with_count_of_bins(NumberColumn(name="x", median=0.0, scale=1.0, indicator=False))
    'x'
    """
    count = len(column.edges) - 1 if isinstance(column, NumberColumn) else 0
    return f"{column.name} ({count} bins)" if count > 0 else column.name


@dataclass(frozen=True, kw_only=True)
class BooleanColumn:
    """Truth value: true is 1, false -1, missing 0."""

    kind: ClassVar[str] = "boolean"
    name: str
    note: str = ""

    @classmethod
    def fit(
        cls,
        name: str,
        cells: pd.Series[Any],
        decimal: Mark | None = None,
        found: FoundKind | None = None,
    ) -> Column:
        """Fit the encoding to training cells.

        Args:
            name: of the column.
            cells: its cells.
            decimal: not used.
            found: not used.

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
                truth = TRUTH.get(cell.strip().lower())
                if truth is None:
                    raise SennError(
                        f"column {self.name!r}, row {cells.index[at]}: {cell!r} is neither true nor false"
                    )
                values[at] = truth
        return values

    def surprises(self, cells: pd.Series[Any]) -> list[str]:
        """Say nothing: a missing cell lies between true and false."""
        return []
