"""scikit-learn estimators whose network finds its own size: `SENNClassifier` and `SENNRegressor`."""

from __future__ import annotations

import copy
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state, compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from senn import html
from senn._validate import check, instance_of
from senn.errors import SennError
from senn.training import Task, TrainConfig, train
from senn.training.incremental import IncrementalTrainer
from senn.training.progress import progress
from senn.training.train_config import RANGES
from senn.training.train_step import build_model

__all__ = [
    "SENNClassifier",
    "SENNRegressor",
]

Array = np.ndarray[Any, Any]

# Parameters of the estimators, and what a recipe calls them.
_FIELDS = {
    "hidden": "hidden",
    "activation": "activation",
    "optimizer": "optimizer",
    "learning_rate": "lr",
    "batch_size": "batch_size",
    "max_epochs": "epochs",
    "grow": "grow",
    "policy": "policy",
    "max_params": "max_params",
    "validation_fraction": "validation_fraction",
}


# scikit-learn reads an estimator's parameters off the signature of `__init__`, which a dataclass generates from its
# fields, those of its base included: so each parameter stands once.
@dataclass(eq=False, repr=False, match_args=False)
class _SENNEstimator(BaseEstimator):  # type: ignore[misc]
    """What both estimators share: standardisation, training, going on."""

    hidden: tuple[int, ...] | None = None
    _: KW_ONLY
    activation: Any = None
    optimizer: str | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    max_epochs: int | None = None
    grow: bool | None = None
    policy: Any = None
    max_params: int | None = None
    validation_fraction: float | None = None
    recipe: TrainConfig | None = None
    random_state: Any = None
    verbose: int = 0

    _task: ClassVar[Task]

    # -- what a task decides

    def _learn_targets(self, y: Array, weight: Array) -> None:
        """Learn what `_encode` needs to know about the targets."""
        raise NotImplementedError

    def _encode(self, y: Array) -> torch.Tensor:
        """Targets as the net is trained on them."""
        raise NotImplementedError

    def _outputs(self) -> int:
        """Number of outputs of the net."""
        raise NotImplementedError

    # -- fitting

    def _fit(self, X: Array, y: Array, weight: Array) -> Self:
        recipe = self._recipe()
        X, y, weight = _present(X, y, weight)
        self.mean_, self.scale_ = _moments(X, weight)
        self._learn_targets(y, weight)
        if self._task == "classification" and self._outputs() == 1:  # nothing to tell apart
            recipe = replace(recipe, grow=False, epochs=1)
        run = train(
            self._standardize(X),
            self._encode(y),
            task=self._task,
            outputs=self._outputs(),
            recipe=recipe,
            callbacks=progress(self.verbose),
            sample_weight=torch.from_numpy(weight),
        )
        self._online: IncrementalTrainer | None = None
        self.model_ = run.model
        self.history_ = run.history
        self.architecture_ = run.architecture
        self.n_iter_ = run.history[-1]["epochs"]
        if run.interrupted:
            raise KeyboardInterrupt
        return self

    def _partial_fit(self, X: Array, y: Array, weight: Array) -> Self:
        X, y, weight = _present(X, y, weight)
        if not hasattr(self, "scale_"):
            self.mean_, self.scale_ = _moments(X, weight)
        online: IncrementalTrainer | None = getattr(self, "_online", None)
        if online is None:
            recipe = self._recipe()
            model = getattr(self, "model_", None) or build_model(X.shape[1], self._outputs(), recipe)
            self._online = online = IncrementalTrainer(model, recipe, self._task)
        records = online.partial_fit(self._standardize(X), self._encode(y), torch.from_numpy(weight))
        self.model_ = online.model
        self.history_ = [*getattr(self, "history_", []), *records]
        self.architecture_ = self.model_.hidden
        self.n_iter_ = getattr(self, "n_iter_", 0) + 1
        return self

    def _recipe(self) -> TrainConfig:
        """The recipe with what the parameters say; None leaves a choice to the recipe."""
        for name, field in _FIELDS.items():  # at `fit`, as scikit-learn wants it
            check(name, getattr(self, name), RANGES[field].or_none())
        check("recipe", self.recipe, instance_of(TrainConfig, called="a senn.training.Recipe").or_none())
        recipe = TrainConfig() if self.recipe is None else self.recipe
        said = {field: getattr(self, name) for name, field in _FIELDS.items() if getattr(self, name) is not None}
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        return replace(recipe, seed=seed, **said)

    # -- inputs

    def _standardize(self, X: Array) -> torch.Tensor:
        return torch.from_numpy(((X - self.mean_) / self.scale_).astype(np.float32))

    @torch.no_grad()
    def _output(self, X: Any) -> torch.Tensor:
        """Raw outputs of the net, (rows, outputs)."""
        check_is_fitted(self, "model_")
        X = validate_data(self, X, reset=False, dtype=np.float64)
        # In float64: float32 products depend, in the last digit, on how many rows are predicted together.
        model = copy.deepcopy(self.model_).double().eval()
        output: torch.Tensor = model(torch.from_numpy((X - self.mean_) / self.scale_))
        return output

    def _html_repr(self) -> str:
        """scikit-learn's picture in notebooks; of a fitted estimator also its layers and its size over time."""
        shown: str = super()._html_repr()
        return shown + (html.grown(self.history_, self.architecture_) if hasattr(self, "history_") else "")

    def __getstate__(self) -> dict[str, Any]:
        # The optimizer and the grower of `partial_fit` stay behind; a copy starts fresh ones.
        return {**super().__getstate__(), "_online": None}


