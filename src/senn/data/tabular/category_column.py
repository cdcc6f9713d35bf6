"""Encoding of a column of categories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from senn.data.tabular.cell_texts import NO_VALUE, finder, without_fractions
from senn.data.tabular.cells import Floats, FoundKind, shown, text, texts
from senn.data.tabular.number_style import Mark
from senn.data.tabular.table_columns import Column, Dropped, empty_cells

MOST_CATEGORIES = 64
"""Categories that get a feature of their own; the rarer ones share one.

It bounds the width of the first layer: a column of names with thousands of rare values would be most of its parameters.
"""

MOST_RARE = 1_000
"""Rare categories that are kept by name."""


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
        # a category of fewer rows than this (1 % of a small table) would be learned by heart
        rare = min(10, max(1, len(cells) // 100))
        # Ties by their text: in the order of rows, a shuffled table would get other features.
        frequent = sorted(counts.index[counts >= rare], key=lambda text: (-counts[text], text))[
            :MOST_CATEGORIES
        ]
        if not frequent:
            return Dropped(
                name=name, note=f"has {len(counts):,} categories, each in fewer than {rare} rows"
            )
        # unseen categories use the feature of the rare ones, which training has taught; without rare ones they have
        # none
        others = sorted(set(counts.index) - set(frequent))
        merged = len(others)
        note = f"has {merged:,} rare categories, which are taken together" if merged else ""
        return cls(
            name=name,
            categories=tuple(frequent),
            other=merged > 0,
            indicator=indicator,
            rare=tuple(others) if merged <= MOST_RARE else (),
            note=note,
        )

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
    blanks = sum(cell.count(" ") for cell in known) / len(known)
    counts = f"{different:,} different texts in {len(known):,} rows"
    # four words and more on average are a sentence, which no code and few names are
    if blanks >= 3:
        return f"holds text, which isn't read: {counts}"
    return f"looks like an identifier: {counts}"
