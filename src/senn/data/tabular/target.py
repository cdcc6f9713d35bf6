"""Target column: classes with their own labels, or a number."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from senn._records import from_dict
from senn.data.tabular.cell_texts import MISSING_MARKS, NEVER_A_CLASS, finder
from senn.data.tabular.cells import Floats, FoundKind, is_missing, kind_of, numbers, shown, text
from senn.data.tabular.number_style import PLAIN, Mark, NumberStyle
from senn.data.tails import is_heavy_tailed
from senn.errors import SennError

Task = Literal["classification", "regression"]
Label = str | int | float | bool

FEW_VALUES = 20
"""A whole-numbered target of at most this many values, each in five rows on average, counts as classes."""


FEWEST_LABELS, SMALLEST_SHARE = 100, 0.1
"""With fewer labels, in a smaller share of the rows, a table is refused rather than cut down to the others."""

FENCE = 6.0
"""How many times as far from the median as the outer hundredth a number to predict may lie."""

ADDED_TO_TARGET = {"style": asdict(PLAIN), "note": "", "low": None, "high": None}
"""Fields that records of version 0.1 lack, as they were then."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Column to predict.

    Attributes:
        name: of the column.
        task: `classification` or `regression`.
        labels: the classes in sorted order, as str, int, float or bool like in the table; empty for regression.
        mean: of the training rows, for regression.
        scale: standard deviation of the training rows, for regression.
        style: how the training table writes the numbers, for regression.
        note: end of a sentence about the column; "" if there is nothing to say.
        low: smallest number of the training rows, for regression; None for classes, and in runs of version 0.1.
        high: largest number; predictions stay between the two, since beyond them a network knows nothing. Both are
            those of `fences` where wild numbers lie outside.
    """

    name: str
    task: Task
    labels: tuple[Label, ...] = ()
    mean: float = 0.0
    scale: float = 1.0
    style: NumberStyle = PLAIN
    note: str = ""
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.task == "classification" and len(self.labels) < 2:
            raise SennError(f"classes need two labels at least, and there are {len(self.labels)}")
        if len({text(label) for label in self.labels}) < len(self.labels):
            raise SennError("two classes have the same label")
        if not self.scale > 0:
            raise SennError(f"a scale must be positive, and {self.scale:g} isn't")

    @property
    def outputs(self) -> int:
        """Number of outputs that a network needs."""
        return len(self.labels) if self.task == "classification" else 1

    @property
    def standard_bounds(self) -> tuple[float, float] | None:
        """Least and largest standardized number that is predicted; None for no bounds."""
        if self.low is None or self.high is None:
            return None
        return (self.low - self.mean) / self.scale, (self.high - self.mean) / self.scale

    @classmethod
    def fit(
        cls,
        name: str,
        cells: pd.Series[Any],
        task: Task | None = None,
        decimal: Mark | None = None,
    ) -> Target:
        """Fit labels, or mean and scale, to training rows.

        Args:
            name: of the column.
            cells: its cells.
            task: None to infer it: classification for text, booleans or few whole numbers.
            decimal: decimal mark of the table's numbers, where that is known.

        Returns:
            The fitted target.

        Raises:
            SennError: a value is missing or infinite, there is a single class or value, or the task is impossible.

        >>> target = Target.fit("kind", pd.Series(["cat", "dog", "cat", "dog"]))
        >>> target.task, target.labels
        ('classification', ('cat', 'dog'))
        >>> target.encode(pd.Series(["dog", "cat"]))
        array([1, 0])
        """
        found = kind_of(name, cells, decimal)
        missing = _unlabeled(cells, found)
        if missing.any():
            row = cells.index[int(np.flatnonzero(missing)[0])]
            count = int(missing.sum())
            where = (
                f"in row {row}" if count == 1 else f"in {count:,} rows, the first being row {row}"
            )
            raise SennError(f"target {name!r} is missing {where}; remove rows that lack it")
        # days of eight digits are numbers to predict unless somebody says otherwise
        is_number = found.kind in ("number", "boolean") or found.form == "%Y%m%d"
        if found.kind == "date" and not is_number:
            raise SennError(f"target {name!r} is a date; only classes and numbers can be predicted")
        values = _values(name, cells, found) if is_number else None
        if (task or _infer(found.kind, values)) == "classification":
            return cls._classes(name, cells)
        if values is None:
            raise SennError(
                f"target {name!r} holds text (row {cells.index[0]}: {cells.iloc[0]!r}), not numbers"
            )
        note = found.note if found.style != PLAIN or "read" in found.note else ""
        return replace(cls._number(name, values), style=found.style, note=note)

    @classmethod
    def _classes(cls, name: str, cells: pd.Series[Any]) -> Target:
        found: set[Label] = {class_label(cell) for cell in cells}
        # texts and numbers can't be sorted together
        if len({isinstance(label, str) for label in found}) > 1:
            found = {text(label) for label in found}
        if len(found) == 1:
            raise SennError(
                f"target {name!r} holds a single class ({found.pop()!r}); at least two are needed"
            )
        # most classes would have a single row
        if len(found) > len(cells) / 2:
            raise SennError(
                f"target {name!r} has {len(found):,} classes in {len(cells):,} rows; is it an identifier?"
            )
        # Sorted, so that the numbers of the classes don't depend on the order of the rows.
        like_nothing = [
            label for label in found if isinstance(label, str) and label.lower() in MISSING_MARKS
        ]
        return cls(
            name=name,
            task="classification",
            labels=tuple(sorted(found)),
            note=_of_words(sorted(like_nothing)),
        )

    @classmethod
    def _number(cls, name: str, values: Floats) -> Target:
        low, high = fences(values)
        mean, scale = cls._moments(name, np.clip(values, low, high))
        return cls(name=name, task="regression", mean=mean, scale=scale, low=low, high=high)

    @staticmethod
    def _moments(name: str, values: Floats) -> tuple[float, float]:
        """Compute mean and standard deviation."""
        # scaled by the largest value, so that squares near the end of the float range don't overflow
        largest = float(np.abs(values).max()) or 1.0
        mean, scale = (
            float((values / largest).mean()) * largest,
            float((values / largest).std()) * largest,
        )
        if values.min() == values.max() or not scale:
            raise SennError(f"target {name!r} is always {values[0]:g}; there is nothing to predict")
        return mean, scale

    def original(self, cells: pd.Series[Any]) -> Target:
        """Return the target as version 0.1 fitted it, by the mean and deviation of all cells, the training rows'."""
        if self.task == "classification":
            return self
        mean, scale = self._moments(self.name, numbers(self.name, cells, self.style))
        return replace(self, mean=mean, scale=scale, low=None, high=None)

    def scaled_to(self, cells: pd.Series[Any]) -> Target:
        """Return the target with the scale and bounds of these cells, the training rows'; classes stay as they are.

        Raises:
            SennError: the cells all hold one number.
        """
        if self.task == "classification":
            return self
        own = self._number(self.name, numbers(self.name, cells, self.style))
        return replace(self, mean=own.mean, scale=own.scale, low=own.low, high=own.high)

    def encode(self, cells: pd.Series[Any]) -> NDArray[Any]:
        """Encode cells for a loss: class numbers (n,) int64, or standardized numbers (n, 1) float32.

        Raises:
            SennError: a class wasn't there at fit, or a cell isn't a number.
        """
        if self.task == "regression":
            values = numbers(self.name, cells, self.style)
            return ((values - self.mean) / self.scale).astype(np.float32)[:, None]
        # by text, so that 1, 1.0 and "1" are one class in any file
        find = finder(text(label) for label in self.labels)
        codes = np.empty(len(cells), dtype=np.int64)
        for at, cell in enumerate(cells):
            code = find(text(class_label(cell)))
            if code is None and _is_truth(cell):
                # an encoder of version 0.1 has True where the file says TRUE
                code = find(str(cell).strip().capitalize())
            if code is None:
                raise SennError(
                    f"target {self.name!r}, row {cells.index[at]}: class {shown(cell)} is unknown"
                )
            codes[at] = code
        return codes

    def decode(self, outputs: NDArray[Any]) -> list[Label]:
        """Decode a network's outputs (n, `outputs`): the most probable label, or the number in its own unit."""
        if self.task == "regression":
            # In float64: the target's own unit may lie beyond the range of float32.
            values = outputs[:, 0].astype(np.float64) * self.scale + self.mean
            if self.low is not None and self.high is not None:
                values = np.clip(values, self.low, self.high)
            return [float(value) for value in values]
        return [self.labels[int(at)] for at in outputs.argmax(axis=1)]

    def training_part(self, encoded: NDArray[Any]) -> NDArray[Any]:
        """Return encoded targets as training takes them: wild numbers count as the bounds of what is predicted.

        Args:
            encoded: of `encode`.
        """
        bounds = self.standard_bounds
        return encoded if bounds is None else np.clip(encoded, *bounds).astype(encoded.dtype)

    def to_dict(self) -> dict[str, Any]:
        """Convert the target to a JSON record."""
        return {
            "name": self.name,
            "task": self.task,
            "labels": list(self.labels),
            "mean": self.mean,
            "scale": self.scale,
            "style": asdict(self.style),
            "note": self.note,
            "low": self.low,
            "high": self.high,
        }

    @classmethod
    def from_dict(cls, record: Any) -> Target:
        """Restore a target from a record of `to_dict`.

        Raises:
            SennError: the record is damaged.
        """
        what = "the stored description of the target"
        values = {**ADDED_TO_TARGET, **record} if isinstance(record, dict) else record
        return from_dict(cls, values, what, complete=True)