@dataclass(eq=False, repr=False, match_args=False)
class SENNClassifier(ClassifierMixin, _SENNEstimator):  # type: ignore[misc]
    """A classifier whose network finds its own size while it is trained.

    Inputs are standardised inside. A parameter left at None takes what the recipe says, whose defaults need no tuning.

    Args:
        hidden: widths of the hidden layers at the start, () for none.
        activation: name of the activation (`relu`, `tanh`, `rational`, ...) or a module class.
        optimizer: a `torch.optim` class by name (`adam`, `sgd`, ...) or `natural-gradient`.
        learning_rate: peak learning rate.
        batch_size: rows per step.
        max_epochs: passes over the data at most.
        grow: False for a net that keeps the size of `hidden`.
        policy: what decides on growth: `price`, `paper` or a policy object.
        max_params: budget of parameters that growth keeps to.
        validation_fraction: share of the rows held out for stopping early; 0 for none.
        class_weight: `balanced`, a mapping of class to weight, or None.
        recipe: a `senn.training.TrainConfig` with all other choices.
        random_state: seed or `RandomState`.
        verbose: 1 to show how training goes on: lines, or in a notebook a bar and the network.

    Attributes:
        classes_: class labels.
        model_: the network, a plain `torch.nn.Module` on standardised inputs.
        architecture_: widths of its hidden layers.
        history_: records of epochs and changes of size, JSON-able.
        n_iter_: epochs trained.
        mean_, scale_: of the inputs.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Note:
        A row of weight zero counts as absent. Otherwise a weight multiplies the loss of a row within a minibatch, which
        is not the same as repeating the row: repeated rows make more and other minibatches. So scikit-learn's check
        `check_sample_weight_equivalence_on_dense_data` does not hold, as for its own stochastic-gradient estimators.
    """

    _: KW_ONLY
    class_weight: Any = None

    _task: ClassVar[Task] = "classification"

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train from the start on X (rows, features) and labels y (rows,)."""
        X, y, weight = self._checked(X, y, sample_weight, reset=True)
        return self._fit(X, y, weight)

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Go on training, and growing, the same net with one pass over more rows.

        The first call fixes the classes and, from its rows, the standardisation of the inputs.

        Args:
            X: (rows, features).
            y: (rows,) labels.
            classes: all labels that will ever occur; needed at the first call, unless `fit` came before.
            sample_weight: (rows,) non-negative.
        """
        first = not hasattr(self, "classes_")
        if first and classes is None:
            raise SennError("classes must be given at the first call of partial_fit.")
        X, y, weight = self._checked(X, y, sample_weight, reset=first)
        if first:
            self.classes_ = np.unique(classes)
        elif classes is not None and not np.array_equal(self.classes_, np.unique(classes)):
            raise SennError(f"classes {np.unique(classes)} are not the {self.classes_} of the call before.")
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            raise SennError(f"y holds the label {unknown[0]}, which is not among classes.")
        return self._partial_fit(X, y, weight)

    def predict_proba(self, X: Any) -> Array:
        """Probabilities (rows, classes), in the order of `classes_`."""
        probabilities: Array = self._output(X).softmax(1).numpy()
        return probabilities

    def predict(self, X: Any) -> Array:
        """The most probable label of each row."""
        best = self._output(X).argmax(1).numpy()
        labels: Array = self.classes_[best]
        return labels

    def _checked(self, X: Any, y: Any, sample_weight: Any, *, reset: bool) -> tuple[Array, Array, Array]:
        X, y = validate_data(self, X, y, dtype=np.float64, reset=reset)
        check_classification_targets(y)
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        if self.class_weight is not None:
            weight = weight * compute_sample_weight(self.class_weight, y)
        return X, y, weight

    def _learn_targets(self, y: Array, weight: Array) -> None:
        self.classes_ = np.unique(y)

    def _encode(self, y: Array) -> torch.Tensor:
        return torch.from_numpy(np.searchsorted(self.classes_, y))

    def _outputs(self) -> int:
        return len(self.classes_)


