"""Words in cells: which stand for nothing, and which are the same category.

Exported networks carry the text of this file along, so it needs nothing but Python's own library.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

NO_VALUE = frozenset(
    {
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "1.#IND", "1.#QNAN"),
        *("-NaN", "-nan", "<NA>"),
        *("N/A", "NA", "NULL", "NaN", "NaT", "None", "n/a", "nan", "null"),
    }
)  # fmt: skip
"""Words that pandas takes for missing cells, so that its files are read as it reads them."""

NEVER_A_CLASS = frozenset(
    {"", "nan", "-nan", "nat", "<na>", "#n/a", "#na", "1.#ind", "1.#qnan", "-1.#ind", "-1.#qnan"}
)
"""Words of programs for no value, in lower case; NA and None may be names of classes."""

MISSING_MARKS = frozenset(
    {
        *("?", "-", "--", "---", "\u2013", "\u2014", ".", "..", "...", "*", "(blank)", "blank"),
        *("na", "n/a", "n.a.", "n.d.", "n/d", "nd", "null", "(null)", "none", "nil", "#n/a n/a"),
        *("missing", "unknown", "undefined", "no data", "not available", "not applicable"),
        # Exports of MySQL and PostgreSQL write the first one, and MySQL has dates of nothing.
        *("\\n", "0000-00-00", "0000-00-00 00:00:00"),
        *("#div/0!", "#value!", "#ref!", "#name?", "#num!", "#null!"),
        *NEVER_A_CLASS,
    }
)
"""Texts that stand for a missing number or date, in lower case."""

TRUTH = {"true": 1.0, "false": -1.0, "1": 1.0, "0": -1.0, "yes": 1.0, "no": -1.0}
"""Truth values in lower case; 1 and -1 leave the middle to a missing cell."""

_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]*)")
_WHOLE_AS_FRACTION = re.compile(r"(-?(?:0|[1-9][0-9]*))\.0+")


def as_text(cell: Any) -> str:
    """Convert a cell to text without blanks around it, the same for 3, 3.0 and "3"."""
    # A column of whole numbers with a missing cell comes as floats from pandas.
    if isinstance(cell, float) and float(cell).is_integer():
        return str(int(cell))
    return str(cell).strip()


def without_fractions(texts: Iterable[str]) -> dict[str, str]:
    """Return the short form of each text, "3" of "3.0", if all are whole; else the text itself."""
    # pandas writes whole numbers so where one cell of their column is empty; "03" is another text.
    # Whole texts only: a search in one of 100,000 digits would begin at each of them, and make
    # 12 of 1.02.
    found = {text: _WHOLE_AS_FRACTION.fullmatch(text) for text in texts}
    short = {text: match[1] if match else text for text, match in found.items()}
    if all(_WHOLE.fullmatch(text) for text in short.values()):
        return short
    return {text: text for text in short}


def finder(categories: Iterable[str]) -> Callable[[str], int | None]:
    """Return a function from a cell's text to the place of its category, None for no category.

    Args:
        categories: in the order of their places.

    >>> find = finder(["2", "3"])
    >>> find("3"), find(" 3.0"), find("03")
    (1, 1, None)
    """
    listed = list(categories)
    exact = {word: at for at, word in enumerate(listed)}
    # An encoder of version 0.1 may have kept blanks around a word.
    short = without_fractions(word.strip() for word in listed)
    plain: dict[str, int] = {}
    for at, word in enumerate(listed):
        plain.setdefault(short[word.strip()], at)
    # Among whole numbers "3.0" is 3; among versions such as 3.1 it is one of its own.
    is_whole = all(_WHOLE.fullmatch(word) for word in plain)

    def find(text: str) -> int | None:
        at = exact.get(text)
        if at is None:
            key = text.strip()
            whole = _WHOLE_AS_FRACTION.fullmatch(key) if is_whole else None
            at = plain.get(whole[1] if whole else key)
        return at

    return find