def fences(values: Floats) -> tuple[float, float]:
    """Find between which numbers targets are taken as they are; what lies outside is taken for a mistake.

    The outer hundredths are looked at apart, since a few wild numbers can't move them: a number counts as wild if it is
    `FENCE` times as far from the median. Of normal numbers none is (14 standard deviations), nor of log-normal ones of
    unit deviation; of numbers most of which are one, and of heavy-tailed ones, none is either: far ones belong to them.

    Args:
        values: (n,) numbers, at least one.

    Returns:
        The smallest and the largest number that isn't wild.

    >>> fences(np.array([*range(1000), 5e9]))
    (0.0, 999.0)
    """
    least, most = float(values.min()), float(values.max())
    if is_heavy_tailed(values):
        return least, most
    low, middle, high = (float(one) for one in np.quantile(values / 2, [0.01, 0.5, 0.99]))
    with np.errstate(over="ignore"):  # what overflows is beyond all numbers
        below = 2 * (middle - FENCE * (middle - low)) if low < middle else least
        above = 2 * (middle + FENCE * (high - middle)) if middle < high else most
    believed = values[(values >= below) & (values <= above)]
    least, most = float(believed.min()), float(believed.max())
    return least, most


def labeled(
    frame: pd.DataFrame, name: str, decimal: Mark | None = None
) -> tuple[pd.DataFrame, list[str]]:
    """Leave out the rows of a table that have no target.

    Args:
        frame: the table.
        name: of the target's column.
        decimal: decimal mark of the table's numbers, where that is known.

    Returns:
        The other rows, and a sentence with the number of those left out, if there are any.

    Raises:
        SennError: hardly any row has a target, or the cells are of a kind that isn't understood.
    """
    for row, cell in frame[name].items():
        if isinstance(cell, dict | list):
            raise SennError(f"target {name!r}, row {row}: a {type(cell).__name__} isn't understood")
    missing = _unlabeled(frame[name], kind_of(name, frame[name], decimal))
    count, rows = int(missing.sum()), len(frame)
    if not count:
        return frame, []
    # a finished half is a training set; a few labels in a large table are a wrong column
    if rows - count < FEWEST_LABELS and (rows - count) < SMALLEST_SHARE * rows:
        first = frame.index[int(np.flatnonzero(missing)[0])]
        raise SennError(
            f"target {name!r} is missing in {count:,} of {rows:,} rows, the first being row {first}; "
            "too few have one to learn from"
        )
    kept = frame[~missing]
    if pd.api.types.is_float_dtype(kept[name].dtype) and (kept[name] % 1 == 0).all():
        # pandas makes fractions of whole numbers where one of them is missing
        kept = kept.assign(**{name: kept[name].astype("int64")})
    are = "is" if count == 1 else "are"
    return kept, [f"{count:,} of {rows:,} rows without a {name!r} {are} left out"]


