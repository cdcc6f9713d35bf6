"""scikit-learn estimators whose network finds its own size: `SENNClassifier` and `SENNRegressor`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch

from senn._extras import importing
from senn._validate import check, fraction
from senn.data.tabular.target import fences
from senn.errors import SennError, warn
from senn.integrations._sklearn_base import SENNEstimator, Watched, mean_and_scale, present_rows
from senn.integrations._sklearn_inputs import Array, checked_table, checked_targets
from senn.training import Metric, Task

with importing("senn.integrations.sklearn", "sklearn"):
    from sklearn.base import ClassifierMixin, RegressorMixin
    from sklearn.utils import compute_sample_weight
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted

__all__ = ["SENNClassifier", "SENNRegressor"]


@dataclass(kw_only=True, eq=False, repr=False, match_args=False)
class SENNClassifier(ClassifierMixin, SENNEstimator):  # type: ignore[misc]
    """Classifier whose network finds its own size while it is trained.

    Inputs are encoded inside, as `senn fit` encodes a table, so that wild numbers do no harm. They may be an array of
    numbers or a data frame (pandas, polars) with numbers, text, truth values and dates; cells may be missing. A
    parameter left at None takes the value of the recipe, whose defaults need no tuning.

    Args:
        hidden: widths of the hidden layers at the start, each at least 1; () for none.
        activation: name of the activation (`relu`, `tanh`, `rational`, ...) or a module class.
        optimizer: a `torch.optim` class by name (`adam`, `sgd`, ...) or `natural-gradient`.
        learning_rate: peak learning rate, above 0.
        batch_size: rows per optimizer step, at least 1.
        max_epochs: most passes over the data, at least 1.
        grow: False to keep the size of `hidden`.
        policy: what decides on growth: `price`, `paper` or a policy object.
        max_params: most parameters that growth may reach, at least 1.
        max_flops: most operations of a prediction, per row, that growth may reach, at least 1.
        max_seconds: most seconds that training may take, above 0: with fewer than its steps need it plans fewer steps.
        time_limit: the same as `max_seconds`, by the name that it has elsewhere; only one can be given.
        validation_fraction: share of the rows held out for early stopping, 0 to 0.9; 0 for none.
        validation: which rows are held out: `random`, or `last`, the last ones of `fit`, for rows in the order of time.
        eval_metric: what makes an epoch the best on the validation rows: `loss`, `score`, or a name of scikit-learn's
            scorers (`roc_auc`, `neg_mean_absolute_error`, ...); None for the recipe's choice.
        categorical_features: names, numbers or a mask of the columns that hold categories; None to let the cells tell.
        members: number of networks of the size that is found whose predictions are averaged; None for 8, or fewer with
            many rows or a limit, as of `TrainConfig`.
        recipe: a `senn.training.TrainConfig` with all other choices; None for the defaults.
        random_state: seed, `RandomState`, or None for a different result each time.
        verbose: 1 to show how training goes on, by lines, or in a notebook by a bar and the network; 0 for nothing.
        class_weight: `balanced`, a mapping of class to weight, or None for equal weights.

    Attributes:
        classes_: class labels, sorted.
        model_: the network, or the ensemble of them, a plain `torch.nn.Module` from what `encode_inputs` makes of
            inputs to logits.
        architecture_: widths of its hidden layers.
        history_: records of epochs and changes of size, JSON-able.
        n_iter_: epochs trained.
        columns_: how each column is read, as in the encoding of `senn fit`.
        feature_importances_: how much the score falls on validation rows when a column is shuffled, (features,).
        n_features_in_, feature_names_in_: as in scikit-learn.

    Note:
        A row of weight zero counts as absent. Otherwise a weight multiplies the loss of a row within a minibatch, which
        is not the same as repeating the row: repeated rows make more, and other, minibatches. So scikit-learn's check
        `check_sample_weight_equivalence_on_dense_data` does not hold, as for its own stochastic-gradient estimators.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from senn import SENNClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> classifier = SENNClassifier(random_state=0).fit(X, y)
        >>> classifier.score(X, y) > 0.9
        True
        >>> classifier.predict_proba(X[:2]).shape
        (2, 3)
    """

    class_weight: Any = None

    _task: ClassVar[Task] = "classification"

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> Self:
        """Train a fresh network on some rows.

        Args:
            X: (rows, features) numbers, or a table with columns of any kind.
            y: (rows,) labels.
            sample_weight: (rows,) non-negative; None for equal weights.
            groups: (rows,) values; rows of one value stay together when rows are held out. None for no groups.

        Returns:
            This estimator.

        Raises:
            SennError: a parameter is out of range, or all rows have weight zero.
        """
        X, y, weight, is_table = self._checked(X, y, sample_weight, reset=True)
        return self._fit(X, y, weight, groups, is_table=is_table)

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Go on training, and growing, the same network with one pass over more rows.

        The first call fixes the classes and, from its rows, the encoding of the inputs.

        Args:
            X: (rows, features) numbers, or a table with columns of any kind.
            y: (rows,) labels.
            classes: all labels that will ever occur; needed at the first call, unless `fit` came before.
            sample_weight: (rows,) non-negative; None for equal weights.

        Returns:
            This estimator.

        Raises:
            SennError: a parameter is out of range, all rows have weight zero, or the classes are missing, others than
                before, or don't include a label.
            DivergenceError: the loss or a step is not finite.
        """
        first = not hasattr(self, "classes_")
        if first and classes is None:
            raise SennError("classes must be given at the first call of partial_fit")
        X, y, weight, is_table = self._checked(X, y, sample_weight, reset=first)
        if first:
            self.classes_ = np.unique(classes)
        elif classes is not None and not np.array_equal(self.classes_, np.unique(classes)):
            raise SennError(
                f"classes {np.unique(classes)} are not the {self.classes_} of the call before"
            )
        # Checked, since a label that isn't there would be encoded as its neighbor.
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            raise SennError(f"y holds the label {unknown[0]}, which is not among classes")
        return self._partial_fit(X, y, weight, is_table=is_table)

    def predict_proba(self, X: Any) -> Array:
        """Predict probabilities (rows, classes), in the order of `classes_`."""
        probabilities: Array = self._output(X).softmax(1).numpy()
        return probabilities

    def predict(self, X: Any) -> Array:
        """Predict the most probable label of each row, (rows,)."""
        best = self._output(X).argmax(1).numpy()
        labels: Array = self.classes_[best]
        return labels

    def _checked(
        self, X: Any, y: Any, sample_weight: Any, *, reset: bool
    ) -> tuple[pd.DataFrame, Array, Array, bool]:
        X, is_table = checked_table(self, X, reset=reset)
        y = checked_targets(self, X, y)
        check_classification_targets(y)
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        if self.class_weight is not None:
            # Multiplied, as in scikit-learn's own classifiers.
            weight = weight * compute_sample_weight(self.class_weight, y)
        return X, y, weight, is_table

    def _learn_targets(self, y: Array, weight: Array) -> None:
        self.classes_ = np.unique(y)

    def _encode(self, y: Array) -> torch.Tensor:
        # The classes are sorted, and all labels are among them.
        return torch.from_numpy(np.searchsorted(self.classes_, y))

    def _outputs(self) -> int:
        return len(self.classes_)

    def _metric(self) -> Metric | Watched | None:
        if self.eval_metric in (None, "loss", "score"):
            watched: Watched | None = self.eval_metric
            return watched
        return Metric(name=self.eval_metric, task=self._task, classes=len(self.classes_))