@dataclass(eq=False, repr=False, match_args=False)
class SENNRegressor(RegressorMixin, _SENNEstimator):  # type: ignore[misc]
    """A regressor whose network finds its own size while it is trained.

    Inputs and targets are standardised inside; several targets at once may be given. A parameter left at None takes
    what the recipe says, whose defaults need no tuning.

    Args:
        hidden: widths of the hidden layers at the start, () for none.
        activation: name of the activation (`relu`, `tanh`, `rational`, ...) or a module class.
        optimizer: a `torch.optim` class by name (`adam`, `sgd`, ...) or `natural-gradient`.
        learning_rate: peak learning rate.
        batch_size: rows per step.
        max_epochs: passes over the data at most.
        grow: False for a net that keeps the size of `hidden`.
        policy: what decides on growth: `price`, `paper` or a policy object.
        max_params: budget of parameters that growth keeps to.
        validation_fraction: share of the rows held out for stopping early; 0 for none.
        recipe: a `senn.training.TrainConfig` with all other choices.
        random_state: seed or `RandomState`.
        verbose: 1 to show how training goes on: lines, or in a notebook a bar and the network.

    Attributes:
        model_: the network, a plain `torch.nn.Module` on standardised inputs with standardised outputs.
        architecture_: widths of its hidden layers.
        history_: records of epochs and changes of size, JSON-able.
        n_iter_: epochs trained.
        mean_, scale_: of the inputs.
        target_mean_, target_scale_: of the targets, (outputs,).
        n_features_in_, feature_names_in_: as in scikit-learn.

    Note:
        Sample weights behave as in `SENNClassifier`.
    """

    _task: ClassVar[Task] = "regression"

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train from the start on X (rows, features) and y (rows,) or (rows, targets)."""
        X, y, weight = self._checked(X, y, sample_weight, reset=True)
        return self._fit(X, y, weight)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Go on training, and growing, the same net with one pass over more rows.

        The first call fixes, from its rows, the standardisation of inputs and targets (unless `fit` came before).

        Args:
            X: (rows, features).
            y: (rows,) or (rows, targets).
            sample_weight: (rows,) non-negative.
        """
        first = not hasattr(self, "model_")
        X, y, weight = self._checked(X, y, sample_weight, reset=first)
        if first:
            self._learn_targets(*_present(y, y, weight)[1:])
        elif y.shape[1:] != self._target_shape:
            raise SennError(f"y must have rows of shape {self._target_shape} as before, not {y.shape[1:]}.")
        return self._partial_fit(X, y, weight)

    def predict(self, X: Any) -> Array:
        """Predictions, in the shape of the targets."""
        output = self._output(X).numpy() * self.target_scale_ + self.target_mean_
        shaped: Array = output.reshape(len(output), *self._target_shape)
        return shaped

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _checked(self, X: Any, y: Any, sample_weight: Any, *, reset: bool) -> tuple[Array, Array, Array]:
        X, y = validate_data(self, X, y, dtype=np.float64, reset=reset, multi_output=True, y_numeric=True)
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        return X, y.astype(np.float64), weight

    def _learn_targets(self, y: Array, weight: Array) -> None:
        self._target_shape = y.shape[1:]
        self.target_mean_, self.target_scale_ = _moments(y.reshape(len(y), -1), weight)

    def _encode(self, y: Array) -> torch.Tensor:
        standard = (y.reshape(len(y), -1) - self.target_mean_) / self.target_scale_
        return torch.from_numpy(standard.astype(np.float32))

    def _outputs(self) -> int:
        return len(self.target_mean_)


def _present(X: Array, y: Array, weight: Array) -> tuple[Array, Array, Array]:
    """The rows whose weight is not zero."""
    rows = weight > 0
    if not rows.any():
        raise SennError("sample_weight is zero for every row, so nothing is left to learn from.")
    return (X, y, weight) if rows.all() else (X[rows], y[rows], weight[rows])


def _moments(table: Array, weight: Array) -> tuple[Array, Array]:
    """Weighted mean and standard deviation of each column; 1 where a column does not vary."""
    mean = np.average(table, axis=0, weights=weight)
    scale = np.sqrt(np.average((table - mean) ** 2, axis=0, weights=weight))
    # Rounding leaves a constant column a spread of about eps times its size.
    scale[scale <= 10 * np.finfo(np.float64).eps * np.abs(mean)] = 1.0
    return mean, scale
