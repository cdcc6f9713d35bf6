"""Numbers as people write them: thousands, currency signs, percent, decimal commas, units.

Exported networks carry the text of this file along, so it needs nothing but Python's own library.
"""

import re
import unicodedata
from collections.abc import Iterable

SCALES = {"k": 1e3, "K": 1e3, "M": 1e6, "Mio": 1e6, "mn": 1e6, "B": 1e9, "bn": 1e9, "Mrd": 1e9}
"""Suffixes that multiply, where a column has several of them."""

BYTES = {"kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
"""Multiples of a byte, which scale like `SCALES` and leave the unit B."""

_SIGNS = "$€£¥₹₽₩₺₫₪฿₦₱₴₿¢"
_CODES = (
    "USD|EUR|GBP|JPY|CHF|CNY|RMB|INR|AUD|CAD|NZD|SEK|NOK|DKK|PLN|CZK|HUF|RUB|TRY|BRL|MXN|ZAR"
    "|KRW|SGD|HKD|THB|IDR|MYR|PHP|ILS|AED|SAR|NGN|KES"
)
_BEFORE = rf"[A-Z]{{0,3}}[{_SIGNS}]|{_CODES}|Rs\.?|kr\.?|%"
_WORD = r"[^\W\d_][^\d\s,;:!?()]{0,14}"
_AFTER = rf"[%‰\"'\u2032\u2033+{_SIGNS}]|°\s?[CF]?|{_WORD}(?:[ /]{_WORD}){{0,2}}[23]?"
_SHAPE = re.compile(
    rf"(?P<sign>[-+])?\s*(?P<before>{_BEFORE})?\s*(?P<inner>[-+])?\s*"
    r"(?P<digits>[0-9][0-9.,' ]*[0-9.]|[0-9]|[.,][0-9]+)(?P<power>[eE][-+]?[0-9]+)?"
    rf"\s*(?P<after>{_AFTER})?"
)
_NOTHING = re.compile(rf"({_BEFORE})\s*-{{1,2}}")
"""Zero in accountants' formats, such as "$ -"."""

# The groups of one number are parted by one mark; in India all but the last group have two digits.
_DIGITS = {
    ".": re.compile(
        r"(?:[0-9]+|[1-9][0-9]{0,2}([,' ])[0-9]{3}(?:\1[0-9]{3})*"
        r"|[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3})(?:\.[0-9]*)?"
        r"|\.[0-9]+"
    ),
    ",": re.compile(
        r"(?:[0-9]+|[1-9][0-9]{0,2}([.' ])[0-9]{3}(?:\1[0-9]{3})*)(?:,[0-9]+)?|,[0-9]+"
    ),
}


def written_number(text: str, decimal: str) -> tuple[float, str, str] | None:
    """Take a written number apart.

    Args:
        text: such as "$4,211.54", "(987.65)", "12.5%", "1.234,5" or "5 kg".
        decimal: the mark before decimals, "." or ",".

    Returns:
        Its value, its unit and a suffix of `SCALES` that isn't multiplied, "" for none; None if
        it is no number.
    """
    # Wide and superscript characters and blanks of every kind become plain ones.
    plain = (
        unicodedata.normalize("NFKC", text).strip().replace("\u2212", "-").replace("\u2019", "'")
    )
    if nothing := _NOTHING.fullmatch(plain):
        return 0.0, nothing[1], ""
    negative = plain.count("(") == plain.count(")") == 1 and plain.endswith(")")
    if negative:  # accountants' minus
        plain = plain.replace("(", "").replace(")", "").strip()
    elif plain[:1].isdigit() and plain.endswith("-"):
        plain, negative = plain[:-1].rstrip(), True
    found = _SHAPE.fullmatch(plain.replace("\u2013", "-", 1) if plain[:1] == "\u2013" else plain)
    if found is None or (found["sign"] and found["inner"]):
        return None
    digits = _DIGITS[decimal].fullmatch(found["digits"])
    # Nobody parts the thousands of 6,224e+00.
    if digits is None or (found["power"] and digits.lastindex):
        return None
    group = "," if decimal == "." else "."
    plain = re.sub(rf"[{group}' ]", "", found["digits"]).replace(",", ".")
    value = float(plain + (found["power"] or ""))
    if negative or "-" in (found["sign"], found["inner"]):
        value = -value
    unit, scale = found["before"] or "", found["after"] or ""
    if scale in BYTES:
        return value, unit + "B", scale
    if scale not in SCALES:
        unit, scale = unit + scale, ""
    return value, unit, scale


def same_unit(one: str, other: str) -> bool:
    """Tell whether two texts name one unit: "year" and "Years", "lb" and "lbs."."""
    return _singular(one) == _singular(other)


def _singular(unit: str) -> str:
    plain = unit.strip().casefold().rstrip(".")
    return plain[:-1] if len(plain) > 2 and plain.endswith("s") else plain


def full_unit(unit: str, scale: str) -> str:
    """Join a unit and a suffix that isn't multiplied: "$" and "M" to "$M"."""
    return scale if scale in BYTES else unit + scale


def read_number(text: str, decimal: str, unit: str, scaled: bool) -> float:
    """Read one number of a column whose way of writing is known.

    Args:
        text: the number; it may lack the unit.
        decimal: the column's decimal mark.
        unit: the column's unit; "" for none.
        scaled: True if suffixes such as k and M multiply.

    Returns:
        The number, percent as percent.

    Raises:
        ValueError: it is no number, or in another unit; the text continues a sentence about it.
    """
    found = written_number(text, decimal)
    if found is None:
        raise ValueError("is not a number")
    value, own, scale = found
    if scaled:
        value *= {**SCALES, **BYTES}.get(scale, 1.0)
    else:
        own = full_unit(own, scale)
    if unit and own and not same_unit(own, unit):
        raise ValueError(f"is in {own!r}, where the training table has {unit!r}")
    return value


def settled_decimal(texts: Iterable[str], decimal: str) -> str:
    """Return the decimal mark of new texts: that of training, unless only the other reads them.

    Args:
        texts: numbers, without missing ones.
        decimal: the mark in training, "." or ",".
    """
    other = "," if decimal == "." else "."
    others = True
    strange = False
    for text in texts:
        strange = strange or written_number(text, decimal) is None
        others = others and written_number(text, other) is not None
        if not others:
            return decimal
    return other if strange else decimal
