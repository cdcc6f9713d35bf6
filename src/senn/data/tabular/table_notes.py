"""What a table's user should hear before training: leaks into the test rows, row numbers, doubtful classes."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from senn.data.tabular.cells import numbers
from senn.data.tabular.date_column import DateColumn, dates
from senn.data.tabular.feature_columns import listed
from senn.data.tabular.number_scale import NumberScale
from senn.data.tabular.table_columns import NumberColumn
from senn.data.tabular.table_encoder import TableEncoder
from senn.data.tabular.target import Target
from senn.data.tails import is_heavy_tailed

FEWEST = 20
"""Rows below which an even column, or one that decides the target, may be chance."""

_WRITTEN_INDEX = re.compile(r"Unnamed: \d+(\.\d+)*|\.\.\.\d+|__index_level_\d+__")
"""Names under which pandas, readr and Parquet give back an index that had none."""
_INDEX = re.compile(r"index|level_\d+|row[ _.]?(names?|numbers?|num|no|nr|id)?", re.I)

_MOST_ROWS = 5000
"""Rows, evenly spaced, on which single columns are compared with the target."""
_MOST_COLUMNS = 300
_CORRELATION, _RANK_CORRELATION = 0.999, 0.9999
_FAR = 50
_SHARE_OF_ERRORS = 0.02
"""Errors of a single column, beside those of always guessing the most frequent class, below which it decides alone."""


def index_columns(frame: pd.DataFrame, but: Collection[str] = ()) -> dict[str, str]:
    """Find columns that only number the rows, as `DataFrame.to_csv` writes them.

    Args:
        frame: the table.
        but: columns that somebody has a use for.

    Returns:
        The reason as the end of a sentence, by column.

    >>> index_columns(pd.DataFrame({"Unnamed: 0": [3, 1, 2], "a": [1, 2, 3]}))
    {'Unnamed: 0': 'numbers the rows'}
    """
    found = {}
    for name in frame.columns:
        if name in but:
            continue
        is_written = _WRITTEN_INDEX.fullmatch(name) is not None
        if not is_written and not _INDEX.fullmatch(name):
            continue
        values = _whole(frame[name])
        # What somebody has named may be a measurement: only a gapless count is none.
        if values is not None and (is_written or np.ptp(values) == len(values) - 1):
            found[name] = "numbers the rows"
    return found


def _whole(cells: pd.Series[Any]) -> NDArray[Any] | None:
    """Return the whole numbers of a column in which none is missing or occurs twice, else None."""
    if pd.api.types.is_bool_dtype(cells.dtype) or pd.api.types.is_datetime64_any_dtype(cells.dtype):
        return None
    values = pd.to_numeric(cells, errors="coerce")
    if values.isna().any() or not values.is_unique:
        return None
    plain = values.to_numpy(dtype=np.float64)
    return plain if bool((plain == np.round(plain)).all()) else None


def rising_columns(frame: pd.DataFrame, encoder: TableEncoder) -> dict[str, str]:
    """Find columns by which the rows are numbered or ordered in time.

    Args:
        frame: the table, in the order of the file.
        encoder: kinds of its columns.

    Returns:
        "date" or "number" by column.
    """
    found = {}
    for column in encoder.columns:
        if column.kind == "date":
            found[column.name] = "date"
        elif column.kind == "number" and len(frame) >= FEWEST and _rises(frame[column.name]):
            found[column.name] = "number"
    return found


def _rises(cells: pd.Series[Any]) -> bool:
    values = pd.to_numeric(cells, errors="coerce")
    if values.isna().any() or not values.is_unique:
        return False
    plain = values.to_numpy(dtype=np.float64)
    steps, sorted_steps = np.diff(plain), np.diff(np.sort(plain))
    if _is_even(sorted_steps):
        return True
    is_whole = bool((plain == np.round(plain)).all())
    return is_whole and bool((steps > 0).all() or (steps < 0).all())


def _is_even(steps: NDArray[Any]) -> bool:
    return bool(np.allclose(steps, steps[0], rtol=1e-6, atol=0))


_PLACEHOLDER = re.compile(r"-1|-?9{2,}|-8{2,}")
"""Numbers by which programs mark a missing one; dates may be any that stand far from all others."""


def placeholder_notes(encoder: TableEncoder, frame: pd.DataFrame) -> list[str]:
    """Point out numbers and dates that may stand for missing ones, such as -999 and 9999-12-31.

    Such a value stands in several rows, and further from all others than these lie from each other.

    Args:
        encoder: kinds of the columns.
        frame: rows to train on.
    """
    sample = frame.iloc[_spread(len(frame))]
    notes = []
    for column in encoder.columns[:_MOST_COLUMNS]:
        cells = sample[column.name]
        if isinstance(column, NumberColumn):
            values = numbers(column.name, cells, column.style)
        elif isinstance(column, DateColumn):
            stamps = dates(column.name, cells, column.form)
            values = np.where(stamps.isna(), np.nan, stamps.astype("int64") / 1e6)
        else:
            continue
        at = _far_and_repeated(values)
        if at is None or (column.kind == "number" and not _is_placeholder(values[at])):
            continue
        share = float((values == values[at]).mean())
        value = f"{values[at]:g}" if column.kind == "number" else str(cells.iloc[at]).strip()
        notes.append(
            f"column {column.name!r} has {value} in {share:.0%} of the rows, far from all others: leave these cells "
            f"empty if it stands for a missing {column.kind}"
        )
    return notes


def _far_and_repeated(values: NDArray[np.float64]) -> int | None:
    """Return the row of a repeated value that is further from all others than these are from each other."""
    different = np.unique(values[~np.isnan(values)])
    if len(different) < 4:
        return None
    low, high = different[1] - different[0], different[-1] - different[-2]
    end = different[0] if low > high else different[-1]
    rows = np.flatnonzero(values == end)
    is_far = max(low, high) > np.ptp(different) - max(low, high)
    return int(rows[0]) if is_far and len(rows) > 1 else None


def _is_placeholder(value: float) -> bool:
    return value == round(value) and _PLACEHOLDER.fullmatch(str(int(value))) is not None


def order_notes(rising: Mapping[str, str]) -> list[str]:
    """Say that test rows are drawn at random from rows with an order.

    Args:
        rising: as `rising_columns` found them.
    """
    notes = []
    dates = [name for name, kind in rising.items() if kind == "date"]
    if dates:
        are = "are dates" if len(dates) > 1 else "is a date"
        notes.append(
            f"column{'s' * (len(dates) > 1)} {listed(dates)} {are}, and test rows are drawn at random from all: "
            f"--time {dates[0]!r} holds out the latest"
        )
    notes += [
        f"column {name!r} rises evenly with the rows, of which test rows are drawn at random: leave it out if it only "
        f"counts them (--column {name}=dropped), or hold out the latest (--time {name!r})"
        for name, kind in rising.items()
        if kind == "number"
    ]
    return notes


def duplicate_note(train: pd.DataFrame, test: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """Say how many rows stand more than once, and what share of the test rows among those to train on.

    Args:
        train: rows to train on.
        test: rows to test on.
        columns: that are compared, the target among them.

    Returns:
        One sentence, or none.
    """
    shared = [name for name in columns if name in test.columns]
    both = pd.concat([train[shared], test[shared]])
    # Only columns of mixed cells need be texts, and a table may have thousands of others.
    mixed = {
        name: "str" for name, kind in both.dtypes.items() if pd.api.types.is_object_dtype(kind)
    }
    codes = pd.util.hash_pandas_object(both.astype(mixed), index=False).to_numpy()
    twice = int(pd.Series(codes).duplicated(keep=False).sum())
    if not twice:
        return []
    share = float(np.isin(codes[len(train) :], codes[: len(train)]).mean())
    also = f"{share:.0%} of the test rows also stand among the training rows"
    if not share:
        also = "none of them on both sides of the test"
    return [f"{twice:,} of {len(both):,} rows stand more than once; {also}"]


def deciding_columns(
    encoder: TableEncoder,
    parts: tuple[NDArray[Any], NDArray[Any]],
    targets: tuple[NDArray[Any], NDArray[Any]],
    but: Collection[str] = (),
) -> list[str]:
    """Find columns that decide the target alone, as a copy of it does.

    Args:
        encoder: the encoding.
        parts: (rows, features) encoded rows to train on and to test on.
        targets: their encoded targets.
        but: columns that aren't tried.

    Returns:
        Names of the columns; none if there is a single one.
    """
    used = [column for column in encoder.columns if column.features()]
    if len(used) < 2 or len(targets[0]) + len(targets[1]) < FEWEST:
        return []
    picks = [_spread(len(y)) for y in targets]
    x = [part[rows] for part, rows in zip(parts, picks, strict=True)]
    y = [part[rows] for part, rows in zip(targets, picks, strict=True)]
    found, at = [], 0
    for column in used[:_MOST_COLUMNS]:
        own = np.arange(at, at := at + len(column.features()))
        if column.name in but:
            continue
        if isinstance(column, NumberColumn):
            # Bins say nothing that the number doesn't, and a tree would cut at their edges.
            own = own[[0, -1] if column.indicator else [0]]
        if encoder.target.task == "classification":
            decides = _decides_class(x[0][:, own], y[0], x[1][:, own], y[1])
        else:
            values = np.concatenate([part[:, own[0]] for part in x])
            is_number = column.kind == "number"
            decides = is_number and _decides_number(values, np.concatenate(y)[:, 0])
        if decides:
            found.append(column.name)
    return found


def _spread(rows: int) -> NDArray[Any]:
    return np.unique(np.linspace(0, rows - 1, min(rows, _MOST_ROWS)).round().astype(np.intp))


def _decides_class(
    x: NDArray[Any], y: NDArray[Any], x_test: NDArray[Any], y_test: NDArray[Any]
) -> bool:
    from sklearn.tree import DecisionTreeClassifier

    present = np.unique(y)
    most = max(2, 2 * len(present))
    # Few leaves: with many, a column that differs in each row would learn the training rows by heart.
    tree = DecisionTreeClassifier(max_leaf_nodes=most, random_state=0).fit(x, y)
    for inputs, truth in ((x, y), (x_test, y_test)):
        guess = np.bincount(truth).max() / len(truth)
        if 1 - tree.score(inputs, truth) > _SHARE_OF_ERRORS * (1 - guess):
            return False
    return len(present) > 1


def _decides_number(x: NDArray[Any], y: NDArray[Any]) -> bool:
    from scipy.stats import rankdata

    values = x.astype(np.float64)
    if values.std() == 0 or y.std() == 0:
        return False
    plain = abs(np.corrcoef(values, y)[0, 1])
    ranked = abs(np.corrcoef(rankdata(values), rankdata(y))[0, 1])
    return bool(plain >= _CORRELATION or ranked >= _RANK_CORRELATION)


def target_notes(target: Target, *, is_inferred: bool) -> list[str]:
    """Point out classes that may be meant otherwise: numbers with an order, spellings of one word.

    Args:
        target: the column to predict.
        is_inferred: True if the task wasn't given.
    """
    labels, notes = target.labels, []
    numbers = [one for one in labels if isinstance(one, int | float) and not isinstance(one, bool)]
    if is_inferred and len(numbers) == len(labels) > 2:
        notes.append(
            f"target {target.name!r} holds whole numbers from {min(numbers):g} to {max(numbers):g}, taken as "
            f"{len(labels)} classes without an order; if they count or rate something: --task regression"
        )
    return [*notes, *alike_classes(labels)]


def alike_classes(labels: Sequence[Any]) -> list[str]:
    """Name classes that may be one class in several spellings, in a sentence for each of them."""
    notes = []
    alike: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        # NFKC, since an accent may be written apart from its letter
        plain = unicodedata.normalize("NFKC", str(label)).casefold()
        alike[re.sub(r"[\W_]+", " ", plain).strip() or str(label)].append(str(label))
    for spellings in alike.values():
        if len(spellings) > 1:
            notes.append(
                f"classes {listed(spellings)} differ only in capitals, blanks or marks, and count as "
                f"{len(spellings)} classes"
            )
    return notes


def tail_note(target: Target, cells: pd.Series[Any]) -> list[str]:
    """Point out numbers to predict that are taken for mistakes, or of which a few decide the error that is minimized.

    Args:
        target: the column to predict.
        cells: its training cells.
    """
    if target.task == "classification":
        return []
    values = numbers(target.name, cells, target.style)
    if target.low is not None and target.high is not None:
        wild = values[(values < target.low) | (values > target.high)]
        if len(wild):
            count = f"{len(wild):,} number{'s' * (len(wild) > 1)}"
            return [
                f"target {target.name!r} has {count} far outside all others, such as {wild[0]:g}: training takes what "
                f"is below {target.low:g} or above {target.high:g} for that"
            ]
    if is_heavy_tailed(values):
        return [
            f"target {target.name!r} is heavy-tailed: its inverse hyperbolic sine is learned, so that the largest "
            "numbers don't decide all, and scores before the end of training are of that"
        ]
    distance = np.abs(values - np.median(values))
    count_far = int((distance > _FAR * NumberScale.fit(values).scale).sum())
    if not count_far:
        return []
    return [
        f"target {target.name!r} has {count_far:,} number{'s' * (count_far > 1)} further than {_FAR} usual deviations "
        f"from its median, such as {values[distance.argmax()]:g}, which decide the error that is minimized: are they "
        "right?"
    ]