@dataclass(kw_only=True, eq=False, repr=False, match_args=False)
class SENNRegressor(RegressorMixin, SENNEstimator):  # type: ignore[misc]
    """Regressor whose network finds its own size while it is trained.

    Inputs are encoded inside, as `senn fit` encodes a table; they may be an array of numbers or a data frame (pandas,
    polars) with numbers, text, truth values and dates; cells may be missing. Targets are standardized; there may be
    several. A parameter left at None takes the value of the recipe, whose defaults need no tuning.

    Args:
        hidden: widths of the hidden layers at the start, each at least 1; () for none.
        activation: name of the activation (`relu`, `tanh`, `rational`, ...) or a module class.
        optimizer: a `torch.optim` class by name (`adam`, `sgd`, ...) or `natural-gradient`.
        learning_rate: peak learning rate, above 0.
        batch_size: rows per optimizer step, at least 1.
        max_epochs: most passes over the data, at least 1.
        grow: False to keep the size of `hidden`.
        policy: what decides on growth: `price`, `paper` or a policy object.
        max_params: most parameters that growth may reach, at least 1.
        max_flops: most operations of a prediction, per row, that growth may reach, at least 1.
        max_seconds: most seconds that training may take, above 0: with fewer than its steps need it plans fewer steps.
        time_limit: the same as `max_seconds`, by the name that it has elsewhere; only one can be given.
        validation_fraction: share of the rows held out for early stopping, 0 to 0.9; 0 for none.
        validation: which rows are held out: `random`, or `last`, the last ones of `fit`, for rows in the order of time.
        eval_metric: what makes an epoch the best on the validation rows: `loss`, `score`, or a name of scikit-learn's
            scorers (`roc_auc`, `neg_mean_absolute_error`, ...); None for the recipe's choice.
        categorical_features: names, numbers or a mask of the columns that hold categories; None to let the cells tell.
        members: number of networks of the size that is found whose predictions are averaged; None for 8, or fewer with
            many rows or a limit, as of `TrainConfig`.
        recipe: a `senn.training.TrainConfig` with all other choices; None for the defaults.
        random_state: seed, `RandomState`, or None for a different result each time.
        verbose: 1 to show how training goes on, by lines, or in a notebook by a bar and the network; 0 for nothing.

    Attributes:
        model_: the network, or the ensemble of them, a plain `torch.nn.Module` from what `encode_inputs` makes of
            inputs to standardized targets.
        architecture_: widths of its hidden layers.
        history_: records of epochs and changes of size, JSON-able.
        n_iter_: epochs trained.
        columns_: how each column is read, as in the encoding of `senn fit`.
        feature_importances_: how much the score falls on validation rows when a column is shuffled, (features,).
        target_mean_, target_scale_: means and standard deviations of the targets, (outputs,).
        target_low_, target_high_: smallest and largest targets, but for wild ones, (outputs,); predictions stay between
            them.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Note:
        Sample weights behave as in `SENNClassifier`.

    Example:
        >>> import numpy as np
        >>> from senn import SENNRegressor
        >>> X = np.linspace(-2, 2, 200)[:, None]
        >>> y = np.sin(3 * X[:, 0])
        >>> regressor = SENNRegressor(max_params=200, random_state=0).fit(X, y)
        >>> regressor.predict(X).shape
        (200,)
        >>> sum(parameter.numel() for parameter in regressor.model_.parameters()) <= 200
        True
    """

    _task: ClassVar[Task] = "regression"

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> Self:
        """Train a fresh network on some rows.

        Args:
            X: (rows, features) numbers, or a table with columns of any kind.
            y: (rows,) or (rows, targets) numbers.
            sample_weight: (rows,) non-negative; None for equal weights.
            groups: (rows,) values; rows of one value stay together when rows are held out. None for no groups.

        Returns:
            This estimator.

        Raises:
            SennError: a parameter is out of range, or all rows have weight zero.
        """
        X, y, weight, is_table = self._checked(X, y, sample_weight, reset=True)
        return self._fit(X, y, weight, groups, is_table=is_table)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Go on training, and growing, the same network with one pass over more rows.

        The first call fixes, from its rows, the encoding of inputs and targets, unless `fit` came before.

        Args:
            X: (rows, features) numbers, or a table with columns of any kind.
            y: (rows,) or (rows, targets) numbers.
            sample_weight: (rows,) non-negative; None for equal weights.

        Returns:
            This estimator.

        Raises:
            SennError: a parameter is out of range, all rows have weight zero, or there are other targets than before.
            DivergenceError: the loss or a step is not finite.
        """
        first = not hasattr(self, "model_")
        X, y, weight, is_table = self._checked(X, y, sample_weight, reset=first)
        if first:
            # By the rows that count, as the inputs' standardization.
            _, present_y, present_weight = present_rows(X, y, weight)
            self._learn_targets(present_y, present_weight)
        elif y.shape[1:] != self._target_shape:
            raise SennError(
                f"y must have rows of shape {self._target_shape} as before, not {y.shape[1:]}"
            )
        else:
            self._extend_bounds(present_rows(X, y, weight)[1])
        return self._partial_fit(X, y, weight, is_table=is_table)

    def predict(self, X: Any) -> Array:
        """Predict the targets, (rows,) or (rows, targets) as in training."""
        return self._decoded(self._output(X))

    def _decoded(self, standard: torch.Tensor, *, clip: bool = True) -> Array:
        """Convert standardized numbers (rows, outputs) to targets in their own unit and shape."""
        values = standard.double().numpy() * self.target_scale_ + self.target_mean_
        if clip:
            # beyond what it was trained on a network knows nothing
            values = values.clip(self.target_low_, self.target_high_)
        shaped: Array = values.reshape(len(values), *self._target_shape)
        return shaped

    def predict_interval(self, X: Any, coverage: float = 0.9) -> Array:
        """Predict intervals that hold the target of a new row with a given probability.

        Split conformal prediction (Lei, G'Sell, Rinaldo, Tibshirani & Wasserman 2018, *Distribution-free predictive
        inference for regression*, arXiv 1604.04173, algorithm 2) on rows that training held out: an interval reaches as
        far to both sides as errors there do. Of several members, each row has the error of the one that didn't see it
        (Barber, Candes, Ramdas & Tibshirani 2021, *Predictive inference with the jackknife+*, arXiv 1905.02928), which
        is larger than that of their mean. The promise is for all rows together, not for each kind of row, and for new
        rows drawn as these were. Validation rows also chose the epoch, which makes intervals shorter by a trace.

        Args:
            X: (rows, features), as for `predict`.
            coverage: probability, above 0 and below 1.

        Returns:
            (rows, 2) lower and upper ends; (rows, targets, 2) where targets have been given as a table.

        Raises:
            SennError: fit held out too few rows for this coverage.
        """
        check("coverage", coverage, fraction(open_low=True, open_high=True))
        check_is_fitted(self, "model_")
        unseen: tuple[torch.Tensor, torch.Tensor] | None = getattr(self, "_unseen", None)
        if unseen is None:
            raise SennError(
                "predict_interval needs rows that training didn't see, and fit held none out for validation"
            )
        outputs, targets = unseen
        errors = np.abs(self._decoded(outputs) - self._decoded(targets, clip=False))
        # The k-th smallest error of n, with k = ceil((n + 1) coverage): new and old errors are one sample.
        count = math.ceil((len(errors) + 1) * coverage)
        if count > len(errors):
            raise SennError(
                f"a coverage of {coverage:g} needs {math.ceil(coverage / (1 - coverage))} validation rows at least, "
                f"and fit held out {len(errors)}"
            )
        half = np.sort(errors, axis=0)[count - 1]
        center = self.predict(X)
        return np.stack([center - half, center + half], axis=-1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _checked(
        self, X: Any, y: Any, sample_weight: Any, *, reset: bool
    ) -> tuple[pd.DataFrame, Array, Array, bool]:
        X, is_table = checked_table(self, X, reset=reset)
        y = checked_targets(self, X, y, multi_output=True, y_numeric=True)
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        return X, y.astype(np.float64), weight, is_table

    def _learn_targets(self, y: Array, weight: Array) -> None:
        # A single target may be a vector or a column; predictions have the shape of the targets.
        self._target_shape = y.shape[1:]
        table = y.reshape(len(y), -1)
        ends = np.array([fences(column) for column in table.T])
        self.target_low_, self.target_high_ = ends.T
        clipped = table.clip(self.target_low_, self.target_high_)
        self.target_mean_, self.target_scale_ = mean_and_scale(clipped, weight)
        wild = (clipped != table).any(1)
        if wild.any():
            warn(
                f"{int(wild.sum()):,} targets lie far outside all others, such as {table[wild][0].tolist()}: training "
                f"takes what is below {self.target_low_.tolist()} or above {self.target_high_.tolist()} for that"
            )

    def _extend_bounds(self, y: Array) -> None:
        ends = np.array([fences(column) for column in y.reshape(len(y), -1).T])
        self.target_low_ = np.minimum(self.target_low_, ends[:, 0])
        self.target_high_ = np.maximum(self.target_high_, ends[:, 1])

    def _encode(self, y: Array) -> torch.Tensor:
        table = y.reshape(len(y), -1).clip(self.target_low_, self.target_high_)
        standard = (table - self.target_mean_) / self.target_scale_
        return torch.from_numpy(standard.astype(np.float32))

    def _outputs(self) -> int:
        return len(self.target_mean_)

    def _metric(self) -> Metric | Watched | None:
        if self.eval_metric in (None, "loss", "score"):
            watched: Watched | None = self.eval_metric
            return watched
        if len(self.target_mean_) > 1:
            raise SennError("eval_metric is for a single target; several are judged by their loss")
        mean, scale = float(self.target_mean_[0]), float(self.target_scale_[0])
        return Metric(name=self.eval_metric, task=self._task, mean=mean, scale=scale)
