"""Dates as people write them, brought to a form that `strptime` or ISO 8601 reads.

Exported networks carry the text of this file along, so it needs nothing but Python's own library.
"""

import datetime as dt
import re

ISO, QUARTER, WEEK, ELAPSED = "ISO8601", "quarter", "week", "elapsed time"
DAY_OF_YEAR = "day of the year"
UNIX, MILLISECONDS, EXCEL = "Unix seconds", "Unix milliseconds", "Excel days"

ZONES = {
    **dict.fromkeys(("Z", "UTC", "GMT", "WET"), "+0000"),
    **dict.fromkeys(("CET", "BST", "WEST"), "+0100"),
    **dict.fromkeys(("CEST", "EET"), "+0200"),
    **dict.fromkeys(("EEST", "MSK"), "+0300"),
    **dict.fromkeys(("JST", "KST"), "+0900"),
    "IST": "+0530",
    "AEST": "+1000",
    "AEDT": "+1100",
    "NZST": "+1200",
    "NZDT": "+1300",
    "EDT": "-0400",
    **dict.fromkeys(("EST", "CDT"), "-0500"),
    **dict.fromkeys(("CST", "MDT"), "-0600"),
    **dict.fromkeys(("MST", "PDT"), "-0700"),
    **dict.fromkeys(("PST", "AKDT"), "-0800"),
    "AKST": "-0900",
    "HST": "-1000",
}
"""Offsets of zones in letters; CST, IST and BST are those of Chicago, India and London."""

_ZONE = re.compile(r"(?<=[\d MmAaPp])\s?\b([A-Z]{1,4})\b(?=$| \d{4}$)")
_QUARTER = re.compile(r"(?:(\d{4})\W?[Qq]([1-4])|[Qq]([1-4])\W?(\d{4})|([1-4])[Qq]\W?(\d{4}))")
_MONTH = re.compile(r"(\d{4})\W?[Mm](\d{1,2})")
_HALF = re.compile(r"(\d{4})\W?[Hh]([12])")
_ELAPSED = re.compile(r"(?:(-?\d+) days?,? \+?)?(\d+):(\d{2})(?::(\d{2})(?:\.\d*)?)?")
_ELAPSED_UNITS = re.compile(
    r"(?=\D*\d)P?(?:(\d+) ?d(?:ays?)?)?[T ]?(?:(\d+) ?h(?:ours?|rs?)?)? ?"
    r"(?:(\d+) ?m(?:in(?:ute)?s?)?)? ?(?:(\d+) ?s(?:ec(?:ond)?s?)?)?",
    re.I,
)
_WEEK = re.compile(r"(?:(\d{4})\W?[Ww](\d{1,2})(?:-?([1-7]))?|[Ww](\d{1,2})\W(\d{4}))")
_ORDINAL_DATE = re.compile(r"(\d{4})[-/. ](\d{3})|(\d{3})[-/](\d{4})")
_ZONE_NAME = re.compile(r"(?<=[\dZ])\[[\w/+-]+\]$")
_HOUR_AND_MINUTE = re.compile(r"\d{1,2}:\d\d")
_ISO_DAY = re.compile(r"(\d{4})[-/.](\d{2})(?:[-/.](\d{2})(?!\d)|$)")
_ORDINAL = re.compile(r"(?<=\d)(?:st|nd|rd|th)\b")

_MONTHS = (
    "January jan januar januari janvier janv enero ene gennaio gen janeiro",
    "February feb februar februari février fevrier févr fevr fév febrero febbraio fevereiro fev",
    "March mar märz maerz mär mrz mars marzo março marco maart mrt",
    "April apr avril avr abril abr aprile",
    "May may mai mayo maggio mag maio mei",
    "June jun juni juin junio giugno giu junho",
    "July jul juli juillet juil julio luglio lug julho",
    "August aug août aout agosto ago augustus",
    "September sep sept septembre septiembre settembre set setembro",
    "October oct okt oktober octobre octubre ottobre ott outubro out",
    "November nov novembre noviembre novembro",
    "December dec dez dezember décembre decembre déc diciembre dic dicembre dezembro",
)
"""Names of months: English, then German, French, Spanish, Italian, Dutch and Portuguese."""
_MONTH_OF = {word.lower(): line.split()[0] for line in _MONTHS for word in line.split()}
_MONTH_WORD = re.compile(r"([^\W\d_]{3,})\.?|\b(?:de|del|of) ")


