"""Encoding of a column of dates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from senn.data.tabular.cell_texts import as_text
from senn.data.tabular.cells import Floats, FoundKind, is_missing, kind_of, refuse, shown
from senn.data.tabular.date_cells import TIMES, date_format, number_dates, stamps_of, swapped
from senn.data.tabular.number_scale import mean_and_deviation, standardize
from senn.data.tabular.number_style import Mark
from senn.data.tabular.table_columns import (
    FAR_OUTSIDE,
    Column,
    Dropped,
    check_positive,
    counted,
    empty_cells,
)
from senn.data.tabular.written_dates import DAY_OF_YEAR, ELAPSED, ISO
from senn.errors import SennError

_OFFSET = r":\d\d.*(?:Z|[+-]\d\d:?\d\d|\])$"
"""End of a text of ISO 8601 that names a zone."""


def _circle(phase: Floats) -> list[Floats]:
    # two numbers, so that December is next to January
    return [np.sin(2 * np.pi * phase), np.cos(2 * np.pi * phase)]


@dataclass(frozen=True, kw_only=True)
class DateColumn:
    """Date: elapsed days and year, standardized; month, weekday and time of day as points on circles.

    Attributes:
        name: of the column.
        form: how dates are written, from `date_format`; "" for cells that are dates.
        median: days since 1970 that stand for a missing date.
        mean: of the days.
        scale: standard deviation of the days.
        year_mean: of the years.
        year_scale: standard deviation of the years.
        clock: the time of day is a feature.
        calendar: year, month and weekday are features; they aren't of a column of times.
        indicator: whether a date is missing is a feature.
        note: end of a sentence about the column.
    """

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
    calendar: bool = True
    note: str = ""

    def __post_init__(self) -> None:
        check_positive(self.scale)
        check_positive(self.year_scale)

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
            found: what `kind_of` says of the cells; None to ask it.

        Returns:
            The fitted column, or a `Dropped` one if it can't tell rows apart.

        Raises:
            SennError: a cell isn't a date.
        """
        form, note = date_form(name, cells, found)
        # two scales of one date: days for what is recent, the year for what is slow
        days, years, missing = cls._days(dates(name, cells, form))
        known_days = np.sort(days[~missing])
        if known_days[0] == known_days[-1] and not missing.any():
            return Dropped(name=name, note="is always the same date")
        # the lower middle one: a date that occurs
        median = float(known_days[(known_days.size - 1) // 2])
        mean, scale = mean_and_deviation(np.where(missing, median, days))
        year_mean, year_scale = mean_and_deviation(years[~missing])
        return cls(
            name=name,
            form=form,
            median=median,
            mean=mean,
            scale=scale,
            year_mean=year_mean,
            year_scale=year_scale,
            # All at midnight: no time was written, and its two features would be constants.
            clock=form != ELAPSED and bool((known_days % 1).any()),
            calendar=form not in (*TIMES, ELAPSED),
            indicator=bool(missing.any()),
            note=note,
        )

    @staticmethod
    def _days(stamps: pd.Series[Any]) -> tuple[Floats, Floats, Any]:
        """Compute days since 1970 (the time of day as a fraction), years, and which are missing."""
        missing = stamps.isna().to_numpy(dtype=bool)
        # as whole microseconds: floats of nanoseconds since 1970 lose the time of day
        microseconds = stamps.dt.tz_localize(None).to_numpy(dtype="datetime64[us]").astype(np.int64)
        years = stamps.dt.year.to_numpy(dtype=np.float64, na_value=np.nan)
        return np.where(missing, np.nan, microseconds / 86_400e6), years, missing

    def features(self) -> list[str]:
        """List days, year, and sine and cosine of month, weekday and, where it varies, time of day."""
        cycles = ["month", "weekday"] * self.calendar + ["hour"] * self.clock
        names = [
            "days",
            *(["year"] * self.calendar),
            *(f"{cycle} {wave}" for cycle in cycles for wave in ("sine", "cosine")),
        ]
        return [f"{self.name} {name}" for name in names + ["missing"] * self.indicator]

    def encode(self, cells: pd.Series[Any]) -> Floats:
        """Encode dates; a missing one counts as the median date."""
        stamps = dates(self.name, cells, self.form)
        days, _, missing = self._days(stamps)
        # so that month and weekday of a missing date are those of the median one; the indicator says that it is missing
        stamps = stamps.fillna(
            pd.Timestamp(round(self.median * 86_400), unit="s", tz="UTC").as_unit("us")
        )
        days = np.where(missing, self.median, days)
        year, month, weekday = (
            getattr(stamps.dt, part).to_numpy(dtype=np.float64)
            for part in ("year", "month", "day_of_week")
        )
        columns = [standardize(days, self.mean, self.scale)]
        if self.calendar:
            columns.append(standardize(year, self.year_mean, self.year_scale))
            columns += _circle((month - 1) / 12) + _circle(weekday / 7)
        if self.clock:
            # Right before 1970, too: the remainder of a negative number is positive in NumPy.
            columns += _circle(days % 1)
        if self.indicator:
            columns.append(missing.astype(np.float64))
        return np.column_stack(columns)

    def surprises(self, cells: pd.Series[Any]) -> list[str]:
        """Say if cells are missing that never were in training, or lie far from its dates."""
        found = [] if self.indicator else empty_cells(is_missing(cells))
        days, _, _ = self._days(dates(self.name, cells, self.form))
        far = np.abs(standardize(days, self.mean, self.scale)) > FAR_OUTSIDE
        if far.any():
            found.append(counted(cells[far], len(cells), "lie far from the dates of training"))
        return [f"{one}, as no cell in training" for one in found]


def dates(name: str, cells: pd.Series[Any], form: str) -> pd.Series[Any]:
    """Convert a column to time stamps.

    Args:
        name: of the column, for messages.
        cells: its cells.
        form: how texts are written, from `date_format`; "" for cells that are dates already.

    Returns:
        UTC time stamps, NaT where a cell is missing.

    Raises:
        SennError: a cell isn't a date of that form; the first one is named.
    """
    known = ~is_missing(cells)
    stamps = stamps_of(cells, known, form)
    bad = known & stamps.isna().to_numpy()
    refuse(name, cells, bad, "is not a date like those of the training table")
    return stamps


def date_form(name: str, cells: pd.Series[Any], found: FoundKind | None = None) -> tuple[str, str]:
    """Find how dates are written.

    Args:
        name: of the column, for messages.
        cells: its cells.
        found: what `kind_of` says of the cells; None to ask it.

    Returns:
        The form, "" for cells that are dates; and the end of a sentence about it, "" if there is nothing to say.

    Raises:
        SennError: they aren't dates.
    """
    found = found or kind_of(name, cells)
    known = cells[~is_missing(cells)]
    if found.kind == "date" and not found.form:
        return "", ""
    form = found.form or number_dates(pd.to_numeric(known, errors="coerce"), named=True)
    form = form or date_format(name, known) or ""
    if not form:
        raise SennError(f"column {name!r} holds no dates (row {known.index[0]}: {known.iloc[0]!r})")
    # if the other order of month and day reads all cells too, the file can't say which it is
    other = swapped(form)
    if other and not stamps_of(known, np.ones(len(known), dtype=bool), other).isna().any():
        first = "month" if "%m" in form[: form.index("%d") + 1] else "day"
        return form, f"has no date that tells months from days; the {first} is taken to come first"
    if pd.api.types.is_numeric_dtype(cells.dtype):
        what = f"dates such as {as_text(known.iloc[0])}" if "%" in form else form
        return form, f"is read as {what}; '--column {name}=number' reads numbers"
    if form == DAY_OF_YEAR:
        day = stamps_of(known[:1], np.ones(1, dtype=bool), form).iloc[0]
        return form, f"is read as days of the year, {known.iloc[0]!r} as {day:%Y-%m-%d}"
    return form, _mixed_zones(known) if form == ISO else ""


def _mixed_zones(known: pd.Series[Any]) -> str:
    """Say if some dates name a zone and others don't; "" where they agree."""
    zoned = known.astype("str").str.strip().str.contains(_OFFSET)
    if zoned.all() or not zoned.any():
        return ""
    bare = known[~zoned]
    count = f"{len(bare):,} of {len(known):,} cells"
    return f"names no zone in {count}, which count as UTC, the first being {shown(bare.iloc[0])}"
