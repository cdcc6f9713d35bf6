"""Cells that are dates: how they are written, and the time stamps that they stand for."""

from __future__ import annotations

import itertools
import re
import warnings
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.tseries.api import guess_datetime_format

from senn.data.tabular.number_style import MOSTLY
from senn.data.tabular.written_dates import (
    DAY_OF_YEAR,
    ELAPSED,
    EXCEL,
    ISO,
    MILLISECONDS,
    QUARTER,
    UNIX,
    WEEK,
    ZONES,
    plain_date,
    plain_form,
    with_english_months,
)
from senn.errors import SennError

_DAYS = (
    *("%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%d-%m-%Y", "%d %b %Y", "%b %d, %Y"),
    *("%m-%d-%Y", "%Y.%m.%d", "%d %B %Y", "%B %d, %Y", "%d. %B %Y", "%d. %b %Y", "%d-%b-%Y", "%d/%b/%Y"),
    *("%d.%m.%y", "%m/%d/%y", "%d/%m/%y", "%d-%b-%y", "%d %b %y", "%b %d %y", "%d-%m-%y", "%m-%d-%y"),
    *("%d.%m. %Y", "%Y年%m月%d日"),
)  # fmt: skip
_CLOCKS = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p", " %I:%M%p")
TIMES = ("%H:%M", "%H:%M:%S", "%I:%M %p", "%I:%M:%S %p", "%I:%M%p", "%I %p", "%I%p")
"""Formats of times of the day."""

DATE_FORMATS = (
    *(f"{week}{day}{clock}" for week in ("", "%a, ", "%A, ") for day in _DAYS for clock in _CLOCKS),
    *("%a %b %d %H:%M:%S %Y", "%a %b %d %H:%M:%S %Z %Y", "%a %b %d %H:%M:%S %z %Y"),
    *("%d/%b/%Y:%H:%M:%S %z", "%a, %d %b %Y %H:%M:%S %z", "%Y-%m-%d %H:%M:%S %z"),
    *("%Y-%m-%d_%H-%M-%S", "%Y-%m-%d-%H-%M-%S", "%Y%m%d_%H%M%S", "%Y%m%d-%H%M%S"),
    # SAS, Oracle
    *("%d%b%Y:%H:%M:%S", "%d%b%Y:%H:%M:%S.%f", "%d-%b-%y %I.%M.%S %p", "%d-%b-%y %I.%M.%S.%f %p"),
    *("%b %Y", "%B %Y", "%b-%Y", "%b-%y", "%Y %b", "%m/%Y", "%Y/%m", "%m.%Y"),
)  # fmt: skip
"""Formats of `strptime`, the month before the day where both would do."""

_SWAPPED = (("%m/%d", "%d/%m"), ("%d-%m", "%m-%d"))
"""Orders of month and day, the one that is tried first in front."""

_ERAS = {
    "%Y%m%d": (19000101, 21001231),
    "%Y%m%d%H%M": (190001010000, 210012312359),
    "%Y%m%d%H%M%S": (19000101000000, 21001231235959),
}
_COUNTED = {UNIX: (1e8, 5e9), MILLISECONDS: (1e11, 5e12), EXCEL: (10_000, 80_000)}


def date_format(name: str, known: pd.Series[Any]) -> str | None:
    """Find the format in which texts are dates.

    Args:
        name: of the column, for messages.
        known: its texts, without missing ones.

    Returns:
        A format of `strptime`, or another constant of `written_dates`; None if they aren't dates.

    Raises:
        SennError: nearly all but not all of them are dates.
    """
    # Parsing all cells in each of hundreds of formats is slow: a cell that could be a date lets them in, five cells
    # choose which are tried on fifty, and those which are tried on all.
    sample = known.iloc[:50].astype("str")
    digits = [sum(char.isdigit() for char in cell) >= 1 and len(cell) <= 40 for cell in sample]
    if np.mean(digits) < MOSTLY:
        return None
    best, share = None, 0.0
    # the format that reads most cells, not the first that reads some: 01/02 fits two of them
    for form in _forms(sample):
        if not _parse(sample.iloc[:5], form).notna().any():
            continue
        if float(_parse(sample, form).notna().mean()) >= MOSTLY:
            whole = float(_parse(known, form).notna().mean())
            # Strictly more: of two formats that read as many, the earlier one has the month first.
            if whole > share:
                best, share = form, whole
    # Numbers of files, counted in each year, are no days where one of them isn't.
    if best is None or (best == DAY_OF_YEAR and share < 1):
        return None
    bad = _parse(known, best).isna().to_numpy()
    if bad.any() and share >= MOSTLY:
        row, cell = known.index[bad][0], known[bad].iloc[0]
        raise SennError(
            f"column {name!r} holds dates except in {int(bad.sum())} of {len(known)} rows, "
            f"the first being row {row}: {cell!r}; correct it, leave it empty, or declare the column a category"
        )
    return best if share >= MOSTLY else None


