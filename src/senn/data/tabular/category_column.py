"""Encoding of a column of categories."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from senn.data.tabular.cell_texts import NO_VALUE, finder, without_fractions
from senn.data.tabular.cells import Floats, FoundKind, shown, text, texts
from senn.data.tabular.number_style import MARKS, MOSTLY, Mark
from senn.data.tabular.table_columns import Column, Dropped, empty_cells
from senn.data.tabular.written_numbers import written_number

MOST_CATEGORIES = 1024
"""Categories that get a feature of their own; the rarer ones share one.

The first layer embeds them: the weights of a feature are the embedding of its category, as wide as the layer, which
growth decides on. (An `nn.Embedding` with a width of its own would be a bottleneck before that layer.)
"""

SURE_CATEGORIES = 64
"""Categories that get a feature of their own whatever the size of the table or the limits of the network."""

MOST_NUMBERS = 2**25
"""Numbers that all categories of a large table become at most, beyond the sure ones."""

FEWEST_ROWS = 4
"""Rows of a category with a feature of its own; in tables of less than 400 rows a hundredth of the rows."""

MOST_RARE = 1_000
"""Rare categories that are kept by name."""


_SAMPLE = 200
"""Cells that show why a column of texts isn't used."""

_UNREAD = (
    (
        re.compile(
            r"(?=.*(?:19|20)\d\d)\D*\d{1,4}[-/. ]+(?:\d{1,2}|[^\W\d]{3,9}\.?)[-/., ]+\d{1,4}(?:\D.*)?"
        ),
        "holds dates in no form that all of them have, the first being {}; YYYY-MM-DD is read",
    ),
    (
        re.compile(r"(?:\d+ )?\d+/\d+"),
        "holds fractions, the first being {}, which aren't read; decimals are",
    ),
)
"""Texts that may well be read after a change, and what to say of them."""

_AMOUNT = re.compile(
    r"[<>≤≥~±]=?\s*[\d.,]+.*|[(\[]?\s*-?[\d.,]+\s*(?:[^\w\s]|x|to\b|\d).*\d.*|0x[0-9a-fA-F]+",
    re.DOTALL,
)
"""Ranges, ratios, fractions, sizes, pairs: texts that people mean as numbers."""