def with_english_months(text: str, form: str = "%b") -> str:
    """Write the months of a date as a format of `strptime` has them.

    Args:
        text: the date, with a month's name in one of several languages, or abbreviated.
        form: the format.

    >>> with_english_months("5 de octubre de 2020")
    '5 Oct 2020'
    >>> with_english_months("1. Sept. 2021", "%d. %B %Y")
    '1. September 2021'
    """
    dot = "." * ("%b." in form or "%B." in form)

    def english(word: re.Match[str]) -> str:
        if word[1] is None:
            return ""
        month = _MONTH_OF.get(word[1].lower())
        if month is None:
            return word[0]
        return (month if "%B" in form else month[:3]) + dot

    return _MONTH_WORD.sub(english, text)


def plain_form(form: str) -> str:
    """Return the format of texts that `plain_date` has prepared: one of `strptime`, or ISO8601."""
    if form in ("", ISO, f"{ISO} %Z", UNIX, MILLISECONDS, EXCEL, *_PARTS):
        return ISO
    return form.replace("%Z", "%z").replace(",", "")


def plain_date(text: str, form: str) -> str:
    """Bring a date to the format `plain_form(form)`.

    Args:
        text: a cell.
        form: how the column's dates are written: a format of `strptime` (%Z for a zone in
            letters), or a constant of this module.

    Returns:
        The text to parse; an empty one for a text that isn't of that form.
    """
    text = " ".join(text.split()).removesuffix(" Uhr")
    if form in (UNIX, MILLISECONDS, EXCEL):
        return _counted(text, form)
    if form in _PARTS:
        return _PARTS[form](text)
    if "%Z" in form:
        text, hits = _ZONE.subn(lambda zone: " " + ZONES.get(zone[1], "?"), text)
        # A date of the same column without its zone would be another point in time.
        text = text if hits else ""
        if form.startswith(ISO):
            text = text.replace(" +", "+").replace(" -", "-")
    elif form not in ("", ISO):
        # Whole numbers that a table with gaps has made fractions.
        text = text.removesuffix(".0") if form.startswith("%Y%m%d") else text
    if form == "" or form.startswith(ISO):
        text = _ZONE_NAME.sub("", text)  # of Java, after the offset
        # pandas takes more for ISO 8601 than Python does: other marks, and months without a day.
        day = _ISO_DAY.match(text)
        return f"{day[1]}-{day[2]}-{day[3] or '01'}{text[day.end() :]}" if day else text
    if form.startswith(("%H:", "%I:")) and not _HOUR_AND_MINUTE.match(text):
        return ""  # a ratio, such as 3:1
    # Commas are written or not, and days may be ordinal: "January 5th, 2020".
    text = text.replace(",", "")
    if "%b" not in form and "%B" not in form:
        return text
    return with_english_months(_ORDINAL.sub("", text), form)


def _quarter(text: str) -> str:
    found = _QUARTER.fullmatch(text)
    if found is None:
        if month := _MONTH.fullmatch(text):
            return f"{month[1]}-{int(month[2]):02}-01"
        half = _HALF.fullmatch(text)
        return f"{half[1]}-{6 * int(half[2]) - 5:02}-01" if half else ""
    year, quarter = found[1] or found[4] or found[6], found[2] or found[3] or found[5]
    return f"{year}-{3 * int(quarter) - 2:02}-01"


def _week(text: str) -> str:
    found = _WEEK.fullmatch(text)
    try:
        if found is None:
            return ""
        year, week, day = found[1] or found[5], found[2] or found[4], found[3] or "1"
        return dt.date.fromisocalendar(int(year), int(week), int(day)).isoformat()
    except ValueError:
        return ""


def _day_of_year(text: str) -> str:
    found = _ORDINAL_DATE.fullmatch(text)
    if found is None:
        return ""
    try:
        return dt.datetime.strptime(
            f"{found[1] or found[4]} {found[2] or found[3]}", "%Y %j"
        ).isoformat()
    except ValueError:
        return ""


def _elapsed(text: str) -> str:
    found = _ELAPSED.fullmatch(text) or _ELAPSED_UNITS.fullmatch(text)
    if found is None:
        return ""
    # With two parts hours and minutes or minutes and seconds: the order is the same.
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    try:
        span = dt.timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        return (dt.datetime(1970, 1, 1) + span).isoformat()
    except OverflowError:
        return ""


_PARTS = {QUARTER: _quarter, WEEK: _week, DAY_OF_YEAR: _day_of_year, ELAPSED: _elapsed}


def _counted(text: str, form: str) -> str:
    try:
        # Whole microseconds: a fraction of a day is as exact as Excel keeps it.
        unit = {UNIX: 1e6, MILLISECONDS: 1e3, EXCEL: 86_400e6}[form]
        span = dt.timedelta(microseconds=round(float(text) * unit))
        # Excel takes 1900 for a leap year; its days are right from March 1900 on.
        start = dt.datetime(1899, 12, 30) if form == EXCEL else dt.datetime(1970, 1, 1)
        return (start + span).isoformat()
    except (ValueError, OverflowError):
        return ""
