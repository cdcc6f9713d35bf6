"""Encoding of a table, column by column, fitted to training rows and kept as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from senn._records import from_dict
from senn.data.tabular.column_kinds import ADDED, column_from_dict, column_to_dict
from senn.data.tabular.feature_columns import (
    check_any_feature,
    check_kinds,
    column_surprises,
    encode_columns,
    fit_columns,
    has_columns,
)
from senn.data.tabular.legacy_encodings import NAMES as LEGACY_ENCODINGS
from senn.data.tabular.number_style import Mark
from senn.data.tabular.read import Table, read_table
from senn.data.tabular.table_columns import Column, NumberColumn
from senn.data.tabular.target import ADDED_TO_TARGET, Target, Task
from senn.data.tabular.useful_bins import with_useful_bins
from senn.errors import SennError


@dataclass(frozen=True, kw_only=True)
class TableEncoder:
    """Encoder of a table's rows as numbers, the same way each time.

    Attributes:
        columns: encodings of the columns but the target, in the order of the training table.
        target: column to predict.
        decimal: decimal mark of the table's numbers, where something says it; None where nothing does.
        encoding: character encoding that the user has named, None for none; files to predict are read alike.
        legacy_encoding: character encoding of the training table if it isn't Unicode and nobody named it, else None;
            files to predict that aren't Unicode are read alike.
    """

    columns: tuple[Column, ...]
    target: Target
    decimal: Mark | None = None
    encoding: str | None = None
    legacy_encoding: str | None = None

    def __post_init__(self) -> None:
        if self.legacy_encoding is not None and self.legacy_encoding not in LEGACY_ENCODINGS:
            raise SennError(
                f"the encoding of the table names no encoding: {self.legacy_encoding!r}"
            )
        names = [column.name for column in self.columns] + [self.target.name]
        if len(set(names)) < len(names):
            raise SennError("the encoding of the table has two columns of one name")

    @classmethod
    def fit(
        cls,
        frame: pd.DataFrame,
        target: str | Target,
        task: Task | None = None,
        kinds: Mapping[str, str] | None = None,
        left_out: Mapping[str, str] | None = None,
        *,
        decimal: Mark | None = None,
        encoding: str | None = None,
        max_inputs: int | None = None,
        useful_bins: bool = True,
    ) -> TableEncoder:
        """Fit the encoding to training rows.

        Args:
            frame: the training rows.
            target: name of the column to predict, or the target as it was fitted before.
            task: None to infer it from the target's column; not used for a target that is fitted.
            kinds: kinds of columns that aren't to be inferred: `number`, `boolean`, `category`, `date`, `dropped`.
            left_out: columns that are no features, with the reason as the end of a sentence on the column.
            decimal: decimal mark of the table's numbers, where that is known.
            encoding: character encoding that files are to be read with.
            max_inputs: most features that numbers and their bins make, as of `most_bins`.
            useful_bins: whether bins go where they tell about the target of rows that are held out at random. That
                misleads where rows hang together, by group or in time: a column may tell which rows those are.

        Returns:
            The fitted encoder.

        Raises:
            SennError: a column isn't understood; it is named, with the row where there is one.

        >>> frame = pd.DataFrame({"height": [1.0, 2.0, 3.0, 4.0], "kind": ["a", "b", "a", "b"]})
        >>> encoder = TableEncoder.fit(frame, target="kind")
        >>> encoder.features
        ['height']
        >>> encoder.transform(frame)[:, 0].round(2)
        array([-0.66,  0.  ,  0.66,  1.23], dtype=float32)
        """
        name_of_target = target if isinstance(target, str) else target.name
        check_names(frame, name_of_target)
        check_kinds(frame, kinds or {})
        # the target first: its errors are about the whole task
        fitted = target
        if isinstance(fitted, str):
            fitted = Target.fit(fitted, frame[fitted], task, decimal)
        columns = fit_columns(
            frame.drop(columns=name_of_target),
            task=fitted.task,
            kinds=kinds,
            left_out=left_out,
            decimal=decimal,
            max_inputs=max_inputs,
        )
        if useful_bins:
            columns = with_useful_bins(
                columns,
                frame,
                lambda rows: fitted.encode(frame[name_of_target].iloc[rows]),
                task=fitted.task,
                max_inputs=max_inputs,
            )
        check_any_feature(columns, repr(name_of_target))
        return cls(columns=columns, target=fitted, decimal=decimal, encoding=encoding)

    @property
    def features(self) -> list[str]:
        """Names of the numbers that a row becomes, in order."""
        return [feature for column in self.columns for feature in column.features()]

    @property
    def notes(self) -> list[str]:
        """Remarks on single columns, one sentence each."""
        notes = [f"column {column.name!r} {column.note}" for column in self.columns if column.note]
        about = f"target {self.target.name!r} {self.target.note}"
        return [about, *notes] if self.target.note else notes

    @property
    def text_columns(self) -> list[str]:
        """Columns that a file must be read with as text, so that the category "007" doesn't become 7."""
        return [column.name for column in self.columns if column.kind == "category"]

    def transform(self, frame: pd.DataFrame) -> NDArray[np.float32]:
        """Encode rows.

        Args:
            frame: the rows; columns may come in any order, further ones are ignored.

        Returns:
            (n, len(features)) float32.

        Raises:
            SennError: a column is missing, or a cell can't be read.
        """
        check_names(frame)
        # Rounded last: float32 has 7 digits, and numbers far from zero may differ in later ones.
        return encode_columns(self.columns, frame, np.float32)

    def read(
        self,
        source: str | Path,
        *,
        text: Sequence[str] = (),
        encoding: str | None = None,
        decimal: Mark | None = None,
    ) -> Table:
        """Read a file as the training table was read, for `transform`.

        Args:
            source: as for `read_table`.
            text: further columns that are read as text.
            encoding: character encoding of the file, if it isn't that of the training table.
            decimal: decimal mark of the file, if it isn't that of the training table.

        Raises:
            SennError: there is no such file, or it isn't a table.
        """
        # Without a word on it, points are decimal, as everything that computes writes them.
        mark = decimal or self.decimal or "."
        kept = [*self.text_columns, *text]
        return read_table(
            source,
            text=kept,
            encoding=encoding or self.encoding,
            decimal=mark,
            legacy_encoding=self.legacy_encoding,
        )

    def surprises(self, frame: pd.DataFrame) -> list[str]:
        """Say what of these rows training never saw: categories, empty cells, other ways of writing numbers.

        Args:
            frame: the rows, as for `transform`.

        Returns:
            A sentence for each finding, with the number of cells and the first of them.

        Raises:
            SennError: a column is missing, or a cell can't be read.

        >>> frame = pd.DataFrame({"town": ["Ulm", "Bonn"] * 2, "kind": ["a", "b"] * 2})
        >>> TableEncoder.fit(frame, target="kind").surprises(pd.DataFrame({"town": ["Ulm", "Rome"]}))
        ["column 'town': 1 of 2 cells were never seen in training, the first being 'Rome'"]
        """
        check_names(frame)
        return column_surprises(self.columns, frame)

    def to_dict(self) -> dict[str, Any]:
        """Convert the encoder to a JSON record."""
        return {
            "columns": [column_to_dict(column) for column in self.columns],
            "target": self.target.to_dict(),
            "decimal": self.decimal,
            "encoding": self.encoding,
            "legacy_encoding": self.legacy_encoding,
        }

    def original(self, frame: pd.DataFrame) -> TableEncoder:
        """Return the encoder with numbers as version 0.1 encoded them, for its runs that go on.

        Args:
            frame: the training rows.
        """
        columns = tuple(
            one.original(frame[one.name]) if isinstance(one, NumberColumn) else one
            for one in self.columns
        )
        return replace(self, columns=columns, target=self.target.original(frame[self.target.name]))

    def original_record(self) -> dict[str, Any]:
        """Return what version 0.1 would have recorded, so that the checksums of its runs still hold.

        What it lacks says how cells are written; the encoded numbers follow from that.
        """
        columns = [
            {key: value for key, value in one.items() if key not in ADDED.get(one["kind"], ())}
            for one in map(column_to_dict, self.columns)
        ]
        target = self.target.to_dict()
        for key in ADDED_TO_TARGET:
            del target[key]
        return {"columns": columns, "target": target}

    @classmethod
    def from_dict(cls, record: Any) -> TableEncoder:
        """Restore an encoder from a record of `to_dict`.

        Raises:
            SennError: the record is damaged.
        """
        if (
            not isinstance(record, dict)
            or not isinstance(record.get("columns"), list)
            or "target" not in record
        ):
            raise SennError("the stored encoding of the table is damaged")
        columns = tuple(map(column_from_dict, record["columns"]))
        # version 0.1 had none of them, and read decimal points in UTF-8
        read = {name: record.get(name) for name in ("decimal", "encoding", "legacy_encoding")}
        reading = from_dict(_Reading, read, "the stored encoding of the table")
        return cls(columns=columns, target=Target.from_dict(record["target"]), **vars(reading))


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """How files are read, in a record."""

    decimal: Mark | None
    encoding: str | None
    legacy_encoding: str | None


def check_names(frame: pd.DataFrame, target: str | None = None) -> None:
    """Check the names of a table's columns.

    Args:
        frame: the table.
        target: column that must be there; None for none.

    Raises:
        SennError: the table has no rows, two columns of one name, or lacks the target.
    """
    if frame.columns.has_duplicates:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise SennError(f"two columns are named {twice!r}")
    if target is not None and target not in frame.columns:
        raise SennError(f"there is no column {target!r}; {has_columns(target, frame.columns)}")
    if len(frame) == 0:
        raise SennError("the table has no rows")
