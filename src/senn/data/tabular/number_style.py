"""How the numbers of a column are written, found at fit and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from senn.data.tabular.written_numbers import (
    full_unit,
    read_number,
    same_unit,
    written_number,
)
from senn.errors import SennError

Mark = Literal[".", ","]
MARKS: tuple[Mark, Mark] = (".", ",")


@dataclass(frozen=True, kw_only=True)
class NumberStyle:
    """Way of writing the numbers of a column.

    Attributes:
        decimal: mark before decimals; the other one may part thousands.
        unit: that all numbers have, or that some lack; "" for none.
        scaled: suffixes such as k and M multiply.
    """

    decimal: Mark = "."
    unit: str = ""
    scaled: bool = False


PLAIN = NumberStyle()


MOSTLY = 0.8
"""Share of readable cells from which the others count as mistakes rather than as text.

At a half, a column of codes of which many happen to be numbers would be refused; at 0.95, one typing error in ten rows
would turn a column of numbers into a category, silently.
"""

_FEW = 200
"""Cells that show whether the others are worth reading."""

_FEW_UNITS = 5
"""Units that are named in a note; more of them are the words of a text, such as an address."""

Part = tuple[float, str, str]


@dataclass(frozen=True, kw_only=True)
class FoundStyle:
    """What `find_style` says of a column.

    Attributes:
        style: None if the texts aren't numbers of one kind.
        note: end of a sentence about the column.
    """

    style: NumberStyle | None
    note: str


def find_style(name: str, known: pd.Series[Any], decimal: Mark | None = None) -> FoundStyle | None:
    """Find out how the numbers of a column are written.

    Args:
        name: of the column, for messages.
        known: its texts without missing ones.
        decimal: mark that the table's other columns or the user name; it decides where both marks read all texts.

    Returns:
        The style; None if the texts are no numbers.

    Raises:
        SennError: all but a few texts are numbers, or some are percentages and some aren't; the first one is named.

    >>> find_style("price", pd.Series(["$1,234.50", "$99"])).style
    NumberStyle(decimal='.', unit='$', scaled=False)
    """
    texts = [str(cell) for cell in known]
    # most columns of texts hold no numbers at all, which a few cells show
    if (
        sum(any(written_number(text, mark) for mark in MARKS) for text in texts[:_FEW])
        < len(texts[:_FEW]) / 2
    ):
        return None
    distinct = set(texts)
    read: dict[str, list[Part | None]] = {}
    for each in MARKS:
        # a point that reads all leaves the comma to those who name it
        if each == "." or decimal == "," or None in read["."]:
            by_text = {text: written_number(text, each) for text in distinct}
            read[each] = [by_text[text] for text in texts]
    read.setdefault(",", [None] * len(texts))
    hits = {mark: len(texts) - parts.count(None) for mark, parts in read.items()}
    mark: Mark = "," if (hits[","], decimal == ",") > (hits["."], decimal != ",") else "."
    if hits[mark] < MOSTLY * len(texts):
        neither = sum(not any(pair) for pair in zip(*read.values(), strict=True))
        mixed = all(hits.values()) and not neither
        note = "writes some numbers with a decimal comma and some with a point, so it isn't read as numbers"
        return FoundStyle(style=None, note=note) if mixed else None
    parts = [part for part in read[mark] if part is not None]
    units, scaled = _units(parts)
    named = [unit for unit in units if unit]
    if len(named) > 1:
        shown = ", ".join(map(repr, named[:_FEW_UNITS]))
        note = f"holds numbers in several units ({shown}), which aren't compared; write them in one"
        return FoundStyle(style=None, note=note) if len(named) <= _FEW_UNITS else None
    unit = named[0] if named else ""
    bad = [at for at, part in enumerate(read[mark]) if part is None]
    if bad and unit[-1:].isalpha():
        # "5 stars" beside "unknown" may well be meant as categories.
        some = f"holds numbers with the unit {unit!r}, and other texts such as {texts[bad[0]]!r}"
        return FoundStyle(style=None, note=f"{some}, so it isn't read as numbers")
    _refuse_others(name, known, bad, "holds numbers except in")
    if unit in ("%", "‰"):
        bare = [at for at, part in enumerate(parts) if part[0] and not part[1]]
        _refuse_others(name, known, bare, f"writes numbers with {unit!r} except in")
    style = NumberStyle(decimal=mark, unit=unit, scaled=scaled)
    return FoundStyle(style=style, note=_note(texts, style, unsure=decimal is None))


def _units(parts: Sequence[Part]) -> tuple[list[str], bool]:
    """List the different units, and tell whether there are different suffixes, which multiply."""
    scaled = len({scale for _, _, scale in parts}) > 1
    units: list[str] = []
    seen = {(unit if scaled else full_unit(unit, scale)) for _, unit, scale in parts}
    for unit in sorted(seen):
        if not any(same_unit(unit, other) for other in units):
            units.append(unit)
    return units, scaled


def _refuse_others(name: str, known: pd.Series[Any], others: Sequence[int], what: str) -> None:
    if others:
        first = f"row {known.index[others[0]]}: {known.iloc[others[0]]!r}"
        raise SennError(
            f"column {name!r} {what} {len(others)} of {len(known)} rows, the first being {first}; "
            "correct it, leave it empty, or declare the column a category"
        )


def _note(texts: Sequence[str], style: NumberStyle, *, unsure: bool) -> str:
    """Say how numbers are read, by an example that Python itself wouldn't read so."""
    example = next(
        (text for text in texts if not _is_plain(text) and _reads(text, style.decimal)), None
    )
    if example is None:
        return ""
    value = read_number(example, style.decimal, style.unit, style.scaled)
    comma = " with a decimal comma" if style.decimal == "," else ""
    note = f"is read as numbers{comma}, {example!r} as {value:.12g}"
    other: Mark = "," if style.decimal == "." else "."
    if not unsure or not all(_reads(text, other) for text in texts):
        return note
    different = next((text for text in texts[:_FEW] if _differs(text, style)), None)
    return note + (f"; '--decimal {other}' reads {different!r} otherwise" if different else "")


def _reads(text: str, mark: Mark) -> bool:
    return written_number(text, mark) is not None


def _is_plain(text: str) -> bool:
    try:
        return "_" not in text and float(text) == float(text)
    except ValueError:
        return False


def _differs(text: str, style: NumberStyle) -> bool:
    """Tell whether a text is another number with the other mark."""
    one, other = (read_number(text, mark, style.unit, style.scaled) for mark in MARKS)
    return one != other
