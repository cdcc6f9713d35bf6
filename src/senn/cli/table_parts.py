"""Which rows of a table a network is trained on, validated on and tested on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from senn.cli.prepared_data import FEWEST_ROWS, refuse_fraction
from senn.cli.row_keys import RowKeys, row_groups
from senn.data import Table, Target, read_table, split
from senn.data.split import folds, folds_in_time
from senn.data.tabular.feature_columns import listed
from senn.data.tabular.table_encoder import check_names
from senn.data.tabular.target import labeled
from senn.errors import SennError
from senn.runs import FitOptions
from senn.training import TrainConfig

RowNumbers = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True, eq=False)
class TableParts:
    """Rows of a table, by what they are for.

    Attributes:
        train: rows to train on, those for validation included.
        test: rows to test on.
        validation: positions in `train` of the rows for validation; None where training draws them.
        left_out: columns that are no features, with the reason as the end of a sentence on the column.
        clusters: (test rows,) numbers of the rows that belong together; None where each stands for itself.
        times: (test rows,) their times where they are the latest; else None.
        latest: positions in `train` of the rows of the latest time; None where rows have no order.
        notes: remarks, one sentence each.
    """

    train: pd.DataFrame
    test: pd.DataFrame
    validation: RowNumbers | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    clusters: NDArray[Any] | None = None
    times: NDArray[Any] | None = None
    latest: RowNumbers | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_random(self) -> bool:
        """True if rows were drawn one by one."""
        return self.validation is None


def read_test_table(options: FitOptions, name: str, text: list[str], table: Table) -> Table | None:
    """Read the table of `--test`, if there is one, without the rows that have no target; its notes name it.

    Args:
        options: of the run.
        name: column to predict.
        text: columns that are read as text.
        table: the training table.

    Raises:
        SennError: it can't be read, or lacks the target.
    """
    if options.test is None:
        return None
    refuse_fraction(options)
    mark = options.decimal or table.decimal
    test = read_table(
        options.test,
        text=text,
        encoding=options.encoding,
        decimal=mark,
        legacy_encoding=table.legacy_encoding,
    )
    frame = test.frame
    if name not in frame.columns:
        raise SennError(
            f"{options.test!r} has no column {name!r}, which is to be predicted, so nothing can be scored on it; "
            f"it has {listed(frame.columns)}"
        )
    check_names(frame, name)
    frame, unlabeled = labeled(frame, name, mark)
    notes = [f"{options.test!r}: {note}" for note in [*test.notes, *unlabeled]]
    return replace(test, frame=frame, notes=notes)


def divide(
    options: FitOptions,
    table: Table,
    target: Target,
    test: Table | None,
    recipe: TrainConfig,
) -> TableParts:
    """Divide a table into rows to train on, to validate on and to test on.

    Args:
        options: of the run.
        table: the table as read.
        target: column to predict.
        test: table to test on; None to hold out rows.
        recipe: share of the training rows that are held out for validation by groups or by time.

    Raises:
        SennError: a column of `--group` or `--time` isn't there or can't be used, or a part would have no rows.
    """
    divider = _Divider.of(options, table.frame, target, recipe)
    if test is None:
        return divider.parts(*divider.hold_out())
    return divider.with_test(test)


def fold_parts(
    options: FitOptions, table: Table, target: Target, recipe: TrainConfig
) -> tuple[TableParts, ...]:
    """Divide a table for cross-validation: for each fold the rows to train on, to validate on and to test on.

    Args:
        options: of the run.
        table: the table as read.
        target: column to predict.
        recipe: share of the training rows that are held out for validation by groups or by time.

    Returns:
        A part for each fold; none without `--cv`.

    Raises:
        SennError: there are too few rows, groups or times.
    """
    if options.cv is None:
        return ()
    if options.test is not None:
        raise SennError(
            "--cv can't be combined with --test: it scores on each part of DATA in turn"
        )
    divider = _Divider.of(options, table.frame, target, recipe)
    return tuple(divider.parts(*pair) for pair in divider.folds(options.cv))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Divider:
    """Divides one table.

    Attributes:
        options: of the run.
        frame: the table.
        keys: groups and times of its rows.
        classes: (rows,) numbers of their classes; None for numbers.
        recipe: share of the training rows that are held out for validation by groups or by time.
    """

    options: FitOptions
    frame: pd.DataFrame
    keys: RowKeys
    classes: NDArray[Any] | None
    recipe: TrainConfig

    @classmethod
    def of(
        cls, options: FitOptions, frame: pd.DataFrame, target: Target, recipe: TrainConfig
    ) -> _Divider:
        keys = RowKeys.of(options, frame, target.name)
        is_class = target.task == "classification"
        classes = target.encode(frame[target.name]) if is_class else None
        return cls(options=options, frame=frame, keys=keys, classes=classes, recipe=recipe)

    def hold_out(self) -> tuple[RowNumbers, RowNumbers]:
        """Choose rows to train on and to test on."""
        options = self.options
        if not self.keys.is_given:
            # Classes are held out in proportion, so that a rare one is in both parts.
            return split(len(self.frame), options.test_fraction, options.seed, self.classes)
        if not self.keys.is_divisible:
            by_time = self.keys.times is not None
            column, option = (options.time, "--time") if by_time else (options.group, "--group")
            what = "no rows are the latest" if by_time else "no group can be held out"
            raise SennError(f"column {column!r} of {option} has a single value, so {what}")
        return self.keys.hold_out(options.test_fraction, options.seed, self.classes)

    def folds(self, count: int) -> list[tuple[RowNumbers, RowNumbers]]:
        """Choose rows to train on and to test on for each fold."""
        rows, keys = len(self.frame), self.keys
        if rows < 2 * count:
            raise SennError(
                f"--cv {count} needs at least {2 * count:,} rows, two for each fold, and there are {rows:,}"
            )
        if keys.times is not None:
            self._need(self.options.time, "--time", keys.times, count + 1)
            pairs = folds_in_time(keys.times, count)
        else:
            if keys.groups is not None:
                self._need(self.options.group, "--group", keys.groups, count)
            parts = folds(rows, count, self.options.seed, self.classes, keys.groups)
            pairs = [(np.setdiff1d(np.arange(rows), part), part) for part in parts]
        least = min(len(train) for train, _ in pairs)
        if least < FEWEST_ROWS:
            raise SennError(
                f"--cv {count} would leave {least:,} row{'s' * (least != 1)} to train on in a fold; at least "
                f"{FEWEST_ROWS} are needed"
            )
        return pairs

    def _need(self, column: str | None, option: str, keys: NDArray[Any], least: int) -> None:
        if (found := len(np.unique(keys))) < least:
            raise SennError(
                f"--cv {self.options.cv} needs at least {least:,} different values of column {column!r} of {option}, "
                f"and there {'is' if found == 1 else 'are'} {found:,}"
            )

    def parts(self, train: RowNumbers, held_out: RowNumbers) -> TableParts:
        """Return the parts of rows to train on and to test on, less those whose group is on both sides."""
        rows = len(train) + len(held_out)
        train, validation = self._validation(self.keys.parted(train, held_out))
        notes = [*self.keys.notes, *self._left_out(rows - len(train) - len(held_out), rows)]
        return TableParts(
            train=self.frame.iloc[train],
            test=self.frame.iloc[held_out],
            validation=validation,
            left_out=self._no_features,
            clusters=self.keys.clusters(held_out),
            times=self.keys.take(held_out).times,
            latest=self.keys.take(train).latest,
            notes=tuple(notes),
        )

    def with_test(self, given: Table) -> TableParts:
        """Return the parts where the rows to test on are given."""
        test = given.frame
        train, validation = self._validation(np.arange(len(self.frame), dtype=np.intp))
        notes, name, clusters = [*self.keys.notes, *given.notes], self.options.group, None
        if self.keys.groups is not None and name is not None and name in test.columns:
            groups = row_groups(name, test)[0]
            clusters = np.unique(groups, return_inverse=True)[1]
            if shared := np.isin(groups, self.keys.groups).mean():
                notes.append(
                    f"{shared:.0%} of the test rows have a {name!r} that is also among the training rows"
                )
        rows = len(self.frame)
        notes += self._left_out(rows - len(train), rows)
        return TableParts(
            train=self.frame.iloc[train],
            test=test,
            validation=validation,
            left_out=self._no_features,
            clusters=clusters,
            notes=tuple(notes),
        )

    def _validation(self, train: RowNumbers) -> tuple[RowNumbers, RowNumbers | None]:
        """Return the rows to train on, those for validation included, and the positions of these among them."""
        if not self.keys.is_given:
            return train, None
        keys = self.keys.take(train)
        share = self.recipe.validation_share(len(train))
        if not keys.is_divisible or not share:
            return train, np.empty(0, dtype=np.intp)
        classes = None if self.classes is None else self.classes[train]
        fitted, validation = keys.hold_out(share, self.options.seed, classes)
        kept = np.sort(np.concatenate([keys.parted(fitted, validation), validation]))
        return train[kept], np.searchsorted(kept, validation)

    def _left_out(self, lost: int, rows: int) -> list[str]:
        """Say how many rows are left out so that no group has rows on both sides.

        Raises:
            SennError: they are most of the rows.
        """
        group, time = self.options.group, self.options.time
        if 2 * lost > rows:
            raise SennError(
                f"--group {group!r} and --time {time!r} together would leave out {lost:,} of {rows:,} rows: those of a "
                f"{group!r} that also has rows among the latest; use one of the two"
            )
        if not lost:
            return []
        return [
            f"{lost:,} earlier rows are left out, since their {group!r} also has rows among the latest, which are held "
            "out"
        ]

    @property
    def _no_features(self) -> dict[str, str]:
        name = self.options.group
        return {} if name is None else {name: "keeps its rows together (--group) and is no feature"}


@contextmanager
def about_test(path: str | None) -> Iterator[None]:
    """Name the file of `--test` in an error about its rows.

    Args:
        path: the file; None for rows that are held out.
    """
    try:
        yield
    except SennError as error:
        if path is None:
            raise
        raise SennError(f"{path!r}: {error}") from error