@dataclass(frozen=True, kw_only=True)
class CategoryColumn:
    """Category, one feature per frequent one; rare and unseen ones share "other" if there were rare ones at fit.

    Attributes:
        name: of the column.
        categories: those with a feature, in its order.
        other: rare and unseen ones share a feature.
        indicator: whether a cell is missing is a feature.
        rare: the categories that share a feature, so that unseen ones are told from them; empty for thousands of them.
        note: end of a sentence about the column.
    """

    kind: ClassVar[str] = "category"
    name: str
    categories: tuple[str, ...]
    other: bool
    indicator: bool
    rare: tuple[str, ...] = ()
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
            The fitted column, or a `Dropped` one if it can't tell rows apart, or holds identifiers.
        """
        known = [cell for cell in texts(cells) if cell is not None]
        short = without_fractions(known)
        counts = pd.Series([short[cell] for cell in known], dtype=object).value_counts()
        indicator = len(known) < len(cells)
        if len(counts) < 2 and not indicator:
            return Dropped(name=name, note=f"is always {counts.index[0]!r}")
        # a text that differs in most rows names the row; in a small table that may be chance
        if len(cells) >= 20 and len(counts) > len(known) / 2:
            return Dropped(name=name, note=_of_many_texts(known, len(counts)))
        # a category of fewer rows than this would be learned by heart
        rare = min(FEWEST_ROWS, max(1, len(cells) // 100))
        # Ties by their text: in the order of rows, a shuffled table would get other features.
        frequent = sorted(counts.index[counts >= rare], key=lambda text: (-counts[text], text))[
            :MOST_CATEGORIES
        ]
        if not frequent:
            return Dropped(
                name=name, note=f"has {len(counts):,} categories, each in fewer than {rare} rows"
            )
        others = set(counts.index) - set(frequent)
        column = cls._of(name, frequent, others, indicator=indicator)
        if not _are_amounts(known[:_SAMPLE]):
            return column
        said = f"is read as categories without an order: {shown(known[0])} is neither a number nor a date"
        return replace(column, note="; ".join(filter(None, (said, column.note))))

    @classmethod
    def _of(
        cls, name: str, frequent: Sequence[str], others: Set[str], *, indicator: bool
    ) -> CategoryColumn:
        # unseen categories use the feature of the rare ones, which training has taught; without rare ones they have
        # none
        merged = len(others)
        return cls(
            name=name,
            categories=tuple(frequent),
            other=merged > 0,
            indicator=indicator,
            rare=tuple(sorted(others)) if merged <= MOST_RARE else (),
            note=_rare_note(merged),
        )

    def with_most(self, most: int) -> CategoryColumn:
        """Return the encoding with features for the most frequent categories alone.

        Args:
            most: categories that keep one.
        """
        if len(self.categories) <= most:
            return self
        kept, others = self.categories[:most], {*self.categories[most:], *self.rare}
        if self.other and not self.rare:  # so many that they aren't known by name
            return replace(self, categories=kept)
        return self._of(self.name, kept, others, indicator=self.indicator)

    def features(self) -> list[str]:
        """List one feature per category, then "other" and "missing" if there were such cells at fit."""
        extra = [
            word for word, used in (("other", self.other), ("missing", self.indicator)) if used
        ]
        return [f"{self.name}={category}" for category in self.categories] + [
            f"{self.name} {word}" for word in extra
        ]

    def encode(self, cells: pd.Series[Any]) -> Floats:
        """Zeros and a single one per row (none at all for an unseen category where nothing was rare at fit)."""
        at = self._places(cells)
        out = np.zeros((len(cells), len(self.features())))
        rows = np.flatnonzero(at >= 0)
        out[rows, at[rows]] = 1.0
        return out

    def surprises(self, cells: pd.Series[Any]) -> list[str]:
        """Say how many cells hold categories that training never saw."""
        known = texts(cells)
        is_missing = np.asarray([cell is None for cell in known]) & (self._places(cells) < 0)
        empty = [] if self.indicator else empty_cells(is_missing)
        found = [f"{one}, as no cell in training" for one in empty]
        find = finder((*self.categories, *self.rare))
        unseen = [cell for cell in known if cell is not None and find(cell) is None]
        # without the names of the rare ones, an unseen one can't be told from them
        if unseen and (self.rare or not self.other):
            count = f"{len(unseen):,} of {len(cells):,} cells"
            found.append(f"{count} were never seen in training, the first being {shown(unseen[0])}")
        return found

    def _places(self, cells: pd.Series[Any]) -> NDArray[np.int64]:
        """Return the feature of each cell, -1 for none."""
        find = finder(self.categories)
        elsewhere = len(self.categories) if self.other else -1
        absent = len(self.categories) + self.other if self.indicator else elsewhere
        place: dict[str | None, int] = {}
        # a word for no value may be a category of an encoder that was fitted to Parquet
        out = np.empty(len(cells), dtype=np.int64)
        raw = [
            None if gone else text(cell)
            for cell, gone in zip(cells.astype(object), cells.isna(), strict=True)
        ]
        for at, cell in enumerate(raw):
            if cell not in place:
                found = None if cell is None else find(cell)
                nothing = absent if cell is None or cell in NO_VALUE else elsewhere
                place[cell] = nothing if found is None else found
            out[at] = place[cell]
        return out


def _of_many_texts(known: list[str], different: int) -> str:
    """Say why a column of which most texts differ isn't used."""
    counts = f"{different:,} different texts in {len(known):,} rows"
    sample = known[:_SAMPLE]
    other = next((cell for cell in known if not _is_number(cell)), None)
    share = sum(map(_is_number, sample)) / len(sample)
    if other is not None and share >= 0.5:
        return (
            f"holds numbers in about {share:.0%} of its rows and other texts such as {shown(other)}, so it isn't read; "
            "write numbers there, or leave the cells empty"
        )
    for form, sentence in _UNREAD:
        if sum(form.fullmatch(cell) is not None for cell in sample) >= MOSTLY * len(sample):
            return sentence.format(shown(sample[0]))
    # four words and more on average are a sentence, which no code and few names are
    if sum(cell.count(" ") for cell in sample) >= 3 * len(sample):
        return f"holds text, which isn't read: {counts}"
    more = ""
    if _are_amounts(sample):
        more = f"; {shown(sample[0])} is read neither as a number nor as a date"
    return f"looks like an identifier: {counts}{more}"


def _are_amounts(sample: list[str]) -> bool:
    """Tell whether most texts may be meant as numbers, though none of them can be read as one."""
    # Codes of digits alone are categories because somebody said so, or for their leading zeros.
    alike = sum(_AMOUNT.fullmatch(cell) is not None and not cell.isdigit() for cell in sample)
    return alike >= MOSTLY * len(sample) and not any(map(_is_number, sample[:5]))


def _is_number(cell: str) -> bool:
    return any(written_number(cell, mark) is not None for mark in MARKS)


def most_categories(rows: int, columns: int, inputs: int | None = None) -> int:
    """Choose how many categories of a column get a feature of their own at most.

    Args:
        rows: training rows.
        columns: columns of categories.
        inputs: most inputs that a network of limited size may have; None for any number.

    >>> [most_categories(rows, 1) for rows in (1_000, 100_000, 10_000_000)]
    [1024, 335, 64]
    """
    if inputs is not None:
        return SURE_CATEGORIES
    share = MOST_NUMBERS // max(rows, 1) // max(columns, 1)
    return max(SURE_CATEGORIES, min(MOST_CATEGORIES, share))


def _rare_note(count: int) -> str:
    if count == 1:
        return "has a rare category, which is read as unseen ones are"
    return f"has {count:,} rare categories, which are taken together" if count else ""