def _unlabeled(cells: pd.Series[Any], found: FoundKind) -> NDArray[np.bool_]:
    # "-" or "none" may well be the name of a class, but not a number.
    if found.kind in ("number", "boolean", "date"):
        return is_missing(cells)
    nothing = [isinstance(cell, str) and cell.strip().lower() in NEVER_A_CLASS for cell in cells]
    missing: NDArray[np.bool_] = cells.isna().to_numpy(dtype=bool)
    unlabeled: NDArray[np.bool_] = missing | np.asarray(nothing, dtype=bool)
    return unlabeled


def _values(name: str, cells: pd.Series[Any], found: FoundKind) -> Floats:
    if found.kind == "boolean" and not pd.api.types.is_bool_dtype(cells.dtype):
        return np.asarray([float(str(cell).strip().lower() == "true") for cell in cells])
    return numbers(name, cells, found.style)


def _of_words(labels: list[str]) -> str:
    """Say that words which often mean a missing cell are classes."""
    if not labels:
        return ""
    quoted = " and ".join(map(repr, labels[:3]))
    kinds = "classes" if len(labels) > 1 else "a class"
    return f"takes {quoted} for {kinds}; leave a cell empty where the class is unknown"


def _is_truth(cell: Any) -> bool:
    return isinstance(cell, str) and cell.strip().lower() in ("true", "false")


def class_label(cell: Any) -> Label:
    """Convert a cell of a class to the plain Python value that it holds.

    Raises:
        SennError: it holds something else than a text, a number or a truth value.
    """
    value = cell.item() if isinstance(cell, np.generic) else cell
    if not isinstance(value, str | int | float):
        raise SennError(
            f"class {value!r} is a {type(value).__name__}; classes are texts, numbers or booleans"
        )
    # blanks around a word make no other class
    return value.strip() if isinstance(value, str) else value


def _infer(kind: str, values: Floats | None) -> Task:
    if kind == "boolean" or values is None:
        return "classification"
    distinct = len(np.unique(values))
    whole = bool((values == np.round(values)).all())
    # two whole values are classes however few the rows: yes and no as 1 and 0
    few = distinct == 2 or (distinct <= FEW_VALUES and distinct * 5 <= len(values))
    return "classification" if whole and few else "regression"
