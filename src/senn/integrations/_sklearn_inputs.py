"""What the scikit-learn estimators are given: arrays of numbers, or tables with columns of any kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from senn._extras import importing
from senn.data.tabular.feature_columns import check_any_feature, fit_columns, has_columns
from senn.data.tabular.table_columns import Column, Dropped, NumberColumn
from senn.data.tabular.table_encoder import check_names
from senn.data.tabular.table_notes import index_columns
from senn.data.tabular.useful_bins import with_useful_bins
from senn.errors import SennError, warn
from senn.training import Task

with importing("senn.integrations.sklearn", "sklearn"):
    from sklearn.utils import check_consistent_length
    from sklearn.utils.validation import _check_y, validate_data

Array = np.ndarray[Any, Any]


def as_table(X: Any) -> pd.DataFrame | None:
    """Convert what has columns of any kind to a data frame: pandas, polars, and arrays that hold text.

    Args:
        X: (rows, columns) of anything.

    Returns:
        The table, with its own names or `x0`, `x1`, ...; None for numbers in an array.
    """
    if isinstance(X, pd.DataFrame):
        return X.set_axis([str(name) for name in X.columns], axis=1)
    if hasattr(X, "get_column") and hasattr(X, "columns"):
        # polars: by columns, which needs no pyarrow
        return pd.DataFrame({str(name): X.get_column(name).to_numpy() for name in X.columns})
    if isinstance(X, list | tuple) or (isinstance(X, np.ndarray) and X.dtype.kind in "OUS"):
        cells = np.asarray(X, dtype=object)
        if cells.ndim == 2 and any(isinstance(cell, str) for cell in cells.flat):
            return pd.DataFrame(cells, columns=column_names(cells.shape[1])).infer_objects()
    return None


def column_names(columns: int) -> list[str]:
    """Name the columns of an array.

    Args:
        columns: how many there are.

    >>> column_names(3)
    ['x0', 'x1', 'x2']
    """
    return [f"x{number}" for number in range(columns)]


def checked_table(estimator: Any, X: Any, *, reset: bool) -> tuple[pd.DataFrame, bool]:
    """Check inputs as scikit-learn does, and give them as a table.

    Args:
        estimator: takes `n_features_in_` and `feature_names_in_` if it is to be `reset`, else has them compared.
        X: (rows, columns) inputs.
        reset: True at a first fit.

    Returns:
        The table, and whether it was one before.

    Raises:
        ValueError: not that many columns, not these names, or a number is infinite.
    """
    table = as_table(X)
    if table is None:
        X = validate_data(
            estimator, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=reset
        )
        table, is_table = pd.DataFrame(X, columns=column_names(X.shape[1])), False
    else:
        validate_data(estimator, X, skip_check_array=True, reset=reset)
        check_names(table)
        is_table = True
    if not reset and hasattr(estimator, "columns_"):
        # An array may stand for the table that the estimator was fitted to, and the other way round.
        table = table.set_axis([column.name for column in estimator.columns_], axis=1)
    return table, is_table


def checked_targets(estimator: Any, table: pd.DataFrame, y: Any, **checks: Any) -> Array:
    """Check targets as scikit-learn does.

    Args:
        estimator: to be named in errors.
        table: the inputs, of which there are as many rows.
        y: (rows,) or (rows, targets).
        checks: what is asked of numbers.

    Raises:
        ValueError: there are none, or they aren't targets.
    """
    if y is None:
        name = type(estimator).__name__
        raise SennError(f"{name} requires y to be passed, but the target y is None")
    checked: Array = _check_y(y, estimator=estimator, **checks)
    check_consistent_length(table, checked)
    return checked


def fitted_columns(
    table: pd.DataFrame,
    *,
    is_table: bool,
    task: Task,
    categorical: Any,
    weight: Array | None,
    max_inputs: int | None,
    encode_target: Callable[[Array], Array] | None = None,
) -> tuple[Column, ...]:
    """Fit the encoding of the inputs to training rows.

    Args:
        table: the rows.
        is_table: False for what was an array of numbers, whose columns are numbers unless they are `categorical`.
        task: what is to be predicted.
        categorical: names, numbers or a mask of the columns that hold categories; None for none by name.
        weight: (rows,) positive; None for equal weights.
        max_inputs: most inputs that numbers and their bins make, as of `most_bins`.
        encode_target: as of `with_useful_bins`; None if the targets aren't known yet.

    Raises:
        SennError: a column isn't understood, or none tells rows apart.
    """
    kinds = dict.fromkeys(_categorical_names(categorical, list(table.columns)), "category")
    if not is_table:
        kinds = {name: kinds.get(name, "number") for name in table.columns}
    columns = fit_columns(
        table,
        task=task,
        kinds=kinds,
        left_out=index_columns(table, kinds) if is_table else {},
        max_inputs=max_inputs,
        weight=weight,
    )
    if encode_target is not None:
        columns = with_useful_bins(
            columns, table, encode_target, task=task, max_inputs=max_inputs, weight=weight
        )
    if is_table:
        check_any_feature(columns, "the target")
        for column in columns:
            if isinstance(column, Dropped):
                warn(f"column {column.name!r} {column.note}, so it isn't used")
    elif not any(column.features() for column in columns):
        # Arrays of constants are fitted as well, by the mean: a network needs one input at least.
        first = float(np.nan_to_num(table.to_numpy(dtype=np.float64)[0, 0]))
        constant = NumberColumn(name=columns[0].name, median=first, scale=1.0, indicator=False)
        columns = (constant, *columns[1:])
    return columns


def _categorical_names(chosen: Any, names: Sequence[str]) -> list[str]:
    """Return the names of the columns that are chosen by name, by number or by a mask."""
    if chosen is None:
        return []
    if isinstance(chosen, str) or not np.iterable(chosen):
        raise SennError(
            f"categorical_features must be names, numbers or a mask of columns, not {chosen!r}"
        )
    several = [one.item() if isinstance(one, np.generic) else one for one in chosen]
    if several and all(isinstance(one, bool) for one in several):
        if len(several) != len(names):
            raise SennError(
                f"categorical_features has {len(several)} truth values for {len(names)} columns"
            )
        return [name for name, is_chosen in zip(names, several, strict=True) if is_chosen]
    found = []
    for one in several:
        if isinstance(one, int) and not isinstance(one, bool):
            if not -len(names) <= one < len(names):
                raise SennError(f"categorical_features names column {one} of {len(names)}")
            one = names[one]
        if one not in names:
            raise SennError(
                f"categorical_features names {one!r}, and {has_columns(str(one), names)}"
            )
        found.append(one)
    return found
