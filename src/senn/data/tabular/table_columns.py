"""Encodings of a column as numbers: a record per kind of column, fitted once, kept as JSON.

A further kind is one more frozen dataclass with `kind`, `fit`, `features` and `encode`, listed in `KINDS`.
`encode` maps the cells of any table to (n, k) float64 for the k names in `features`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, ClassVar, Protocol

import numpy as np
import pandas as pd

from senn._records import from_dict
from senn.data.tabular.cells import DATE_FORMATS, Floats, date_format, dates, is_missing, kind_of, numbers, texts
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


def _standard(values: Floats) -> tuple[float, float]:
    """Compute mean and standard deviation (1 if there is none)."""
    # scaled by the largest value first: squares of numbers near the end of the float range would overflow
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    mean, deviation = float((values / largest).mean()), float((values / largest).std())
    if not deviation or not isfinite(deviation * largest):
        deviation = 1.0 / largest
    return mean * largest, deviation * largest


def _standardize(values: Floats, mean: float, scale: float) -> Floats:
    # Halves first: the difference of two numbers near the end of the float range would overflow.
    out: Floats = np.clip((values / 2 - mean / 2) / scale * 2, -FARTHEST, FARTHEST)
    return out


def _check_positive(scale: float) -> None:
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
        _check_positive(self.scale)

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
        if known.size and not missing.any() and known.min() == known.max():
            return Dropped(name=name, note=f"is always {known[0]:g}")
        median = float(np.sort(known)[(known.size - 1) // 2])
        mean, scale = _standard(np.where(missing, median, values))
        return cls(name=name, median=median, mean=mean, scale=scale, indicator=bool(missing.any()))

    def features(self) -> list[str]:
        """List the number and, if any were missing at fit, the indicator."""
        return [self.name, f"{self.name} missing"] if self.indicator else [self.name]

    def encode(self, cells: pd.Series[Any]) -> Floats:
        """Standardize the numbers."""
        values = numbers(self.name, cells)
        missing = np.isnan(values)
        standard = _standardize(np.where(missing, self.median, values), self.mean, self.scale)
        return np.column_stack([standard, missing] if self.indicator else [standard]).astype(np.float64)


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
                    raise SennError(f"column {self.name!r}, row {cells.index[at]}: {cell!r} is neither true nor false")
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
                name=name, note=f"looks like an identifier: {len(counts):,} different texts in {len(known):,} rows"
            )
        # a category of fewer rows than this (1 % of a small table) would be learned by heart
        rare = min(10, max(1, len(cells) // 100))
        frequent = sorted(counts.index[counts >= rare], key=lambda text: (-counts[text], text))[:MOST_CATEGORIES]
        if not frequent:
            return Dropped(name=name, note=f"has {len(counts):,} categories, each in fewer than {rare} rows")
        merged = len(counts) - len(frequent)
        note = f"{merged:,} rare categories are taken together" if merged else ""
        return cls(name=name, categories=tuple(frequent), other=merged > 0, indicator=indicator, note=note)

    def features(self) -> list[str]:
        """List one feature per category, then "other" and "missing" if there were such cells at fit."""
        extra = [word for word, used in (("other", self.other), ("missing", self.indicator)) if used]
        return [f"{self.name}={category}" for category in self.categories] + [f"{self.name} {word}" for word in extra]

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


def _circle(phase: Floats) -> list[Floats]:
    # two numbers, so that December is next to January
    return [np.sin(2 * np.pi * phase), np.cos(2 * np.pi * phase)]


@dataclass(frozen=True, kw_only=True)
class DateColumn:
    """Date: elapsed days and year, standardized; month, weekday and time of day as points on circles."""

    kind: ClassVar[str] = "date"
    name: str
    form: str
    median: float
    mean: float
    scale: float
    year_mean: float
    year_scale: float
    clock: bool
    indicator: bool
    note: str = ""

    def __post_init__(self) -> None:
        _check_positive(self.scale)
        _check_positive(self.year_scale)

    @classmethod
    def fit(cls, name: str, cells: pd.Series[Any]) -> Column:
        """Fit the encoding to training cells.

        Args:
            name: of the column.
            cells: its cells.

        Returns:
            The fitted column, or a `Dropped` one if it can't tell rows apart.

        Raises:
            SennError: a cell isn't a date.
        """
        form, note = "", ""
        if kind_of(name, cells) != "date" or pd.api.types.infer_dtype(cells, skipna=True) == "string":
            known = cells[~is_missing(cells)]
            form = date_format(name, known) or ""
            if not form:
                raise SennError(f"column {name!r} holds no dates (row {known.index[0]}: {known.iloc[0]!r})")
            note = _ambiguity(name, cells, form)
        days, years, missing = cls._days(dates(name, cells, form))
        known_days = np.sort(days[~missing])
        if known_days[0] == known_days[-1] and not missing.any():
            return Dropped(name=name, note="is always the same date")
        median = float(known_days[(known_days.size - 1) // 2])
        mean, scale = _standard(np.where(missing, median, days))
        year_mean, year_scale = _standard(years[~missing])
        return cls(
            name=name,
            form=form,
            median=median,
            mean=mean,
            scale=scale,
            year_mean=year_mean,
            year_scale=year_scale,
            clock=bool((known_days % 1).any()),
            indicator=bool(missing.any()),
            note=note,
        )

    @staticmethod
    def _days(stamps: pd.Series[Any]) -> tuple[Floats, Floats, Any]:
        """Compute days since 1970 (the time of day as a fraction), years, and which are missing."""
        missing = stamps.isna().to_numpy(dtype=bool)
        microseconds = stamps.dt.tz_localize(None).to_numpy(dtype="datetime64[us]").astype(np.int64)
        years = stamps.dt.year.to_numpy(dtype=np.float64, na_value=np.nan)
        return np.where(missing, np.nan, microseconds / 86_400e6), years, missing

    def features(self) -> list[str]:
        """List days, year, and sine and cosine of month, weekday and, where it varies, time of day."""
        cycles = ["month", "weekday", *(["hour"] if self.clock else [])]
        names = ["days", "year", *(f"{cycle} {wave}" for cycle in cycles for wave in ("sine", "cosine"))]
        return [f"{self.name} {name}" for name in names + ["missing"] * self.indicator]

    def encode(self, cells: pd.Series[Any]) -> Floats:
        """Encode dates; a missing one counts as the median date."""
        stamps = dates(self.name, cells, self.form)
        days, _, missing = self._days(stamps)
        stamps = stamps.fillna(pd.Timestamp(round(self.median * 86_400), unit="s", tz="UTC").as_unit("us"))
        days = np.where(missing, self.median, days)
        year, month, weekday = (
            getattr(stamps.dt, part).to_numpy(dtype=np.float64) for part in ("year", "month", "day_of_week")
        )
        columns = [
            _standardize(days, self.mean, self.scale),
            _standardize(year, self.year_mean, self.year_scale),
            *_circle((month - 1) / 12),
            *_circle(weekday / 7),
        ]
        if self.clock:
            columns += _circle(days % 1)
        if self.indicator:
            columns.append(missing.astype(np.float64))
        return np.column_stack(columns)


def _ambiguity(name: str, cells: pd.Series[Any], form: str) -> str:
    """Write a remark if no row tells the day from the month."""
    swapped = form.replace("%m/%d", "%d/%m")
    if swapped == form or swapped not in DATE_FORMATS:
        return ""
    try:
        dates(name, cells, swapped)
    except SennError:
        return ""
    return "no date tells months from days; the month is taken to come first"


KINDS: dict[str, Any] = {cls.kind: cls for cls in (Dropped, NumberColumn, BooleanColumn, CategoryColumn, DateColumn)}


def fit_column(name: str, cells: pd.Series[Any], kind: str | None = None) -> Column:
    """Choose the kind of a column and fit its encoding.

    Args:
        name: of the column.
        cells: its training cells.
        kind: a key of `KINDS`; None to infer it.

    Returns:
        The fitted column.

    Raises:
        SennError: a cell isn't of that kind, or no kind can be inferred.
    """
    if kind == "dropped":
        return Dropped(name=name, note="was left out on request")
    if is_missing(cells).all():
        return Dropped(name=name, note="is empty")
    found: Column = KINDS[kind or kind_of(name, cells)].fit(name, cells)
    return found


def column_to_dict(column: Column) -> dict[str, Any]:
    """Convert a fitted column to a JSON record."""
    return {"kind": column.kind, **asdict(column)}  # type: ignore[call-overload]


def column_from_dict(record: Any) -> Column:
    """Restore a column from a record of `column_to_dict`.

    Raises:
        SennError: the record is damaged.
    """
    cls = KINDS.get(str(record.get("kind"))) if isinstance(record, dict) else None
    if cls is None:
        raise SennError(f"the stored encoding has a column of unknown kind: {str(record)[:60]!r}")
    values = {key: value for key, value in record.items() if key != "kind"}
    column: Column = from_dict(cls, values, f"the stored encoding of column {record.get('name')!r}", complete=True)
    return column
