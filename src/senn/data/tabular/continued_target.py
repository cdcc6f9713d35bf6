"""Target of a run that goes on with other rows: its classes keep their numbers, and new ones come after them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from senn.data.tabular.cells import numbers, shown, text
from senn.data.tabular.target import Label, Target, class_label
from senn.errors import SennError


def continued(target: Target, cells: pd.Series[Any]) -> Target:
    """Extend a target by what other rows hold.

    Args:
        target: of the run.
        cells: its column in the new rows, none of them missing.

    Returns:
        The target, with new classes in sorted order after its own, or with bounds that hold the new numbers too.

    Raises:
        SennError: a number can't be read, or a class is of another kind than those that there are.

    >>> one = Target.fit("kind", pd.Series(["cat", "dog", "cat", "dog"]))
    >>> continued(one, pd.Series(["emu", "dog", "ant"])).labels
    ('cat', 'dog', 'ant', 'emu')
    """
    if target.task == "regression":
        values = numbers(target.name, cells, target.style)
        if target.low is None or target.high is None:  # of version 0.1, which has no bounds
            return target
        low, high = float(values.min()), float(values.max())
        return replace(target, low=min(low, target.low), high=max(high, target.high))
    known = {text(label) for label in target.labels}
    are_texts = isinstance(target.labels[0], str)
    new: dict[str, Label] = {}
    for row, cell in cells.items():
        label = class_label(cell)
        if text(label) in known or text(label) in new:
            continue
        if isinstance(label, str) and str(label).capitalize() in known:
            continue  # TRUE for True
        if are_texts:
            label = text(label)  # a file of numbers alone, of classes that were texts
        elif isinstance(label, str):
            raise SennError(
                f"target {target.name!r}, row {row}: {shown(cell)} is a text, and the classes of the run that goes on "
                f"are numbers, such as {target.labels[0]!r}"
            )
        new[text(label)] = label
    return replace(target, labels=(*target.labels, *sorted(new.values())))
