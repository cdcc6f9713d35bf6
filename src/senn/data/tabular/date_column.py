"""Encoding of a column of dates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from senn.data.tabular.cells import DATE_FORMATS, Floats, date_format, dates, is_missing, kind_of
from senn.data.tabular.table_columns import (
    Column,
    Dropped,
    check_positive,
    mean_and_deviation,
    standardize,
)
from senn.errors import SennError


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
        check_positive(self.scale)
        check_positive(self.year_scale)

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
        if (
            kind_of(name, cells) != "date"
            or pd.api.types.infer_dtype(cells, skipna=True) == "string"
        ):
            known = cells[~is_missing(cells)]
            form = date_format(name, known) or ""
            if not form:
                raise SennError(
                    f"column {name!r} holds no dates (row {known.index[0]}: {known.iloc[0]!r})"
                )
            note = _ambiguity(name, cells, form)
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
            clock=bool((known_days % 1).any()),
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
        cycles = ["month", "weekday", *(["hour"] if self.clock else [])]
        names = [
            "days",
            "year",
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
        columns = [
            standardize(days, self.mean, self.scale),
            standardize(year, self.year_mean, self.year_scale),
            *_circle((month - 1) / 12),
            *_circle(weekday / 7),
        ]
        if self.clock:
            # Right before 1970, too: the remainder of a negative number is positive in NumPy.
            columns += _circle(days % 1)
        if self.indicator:
            columns.append(missing.astype(np.float64))
        return np.column_stack(columns)


def _ambiguity(name: str, cells: pd.Series[Any], form: str) -> str:
    """Write a remark if no row tells the day from the month."""
    # month first is tried first; if day first reads all cells too, the file can't say
    swapped = form.replace("%m/%d", "%d/%m")
    if swapped == form or swapped not in DATE_FORMATS:
        return ""
    try:
        dates(name, cells, swapped)
    except SennError:
        return ""
    return "no date tells months from days; the month is taken to come first"
