"""Target column: classes with their own labels, or a number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from senn._records import from_dict
from senn.data.tabular.cells import Floats, is_missing, kind_of, numbers, text
from senn.errors import SennError

Task = Literal["classification", "regression"]
Label = str | int | float | bool

FEW_VALUES = 20
"""A whole-numbered target of at most this many values, each in five rows on average, counts as classes."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Column to predict.

    Attributes:
        name: of the column.
        task: `classification` or `regression`.
        labels: the classes in sorted order, as str, int, float or bool like in the table; empty for regression.
        mean: of the training rows, for regression.
        scale: standard deviation of the training rows, for regression.
    """

    name: str
    task: Task
    labels: tuple[Label, ...] = ()
    mean: float = 0.0
    scale: float = 1.0

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

    @classmethod
    def fit(cls, name: str, cells: pd.Series[Any], task: Task | None = None) -> Target:
        """Fit labels, or mean and scale, to training rows.

        Args:
            name: of the column.
            cells: its cells.
            task: None to infer it: classification for text, booleans or few whole numbers.

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
        kind = kind_of(name, cells)
        # "-" or "none" may well be the name of a class, but not a number.
        missing = is_missing(cells) if kind == "number" else cells.isna().to_numpy(dtype=bool)
        if missing.any():
            row = cells.index[int(np.flatnonzero(missing)[0])]
            count = int(missing.sum())
            where = (
                f"in row {row}" if count == 1 else f"in {count:,} rows, the first being row {row}"
            )
            raise SennError(f"target {name!r} is missing {where}; remove rows that lack it")
        if kind == "date":
            raise SennError(f"target {name!r} is a date; only classes and numbers can be predicted")
        values = numbers(name, cells) if kind in ("number", "boolean") else None
        if (task or _infer(kind, values)) == "classification":
            return cls._classes(name, cells)
        if values is None:
            raise SennError(
                f"target {name!r} holds text (row {cells.index[0]}: {cells.iloc[0]!r}), not numbers"
            )
        return cls._number(name, values)

    @classmethod
    def _classes(cls, name: str, cells: pd.Series[Any]) -> Target:
        found: set[Label] = {_label(cell) for cell in cells}
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
        return cls(name=name, task="classification", labels=tuple(sorted(found)))

    @classmethod
    def _number(cls, name: str, values: Floats) -> Target:
        # scaled by the largest value, so that squares near the end of the float range don't overflow
        largest = float(np.abs(values).max()) or 1.0
        mean, scale = (
            float((values / largest).mean()) * largest,
            float((values / largest).std()) * largest,
        )
        if values.min() == values.max() or not scale:
            raise SennError(f"target {name!r} is always {values[0]:g}; there is nothing to predict")
        return cls(name=name, task="regression", mean=mean, scale=scale)

    def scaled_to(self, cells: pd.Series[Any]) -> Target:
        """Return the target with mean and scale of these cells, those of the training rows; classes stay as they are.

        Raises:
            SennError: the cells all hold one number.
        """
        if self.task == "classification":
            return self
        return self._number(self.name, numbers(self.name, cells))

    def encode(self, cells: pd.Series[Any]) -> NDArray[Any]:
        """Encode cells for a loss: class numbers (n,) int64, or standardized numbers (n, 1) float32.

        Raises:
            SennError: a class wasn't there at fit, or a cell isn't a number.
        """
        if self.task == "regression":
            values = numbers(self.name, cells)
            return ((values - self.mean) / self.scale).astype(np.float32)[:, None]
        # by text, so that 1, 1.0 and "1" are one class in any file
        place = {text(label): at for at, label in enumerate(self.labels)}
        codes = np.empty(len(cells), dtype=np.int64)
        for at, cell in enumerate(cells):
            code = place.get(text(_label(cell)))
            if code is None:
                raise SennError(
                    f"target {self.name!r}, row {cells.index[at]}: class {cell!r} is unknown"
                )
            codes[at] = code
        return codes

    def decode(self, outputs: NDArray[Any]) -> list[Label]:
        """Decode a network's outputs (n, `outputs`): the most probable label, or the number in its own unit."""
        if self.task == "regression":
            # In float64: the target's own unit may lie beyond the range of float32.
            return [
                float(value) for value in outputs[:, 0].astype(np.float64) * self.scale + self.mean
            ]
        return [self.labels[int(at)] for at in outputs.argmax(axis=1)]

    def to_dict(self) -> dict[str, Any]:
        """Convert the target to a JSON record."""
        return {
            "name": self.name,
            "task": self.task,
            "labels": list(self.labels),
            "mean": self.mean,
            "scale": self.scale,
        }

    @classmethod
    def from_dict(cls, record: Any) -> Target:
        """Restore a target from a record of `to_dict`.

        Raises:
            SennError: the record is damaged.
        """
        return from_dict(cls, record, "the stored description of the target", complete=True)


def _label(cell: Any) -> Label:
    """Convert a cell to the plain Python value that it holds."""
    value = cell.item() if isinstance(cell, np.generic) else cell
    if not isinstance(value, str | int | float):
        raise SennError(
            f"class {value!r} is a {type(value).__name__}; classes are texts, numbers or booleans"
        )
    return value


def _infer(kind: str, values: Floats | None) -> Task:
    if kind != "number" or values is None:
        return "classification"
    distinct = len(np.unique(values))
    whole = bool((values == np.round(values)).all())
    # two whole values are classes however few the rows: yes and no as 1 and 0
    few = distinct == 2 or (distinct <= FEW_VALUES and distinct * 5 <= len(values))
    return "classification" if whole and few else "regression"
