"""Columns of a text that hold plain numbers: which they are, and what their decimal mark is.

A table may have tens of thousands of columns, for each of which a call of pandas' costs more than its cells do. So the
cells of a column are joined to one text, which a regular expression passes at once.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from senn.data.tabular.number_style import Mark
from senn.errors import SennError

_BETWEEN = "\0"


def _every(pattern: str) -> re.Pattern[str]:
    """Compile what matches a column of which every cell matches a pattern."""
    return re.compile(f"{_BETWEEN}(?:(?:{pattern}){_BETWEEN})*+")


def _some(pattern: str) -> re.Pattern[str]:
    """Compile what is found in a column of which some cell matches a pattern."""
    return re.compile(f"{_BETWEEN}({pattern}){_BETWEEN}")


_PLAIN = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_DIGITS = r"[-+]?[0-9]+"
_WHOLE = r"[-+]?[0-9]{1,18}"
_EITHER = r"[-+]?[1-9][0-9]{0,2},[0-9]{3}"
_COMMA = r"[-+]?(?:[0-9]+,(?:[0-9]{1,2}|[0-9]{4,})|0,[0-9]+|[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]+)"
_POINT = r"[-+]?(?:[0-9]*\.(?:[0-9]{1,2}|[0-9]{4,})|0\.[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+\.[0-9]+)"

_ALL_PLAIN, _ALL_DIGITS, _ALL_WHOLE = _every(_PLAIN), _every(_DIGITS), _every(_WHOLE)
_ALL_COMMAS, _ALL_POINTS = _every(f"{_COMMA}|{_EITHER}"), _every(f"{_POINT}|{_PLAIN}")
_ALL_UNSURE = _every(f"{_EITHER}|{_WHOLE}")
_A_COMMA, _A_POINT, _AN_EITHER = _some(_COMMA), _some(_POINT), _some(_EITHER)
_ZEROS_AHEAD = _some("[-+]?0[0-9]+")
_BLANKS = re.compile(rf"{_BETWEEN}\s|\s{_BETWEEN}")


@dataclass(frozen=True, kw_only=True)
class NumberFacts:
    """How the numbers of a column are written, if all of its cells are numbers.

    Attributes:
        kind: `int` or `float` for plain numbers, which Python reads; None for any other cells.
        has_points: plain numbers have points.
        has_commas: some number can only be read with a decimal comma.
        has_decimal_points: some number can only be read with a decimal point.
        unsure: first number whose comma may be either, where no other one tells; None for none.
    """

    kind: type[int] | type[float] | None = None
    has_points: bool = False
    has_commas: bool = False
    has_decimal_points: bool = False
    unsure: str | None = None


_NO_NUMBERS = NumberFacts()


def known_texts(cells: pd.Series[Any]) -> list[str]:
    """Return the cells that aren't missing.

    Args:
        cells: texts of a column.
    """
    values = cells.to_numpy(dtype=object)
    known: list[str] = values[~pd.isna(values)].tolist()
    return known


def has_blanks(cells: pd.Series[Any]) -> bool:
    """Tell whether a cell of a column has blanks around it.

    Args:
        cells: texts of the column.
    """
    return _BLANKS.search(_joined(known_texts(cells))) is not None


def number_facts(cells: pd.Series[Any]) -> NumberFacts:
    """Find how the numbers of a column are written.

    Args:
        cells: texts of the column, without blanks around them.
    """
    known = known_texts(cells)
    text = _joined(known)
    if not known or text.count(_BETWEEN) != len(known) + 1:
        return _NO_NUMBERS
    if _ALL_PLAIN.fullmatch(text):
        points = "." in text and _A_POINT.search(text) is not None
        return NumberFacts(
            kind=_plain_kind(text), has_points="." in text, has_decimal_points=points
        )
    either = _AN_EITHER.search(text) if _ALL_UNSURE.fullmatch(text) else None
    return NumberFacts(
        has_commas=bool(_ALL_COMMAS.fullmatch(text) and _A_COMMA.search(text)),
        has_decimal_points=bool(_ALL_POINTS.fullmatch(text) and _A_POINT.search(text)),
        unsure=either[1] if either else None,
    )


def _joined(known: list[str]) -> str:
    return _BETWEEN + _BETWEEN.join(known) + _BETWEEN


def _plain_kind(text: str) -> type[int] | type[float] | None:
    """Return how a column of plain numbers is read; codes with leading zeros and longest integers stay text."""
    if _ZEROS_AHEAD.search(text):
        return None
    if _ALL_WHOLE.fullmatch(text):
        return int
    return None if _ALL_DIGITS.fullmatch(text) else float


def decimal_of(facts: Mapping[Any, NumberFacts], separator: str, shown: str) -> Mark | None:
    """Find the decimal mark of a table's numbers, from those that can only be read with one.

    Args:
        facts: of the columns, by name.
        separator: between cells: where it is a semicolon, commas tend to be decimal.
        shown: how messages call the table.

    Returns:
        The mark; None if nothing says it.

    Raises:
        SennError: numbers between semicolons may be thousands or have decimals, and no other number tells.
    """
    commas = any(one.has_commas for one in facts.values())
    points = any(one.has_decimal_points for one in facts.values())
    if commas != points:
        return "," if commas else "."
    unsure = [(name, one.unsure) for name, one in facts.items() if one.unsure]
    if separator == ";" and unsure and not points and not commas:
        name, first = unsure[0]
        whole, part = first.replace(",", ""), first.replace(",", ".")
        raise SennError(
            f"column {name!r} of {shown} writes {first!r}, which may be {whole} or {part}: say which with "
            "--decimal . or --decimal ,"
        )
    return None


def with_numbers(
    frame: pd.DataFrame,
    facts: Mapping[Any, NumberFacts],
    text: Collection[str],
    decimal: Mark | None,
) -> pd.DataFrame:
    """Convert the columns that hold plain numbers, and leave the others as text.

    Args:
        frame: cells as texts.
        facts: of the columns, by name.
        text: columns that stay text.
        decimal: decimal mark; after a comma, numbers with points stay text, for they may be thousands.

    Returns:
        A table in which codes with leading zeros are text, and whole numbers stay whole where cells are missing.
    """
    kept = set(text)
    columns = {}
    for name, cells in frame.items():
        about = facts[name]
        is_text = name in kept or (decimal == "," and about.has_points)
        columns[name] = _read(cells, None if is_text else about.kind)
    return pd.DataFrame(columns, index=frame.index)


def _read(cells: pd.Series[Any], kind: type[int] | type[float] | None) -> Any:
    values = cells.to_numpy(dtype=object)
    missing = pd.isna(values)
    if kind is None:
        return cells.where(~missing, None) if missing.any() else cells
    # numpy lets Python read them, as exactly as decimals can be, and so does an exported network.
    if kind is float:
        read = np.full(len(values), np.nan)
        read[~missing] = values[~missing].astype(np.float64)
        return read
    whole = np.zeros(len(values), np.int64)
    whole[~missing] = values[~missing].astype(np.int64)
    return pd.arrays.IntegerArray(whole, missing) if missing.any() else whole
