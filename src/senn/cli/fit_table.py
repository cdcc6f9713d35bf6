"""Prepare a table for `senn fit`: read it, split it, encode it, and choose the recipe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from senn.cli.metrics import metrics
from senn.data import Table, TableEncoder, Target, read_table, split
from senn.data.tabular.table_encoder import check_names, listed
from senn.errors import SennError
from senn.policies import PaperPolicy, Policy, PricePolicy
from senn.runs import FitOptions
from senn.runs.fit_options import DEFAULTS, option_name
from senn.training import Callback, Task, TrainConfig, TrainResult, train
from senn.training.batches import validation_split
from senn.training.builders import build_model, build_optimizer, loss_function, resolve_policy
from senn.training.run_state import Checkpointer
from senn.training.train_result import count_parameters

FEWEST_ROWS = 8
"""Least rows of a table, and least images: below it neither the test nor the validation part means anything."""

_MOST_NAMED = 8
"""Columns of one kind that are listed by name."""


class Prepared(Protocol):
    """Data ready for training, whether a table or images."""

    @property
    def recipe(self) -> TrainConfig:
        """Training configuration of the run."""

    @property
    def name(self) -> str:
        """Short name of the data, after which the run's folder is called."""

    @property
    def task(self) -> Task:
        """Task that the network learns."""

    @property
    def notes(self) -> list[str]:
        """Remarks on the data for the user, one sentence each."""

    @property
    def start(self) -> tuple[int, ...]:
        """Widths of the hidden layers before training."""

    def line(self) -> str:
        """Describe the data in one line."""

    def details(self) -> list[str]:
        """Describe the data in more lines, for a dry run."""

    def summary(self) -> dict[str, Any]:
        """Describe the data and their encoding as a JSON-able record, for `results.json`."""

    def plan(self) -> dict[str, Any]:
        """Describe the start of training and the price of growth there, JSON-able."""

    def digest(self) -> str:
        """Return a SHA-256 of the encoded data, by which a resumed run knows its data."""

    def train(self, callbacks: Sequence[Callback], checkpointer: Checkpointer | None = None) -> TrainResult:
        """Train a network.

        Args:
            callbacks: that hear of every record.
            checkpointer: keeps the run's state, and has the state to resume from; None to keep nothing.
        """

    def test(self, model: nn.Module) -> dict[str, float | None]:
        """Score a network on the test part.

        Returns:
            Scores by name; None for one that isn't finite.
        """

    def record(self) -> dict[str, Any]:
        """Return what `senn predict` needs besides the network, JSON-able."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Preparation:
    """Hold a table as numbers; implements `Prepared`.

    Attributes:
        table: the table as read.
        encoder: encoding, fitted on the training rows.
        x: (rows, features) float32 training rows.
        y: classes (rows,) int64, or standardized numbers (rows, 1) float32.
        x_test: (test rows, features) float32 rows held out for the test.
        y_test: their targets, like `y`.
        recipe: training configuration.
    """

    table: Table
    encoder: TableEncoder
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    recipe: TrainConfig

    @property
    def name(self) -> str:
        """Name of the table, from its file or data set."""
        return self.table.name

    @property
    def task(self) -> Task:
        """Task of the target column."""
        return self.encoder.target.task

    @property
    def notes(self) -> list[str]:
        """Remarks on single columns, one sentence each."""
        return self.encoder.notes

    @property
    def start(self) -> tuple[int, ...]:
        """Widths of the hidden layers before training."""
        return self.recipe.hidden

    def line(self) -> str:
        """Describe the data in one line."""
        about = self.summary()
        what = f"{len(about['classes'])} classes" if about["classes"] else "a number"
        return (
            f"{about['name']}: {about['rows']:,} rows ({about['train_rows']:,} to train on, {about['test_rows']:,} for "
            f"the test), {about['features']:,} features, target {about['target']!r} ({what})"
        )

    def details(self) -> list[str]:
        """List the columns of each kind, the first few by name."""
        lines = []
        kinds = {column.name: column.kind for column in self.encoder.columns}
        for kind in sorted(set(kinds.values())):
            names = [name for name, other in kinds.items() if other == kind]
            more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
            lines.append(f"{kind}: {', '.join(names[:_MOST_NAMED])}{more}")
        return lines

    def digest(self) -> str:
        """Return a SHA-256 of the encoded data, by which a resumed run knows its data."""
        return checksum_of(self.record(), self.x, self.y, self.x_test, self.y_test)

    def train(self, callbacks: Sequence[Callback], checkpointer: Checkpointer | None = None) -> TrainResult:
        """Train a network.

        Args:
            callbacks: that hear of every record.
            checkpointer: keeps the run's state, and has the state to resume from; None to keep nothing.
        """
        outputs = self.encoder.target.outputs
        return train(
            self.x,
            self.y,
            task=self.task,
            outputs=outputs,
            recipe=self.recipe,
            callbacks=callbacks,
            checkpointer=checkpointer,
        )

    def test(self, model: nn.Module) -> dict[str, float | None]:
        """Score a network on the test part.

        Returns:
            Scores by name; None for one that isn't finite.
        """
        return metrics(model, self.encoder.target, self.x_test, self.y_test)

    def record(self) -> dict[str, Any]:
        """Return the encoding of the columns, JSON-able."""
        return self.encoder.to_dict()

    def summary(self) -> dict[str, Any]:
        """Describe the data and their encoding as a JSON-able record, for `results.json`."""
        kinds = {column.name: column.kind for column in self.encoder.columns}
        target = self.encoder.target
        return {
            "name": self.table.name,
            "rows": len(self.table.frame),
            "train_rows": len(self.x),
            "test_rows": len(self.x_test),
            "features": self.x.shape[1],
            "target": target.name,
            "classes": list(target.labels) or None,
            "columns": kinds,
            "notes": self.encoder.notes,
        }

    def plan(self) -> dict[str, Any]:
        """Describe the start of training and the price of growth there, JSON-able."""
        outputs = self.encoder.target.outputs
        model = build_model(self.x.shape[1], outputs, self.recipe)
        return planned(model, self.recipe, self.recipe.hidden, self.y, unit=self.x.shape[1] + 1 + outputs)


def checksum_of(record: dict[str, Any], *arrays: Tensor | NDArray[Any]) -> str:
    """Return the SHA-256 of a record and of arrays, with their dtypes and shapes.

    Args:
        record: JSON-able; the order of its keys doesn't count.
        *arrays: in this order.

    Returns:
        64 hexadecimal digits.
    """
    total = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for array in arrays:
        content = np.ascontiguousarray(array)
        total.update(f"{content.dtype} {content.shape}".encode())
        total.update(content.data if content.size else b"")
    return total.hexdigest()


def planned(model: nn.Module, recipe: TrainConfig, hidden: Sequence[int], y: Tensor, unit: int) -> dict[str, Any]:
    """Describe the start of training and the price of growth there, JSON-able.

    Args:
        model: network before training.
        recipe: training configuration.
        hidden: widths of the hidden layers.
        y: (rows,) or (rows, 1) targets of all rows but those for the test.
        unit: number of parameters of one more unit.

    Returns:
        Counts of rows, steps and parameters, names of the choices, and `price_per_unit` in nats per sample.
    """
    # The same draws as training makes, so that the plan names the very rows that a run would hold out.
    generator = torch.Generator().manual_seed(recipe.seed)
    fitted, validation = validation_split(y, recipe.validation_fraction, generator, minimum=recipe.min_validation)
    plan = recipe.plan(len(fitted))
    return {
        "fitted_rows": len(fitted),
        "validation_rows": len(validation),
        "optimizer": recipe.optimizer,
        "policy": type(recipe.policy).__name__,
        "architecture": list(hidden),
        "parameters": count_parameters(model),
        "epochs": plan.epochs,
        "steps": plan.steps,
        "growth_until_step": plan.growth_end,
        "parameters_per_unit": unit,
        "price_per_unit": resolve_policy(recipe.policy).price(unit, len(fitted)),
    }


def prepare(options: FitOptions) -> Preparation:
    """Read, split and encode a table, and choose its recipe, before anything is written.

    Args:
        options: of the run.

    Returns:
        Data ready for training.

    Raises:
        SennError: naming the column, row or option that is wrong.
    """
    refuse_options(options, ("image_size", "data_dir", "no_flip"), "images, and {data} is a table")
    kinds = dict(options.column)
    table = read_table(options.data, text=[name for name, kind in kinds.items() if kind == "category"])
    name = options.target or table.target
    if name is None:
        which = f"the column of {options.data!r} to predict isn't known; name it with --target"
        raise SennError(f"{which}; the table has {listed(table.frame.columns)}")
    check_names(table.frame, name)
    if name in kinds:
        raise SennError(f"{name!r} is the target; use --task to say how it is read, not --column")
    rows = len(table.frame)
    if rows < FEWEST_ROWS:
        raise SennError(f"the table has {rows} row{'s' * (rows > 1)}; at least {FEWEST_ROWS} are needed")
    target = Target.fit(name, table.frame[name], options.task)
    classes = target.encode(table.frame[name]) if target.task == "classification" else None
    train, test = split(rows, options.test_fraction, options.seed, classes)
    parts = table.frame.iloc[train], table.frame.iloc[test]
    # Classes are known from all rows; mean and scale are those of the training rows, or the test would leak into them.
    encoder = TableEncoder.fit(parts[0], target.scaled_to(parts[0][name]), kinds=kinds)
    (x, y), (x_test, y_test) = (
        (torch.from_numpy(encoder.transform(part)), torch.from_numpy(encoder.target.encode(part[name])))
        for part in parts
    )
    return Preparation(
        table=table,
        encoder=encoder,
        x=x,
        y=y,
        x_test=x_test,
        y_test=y_test,
        recipe=_recipe(options, encoder, x.shape[1]),
    )


def refuse_options(options: FitOptions, names: Sequence[str], reason: str) -> None:
    """Refuse options that are meant for another kind of data.

    Args:
        options: of the run.
        names: fields of the options that have no meaning here.
        reason: end of the sentence, in which `{data}` stands for the data.

    Raises:
        SennError: naming the first of these options that isn't at its default.
    """
    record = options.to_dict()
    for name in names:
        if record[name] != DEFAULTS[name]:
            raise SennError(f"{option_name(name)} is for {reason.format(data=repr(options.data))}")


def _recipe(options: FitOptions, encoder: TableEncoder, features: int) -> TrainConfig:
    """Build the recipe of defaults and options, checked as far as is possible by now."""
    recipe = TrainConfig(policy=chosen_policy(options), **recipe_fields(options))
    with torch.random.fork_rng(devices=[]):
        model = build_model(features, encoder.target.outputs, recipe)
    check_start(model, recipe, encoder.target.task)
    return recipe


def recipe_fields(options: FitOptions) -> dict[str, Any]:
    """Return the fields of a recipe that the options set."""
    record = options.to_dict()
    names = ("seed", "optimizer", "epochs", "max_params")
    return {name: record[name] for name in names if record[name] is not None}


def check_start(model: nn.Module, recipe: TrainConfig, task: Task) -> None:
    """Refuse an unknown optimizer, and a budget that the network exceeds before training.

    Args:
        model: network before training.
        recipe: training configuration.
        task: that the network learns.

    Raises:
        SennError: naming the optimizer or the budget.
    """
    build_optimizer(model, recipe, loss_function(task))
    smallest = count_parameters(model)
    if recipe.max_params is not None and recipe.max_params < smallest:
        raise SennError(f"--max-params {recipe.max_params:,} is less than the {smallest:,} of the network at the start")


def chosen_policy(options: FitOptions, prices: PricePolicy | None = None) -> Policy:
    """Build the growth policy that the options name.

    Args:
        options: of the run.
        prices: price policy to start from; None for the default.

    Raises:
        SennError: an option belongs to the other policy.
    """
    if options.policy != "price" and options.kappa is not None:
        raise SennError("--kappa belongs to --policy price")
    for name, value in (("--tau", options.tau), ("--alpha", options.alpha)):
        if options.policy != "paper" and value is not None:
            raise SennError(f"{name} belongs to --policy paper")
    if options.policy == "paper":
        given = {"tau": options.tau, "alpha": options.alpha}
        return PaperPolicy(**{name: value for name, value in given.items() if value is not None})
    prices = prices or PricePolicy()
    return prices if options.kappa is None else replace(prices, kappa=options.kappa)