def _forms(sample: pd.Series[Any]) -> list[str]:
    """List the forms that these cells may have, the most usual first."""
    few = [
        with_english_months(" ".join(cell.replace(",", "").split()).removesuffix(" Uhr"))
        for cell in sample.iloc[:5]
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of guesses that don't put the day first
        both = itertools.product(few[:2], (False, True))
        guessed = [guess_datetime_format(cell, dayfirst=dayfirst) for cell, dayfirst in both]
    usual = [*DATE_FORMATS, *TIMES, *filter(None, guessed)]
    # the zone stands at the end, or before the year there
    if any(set(cell.split()[-2:]) & set(ZONES) for cell in few):
        usual += [f"{form} %Z" for form in (ISO, *DATE_FORMATS) if "%z" not in form.lower()]
    # What stands between digits and letters tells most formats apart; offsets have signs of their own.
    marks = {re.sub(r"[A-Za-z0-9]", "", cell) for cell in few}
    likely = [
        form for form in usual if "%z" in form or form.startswith(ISO) or _marks(form) in marks
    ]
    return list(dict.fromkeys([ISO, *likely, QUARTER, WEEK, DAY_OF_YEAR, ELAPSED]))


def _marks(form: str) -> str:
    return re.sub("%[a-zA-Z]", "", form.replace(",", ""))


def number_dates(cells: pd.Series[Any], *, named: bool = False) -> str:
    """Find the form in which whole numbers are dates, such as 20200131.

    Args:
        cells: a column of numbers.
        named: the user says that they are dates, so that seconds since 1970 and days of Excel are tried, too.

    Returns:
        The form, as in `date_format`; "" if they aren't dates.
    """
    known = cells.dropna()
    if not pd.api.types.is_numeric_dtype(known.dtype) or pd.api.types.is_bool_dtype(known.dtype):
        return ""
    values = known.to_numpy(dtype=np.float64)
    ranges = {**_ERAS, **(_COUNTED if named else {})}
    for form, (low, high) in ranges.items():
        if len(values) < 2 or not ((values >= low) & (values <= high)).all():
            continue
        # Amounts of eight digits hold one at least that is no day of the calendar, unless there are hardly any.
        calendar = len(np.unique(values)) >= 5 and (values == np.round(values)).all()
        if (named or calendar) and _parse(known, form).notna().all():
            return form
    return ""


def swapped(form: str) -> str:
    """Return the format with month and day in the other order, tried later; "" if there is none."""
    for first, then in _SWAPPED:
        if first in form:
            return form.replace(first, then)
    return ""


def _parse(cells: pd.Series[Any], form: str) -> pd.Series[Any]:
    # As text: cells may be times of the day or numbers, too.
    plain = [plain_date(_text(cell), form) for cell in cells]
    # Without utc=True, pandas refuses cells of several offsets (summer and winter).
    return pd.to_datetime(
        pd.Series(plain, index=cells.index, dtype=object),
        format=plain_form(form),
        errors="coerce",
        utc=True,
    )


def _text(cell: Any) -> str:
    # A column of whole numbers with gaps comes as floats.
    is_whole = isinstance(cell, float | np.floating) and float(cell).is_integer()
    return str(int(cell)) if is_whole else str(cell)


def stamps_of(cells: pd.Series[Any], known: NDArray[np.bool_], form: str) -> pd.Series[Any]:
    """Convert a column to time stamps.

    Args:
        cells: its cells.
        known: (n,) which of them aren't missing.
        form: format of texts, from `date_format`; "" for cells that are dates already.

    Returns:
        UTC time stamps in microseconds, NaT where a cell is missing or isn't of that form.
    """
    if pd.api.types.is_datetime64_any_dtype(cells.dtype) or pd.api.types.infer_dtype(cells) in (
        "date",
        "datetime",
    ):
        # In microseconds: nanoseconds end in 2262, and "9999-12-31" is a common mark.
        return pd.to_datetime(cells, utc=True).astype("datetime64[us, UTC]")
    stamps = pd.Series(pd.NaT, index=cells.index, dtype="datetime64[us, UTC]")
    if known.any():
        stamps[known] = _parse(cells[known], form or ISO).astype("datetime64[us, UTC]")
    return stamps
