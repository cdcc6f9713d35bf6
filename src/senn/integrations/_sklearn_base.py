"""Encoding, training and resumption of the scikit-learn estimators."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Integral
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
import torch

from senn import html
from senn._extras import importing
from senn._validate import check, instance_of, one_of
from senn.data import split_groups
from senn.data.tabular.feature_columns import column_surprises, encode_columns
from senn.errors import SennError, warn
from senn.integrations._sklearn_inputs import checked_table, fitted_columns
from senn.training import Metric, Task, TrainConfig, train
from senn.training.batches import validation_rows
from senn.training.builders import build_model, most_inputs
from senn.training.incremental import IncrementalTrainer
from senn.training.progress import progress
from senn.training.threads import RunThreads
from senn.training.train_config import RANGES

with importing("senn.integrations.sklearn", "sklearn"):
    from sklearn.base import BaseEstimator
    from sklearn.inspection import permutation_importance
    from sklearn.utils import check_consistent_length, check_random_state, column_or_1d
    from sklearn.utils.validation import check_is_fitted

Array = np.ndarray[Any, Any]

Watched = Literal["loss", "score"]

# Parameters of the estimators, and the fields of a `TrainConfig` that they set.
_SETTINGS = {
    "hidden": "hidden",
    "activation": "activation",
    "optimizer": "optimizer",
    "learning_rate": "lr",
    "batch_size": "batch_size",
    "max_epochs": "epochs",
    "grow": "grow",
    "policy": "policy",
    "max_params": "max_params",
    "max_flops": "max_flops",
    "max_seconds": "max_seconds",
    "time_limit": "max_seconds",
    "validation_fraction": "validation_fraction",
    "members": "members",
}

_MOST_KEPT = 1000
"""Validation rows that a fitted estimator keeps, for the importance of its inputs."""

_ROWS_AT_ONCE = 100_000
"""Rows that are predicted at once: activations of a million would need gigabytes."""

_NO_ROWS: tuple[Any, Array] = ((), np.empty(0))
"""Kept rows and targets of an estimator that held none out."""


# scikit-learn reads an estimator's parameters off the signature of `__init__`. A dataclass generates that from its
# fields, those of its base included, so each parameter stands once. `hidden` may be given by position.
@dataclass(kw_only=True, eq=False, repr=False, match_args=False)
class SENNEstimator(BaseEstimator):  # type: ignore[misc]
    """Base of both estimators.

    Its fields are their common parameters, in the order of their constructors.
    """

    hidden: tuple[int, ...] | None = field(default=None, kw_only=False)
    activation: Any = None
    optimizer: str | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    max_epochs: int | None = None
    grow: bool | None = None
    policy: Any = None
    max_params: int | None = None
    max_flops: int | None = None
    max_seconds: float | None = None
    time_limit: float | None = None
    validation_fraction: float | None = None
    validation: str = "random"
    eval_metric: Any = None
    categorical_features: Any = None
    members: int | None = None
    recipe: TrainConfig | None = None
    random_state: Any = None
    verbose: int = 0

    _task: ClassVar[Task]

    # -- defined by each task

    def _learn_targets(self, y: Array, weight: Array) -> None:
        """Learn what `_encode` needs to know of the targets."""
        raise NotImplementedError

    def _encode(self, y: Array) -> torch.Tensor:
        """Encode targets for training: (rows,) long, or (rows, outputs) float32."""
        raise NotImplementedError

    def _outputs(self) -> int:
        """Return the number of outputs of the network."""
        raise NotImplementedError

    def _metric(self) -> Metric | Watched | None:
        """Return what the parameter `eval_metric` says, for targets as they have been learned."""
        raise NotImplementedError

    # -- fitting

    def _fit(
        self, X: pd.DataFrame, y: Array, weight: Array, groups: Any = None, *, is_table: bool
    ) -> Self:
        recipe = self._recipe()
        if groups is not None:
            groups = column_or_1d(groups)
            check_consistent_length(X, groups)
            groups = groups[weight > 0]
        X, y, weight = present_rows(X, y, weight)
        self._learn_targets(y, weight)
        # Bins are chosen by rows held out at random, which misleads where rows hang together.
        is_random = groups is None and self.validation == "random"
        targets = (lambda rows: self._encode(y[rows]).numpy()) if is_random else None
        self._fit_columns(X, weight, recipe, is_table=is_table, targets=targets)
        recipe = replace(recipe, monitor=self._metric() or recipe.monitor)
        # With a single class there is nothing to tell apart.
        if self._task == "classification" and self._outputs() == 1:
            recipe = replace(recipe, grow=False, epochs=1)
        encoded, held_out = self._encode(y), self._held_out(y, groups, recipe)
        run = train(
            self._training_inputs(X),
            encoded,
            task=self._task,
            outputs=self._outputs(),
            recipe=recipe,
            callbacks=progress(self.verbose),
            sample_weight=torch.from_numpy(weight),
            validation=held_out,
        )
        self._keep_validation(X, y, validation_rows(encoded, recipe, held_out).numpy())
        self._unseen = run.unseen
        self._online: IncrementalTrainer | None = None
        self.model_ = run.model
        self.history_ = run.history
        self.architecture_ = run.architecture
        self.n_iter_ = run.history[-1]["epochs"]
        # After the attributes are set, so that an interrupted estimator in a notebook can be used.
        if run.interrupted:
            raise KeyboardInterrupt
        return self

    def _fit_columns(
        self,
        X: pd.DataFrame,
        weight: Array,
        recipe: TrainConfig,
        *,
        is_table: bool,
        targets: Callable[[Array], Array] | None = None,
    ) -> None:
        # Equal weights are none, so that numbers are read as the command reads them.
        is_uniform = bool((weight == weight[0]).all())
        self._is_table = is_table
        self.columns_ = fitted_columns(
            X,
            is_table=is_table,
            task=self._task,
            categorical=self.categorical_features,
            weight=None if is_uniform else weight,
            max_inputs=most_inputs(recipe),
            encode_target=targets,
        )

    def _partial_fit(self, X: pd.DataFrame, y: Array, weight: Array, *, is_table: bool) -> Self:
        X, y, weight = present_rows(X, y, weight)
        online: IncrementalTrainer | None = getattr(self, "_online", None)
        recipe = self._recipe() if online is None else online.recipe
        if not hasattr(self, "columns_"):
            self._fit_columns(X, weight, recipe, is_table=is_table)
        rows = self._training_inputs(X)
        if online is None:
            model = getattr(self, "model_", None) or build_model(
                rows.shape[1], self._outputs(), recipe
            )
            online = IncrementalTrainer(model, recipe, self._task)
            self._online = online
        with RunThreads(online.recipe.threads, rows.device) as threads:
            threads.choose(partial(online.step_flops, rows), online.model, online.step)
            records = online.partial_fit(rows, self._encode(y), torch.from_numpy(weight))
        self.model_ = online.model
        # Rows that `fit` held out may be among those of later passes, and errors on them are of a former network.
        self._unseen, self._validation_rows = None, _NO_ROWS
        self.history_ = [*getattr(self, "history_", []), *records]
        self.architecture_ = self.model_.hidden
        self.n_iter_ = getattr(self, "n_iter_", 0) + 1
        return self

    def _held_out(self, y: Array, groups: Array | None, recipe: TrainConfig) -> torch.Tensor | None:
        """Choose validation rows by group, or the last ones; None where training draws them."""
        check("validation", self.validation, one_of("random", "last"))
        if groups is None and self.validation == "random":
            return None
        if groups is not None and self.validation == "last":
            raise SennError("groups can't be combined with validation='last'")
        fraction, rows = recipe.validation_share(len(y)), np.empty(0, dtype=np.intp)
        if groups is None:
            rows = np.arange(len(y))[len(y) - round(fraction * len(y)) :]
        elif fraction and len(np.unique(groups)) > 1:
            classes = y if self._task == "classification" else None
            rows = split_groups(groups, fraction, recipe.seed, classes)[1]
        # As of rows that are drawn: so few tell nothing.
        return torch.from_numpy(rows if len(rows) >= recipe.min_validation else rows[:0])

    def _recipe(self) -> TrainConfig:
        """Merge the parameters, where they aren't None, into the recipe."""
        # Checked at `fit`, since scikit-learn sets parameters without calling the constructor.
        chosen: dict[str, Any] = {}
        for name, setting in _SETTINGS.items():
            value = getattr(self, name)
            check(name, value, RANGES[setting].or_none())
            if value is not None:
                chosen[setting] = value
        check(
            "recipe",
            self.recipe,
            instance_of(TrainConfig, called="a senn.training.TrainConfig").or_none(),
        )
        if self.max_seconds is not None and self.time_limit is not None:
            raise SennError("time_limit and max_seconds are one setting, so only one can be given")
        recipe = TrainConfig() if self.recipe is None else self.recipe
        generator = check_random_state(self.random_state)
        # A whole number is the seed itself, as of `senn fit --seed`.
        is_seed = isinstance(self.random_state, Integral)
        seed = self.random_state if is_seed else generator.randint(np.iinfo(np.int32).max)
        return replace(recipe, seed=int(seed), **chosen)

    # -- inputs

    def encode_inputs(self, X: Any) -> torch.Tensor:
        """Encode rows as `model_` takes them: numbers scaled and binned, categories and dates as numbers.

        Args:
            X: (rows, features), as for `predict`.

        Returns:
            (rows, inputs) float64.
        """
        check_is_fitted(self, "columns_")
        return self._encoded(checked_table(self, X, reset=False)[0])

    def _training_inputs(self, table: pd.DataFrame) -> torch.Tensor:
        return torch.from_numpy(encode_columns(self.columns_, table, np.float32))

    def _encoded(self, table: pd.DataFrame) -> torch.Tensor:
        return torch.from_numpy(encode_columns(self.columns_, table))

    @torch.no_grad()
    def _output(self, X: Any) -> torch.Tensor:
        """Compute the raw outputs of the network, (rows, outputs)."""
        check_is_fitted(self, "model_")
        table, is_table = checked_table(self, X, reset=False)
        if is_table:
            for sentence in column_surprises(self.columns_, table):
                warn(sentence)
        # In float64: float32 products depend, in the last digit, on how many rows are predicted together.
        model = copy.deepcopy(self.model_).double().eval()
        parts = (
            table.iloc[start : start + _ROWS_AT_ONCE]
            for start in range(0, len(table), _ROWS_AT_ONCE)
        )
        return torch.cat([model(self._encoded(part)) for part in parts])

    # -- validation rows

    def _keep_validation(self, X: pd.DataFrame, y: Array, rows: Array) -> None:
        """Keep at most so many validation rows, evenly spaced, as they were given."""
        if len(rows) > _MOST_KEPT:
            rows = rows[np.linspace(0, len(rows) - 1, _MOST_KEPT).round().astype(int)]
        kept = X.iloc[rows]
        self._validation_rows = (kept if self._is_table else kept.to_numpy(), y[rows])
        self._importances: Array | None = None

    @property
    def feature_importances_(self) -> Array:
        """How much the score falls on validation rows when a column is shuffled, (features,); the mean of five.

        Permutation importance (Breiman 2001, *Random forests*, section 10) by `sklearn.inspection`. Columns that say
        the same share their importance, or hide it from each other.

        Raises:
            AttributeError: the estimator isn't fitted, or fit held no rows out for validation.
        """
        X, y = getattr(self, "_validation_rows", _NO_ROWS)
        if not len(y):
            raise AttributeError(
                "the importance of features needs rows that training didn't see, and fit held none out for validation"
            )
        if self._importances is None:
            # Of an ensemble, the network that hasn't been trained on these rows.
            first = copy.copy(self)
            first.model_ = getattr(self.model_, "members", [self.model_])[0]
            found = permutation_importance(first, X, y, n_repeats=5, random_state=0)
            self._importances = found.importances_mean
        return self._importances

    def _html_repr(self) -> str:
        """Render scikit-learn's picture for notebooks, with layers and sizes over time once fitted."""
        shown: str = super()._html_repr()
        if hasattr(self, "history_"):
            shown += html.grown(self.history_, self.architecture_)
        return shown

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # text as well, in tables; an array of objects is still checked for things that are neither
        tags.input_tags.allow_nan = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        # Without the optimizer and the grower of `partial_fit`: a copy begins with fresh ones.
        return {**super().__getstate__(), "_online": None}


def present_rows(X: pd.DataFrame, y: Array, weight: Array) -> tuple[pd.DataFrame, Array, Array]:
    """Select the rows whose weight is not zero.

    Args:
        X: (rows, features).
        y: (rows, ...).
        weight: (rows,) non-negative.

    Raises:
        SennError: there are none.
    """
    rows = weight > 0
    if not rows.any():
        raise SennError("sample_weight is zero for every row, so nothing is left to learn from")
    if rows.all():
        return X, y, weight
    return X[rows], y[rows], weight[rows]


def mean_and_scale(table: Array, weight: Array) -> tuple[Array, Array]:
    """Compute the weighted mean and standard deviation of each column.

    Args:
        table: (rows, columns).
        weight: (rows,) positive.

    Returns:
        Means and standard deviations, (columns,); the latter 1 where a column does not vary.
    """
    mean = np.average(table, axis=0, weights=weight)
    variance = np.average((table - mean) ** 2, axis=0, weights=weight)
    scale = np.sqrt(variance)
    # Rounding leaves a constant column a spread of about eps times its size.
    scale[scale <= 10 * np.finfo(np.float64).eps * np.abs(mean)] = 1.0
    return mean, scale
