"""From the arguments of `senn fit` to numbers ready for training: the table, its split, its encoding, the recipe."""

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
from senn.training.run_state import Checkpointer
from senn.training.train_result import count_parameters
from senn.training.train_step import build_model, build_optimizer, loss_function, resolve_policy

FEWEST_ROWS = 8


class Prepared(Protocol):
    """Data ready for training, of whatever kind."""

    @property
    def recipe(self) -> TrainConfig:
        """All choices of training."""

    @property
    def name(self) -> str:
        """Of the data."""

    @property
    def task(self) -> Task:
        """What is learnt."""

    @property
    def notes(self) -> list[str]:
        """Remarks on the data, one sentence each."""

    @property
    def start(self) -> tuple[int, ...]:
        """Widths of the hidden layers at the start."""

    def line(self) -> str:
        """The data in one line."""

    def details(self) -> list[str]:
        """More lines on them."""

    def summary(self) -> dict[str, Any]:
        """The data and what will be made of it, JSON-able."""

    def plan(self) -> dict[str, Any]:
        """What training would start from, and what growth costs there, JSON-able."""

    def digest(self) -> str:
        """A checksum of the data as numbers and of how they were made."""

    def train(self, callbacks: Sequence[Callback], checkpointer: Checkpointer | None = None) -> TrainResult:
        """A network."""

    def test(self, model: nn.Module) -> dict[str, float | None]:
        """Its scores on what was held out."""

    def record(self) -> dict[str, Any]:
        """What `senn predict` must know beside the network, JSON-able."""


@dataclass(frozen=True, eq=False)
class Preparation:
    """A table as numbers; a `Prepared`.

    Attributes:
        table: as read.
        encoder: fitted on the training rows.
        x: (rows, features) float32 training rows.
        y: classes (rows,) long, or standardised numbers (rows, 1) float32.
        x_test: the rows held out for the test.
        y_test: and their targets.
        recipe: all choices of training.
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
        """Of the table."""
        return self.table.name

    @property
    def task(self) -> Task:
        """As the target has it."""
        return self.encoder.target.task

    @property
    def notes(self) -> list[str]:
        """Remarks on single columns."""
        return self.encoder.notes

    @property
    def start(self) -> tuple[int, ...]:
        """As the recipe has them."""
        return self.recipe.hidden

    def line(self) -> str:
        """The data in one line."""
        about = self.summary()
        what = f"{len(about['classes'])} classes" if about["classes"] else "a number"
        return (
            f"{about['name']}: {about['rows']:,} rows ({about['train_rows']:,} to train on, {about['test_rows']:,} for "
            f"the test), {about['features']:,} features, target {about['target']!r} ({what})"
        )

    def details(self) -> list[str]:
        """The columns of each kind."""
        lines = []
        kinds = {column.name: column.kind for column in self.encoder.columns}
        for kind in sorted(set(kinds.values())):
            names = [name for name, other in kinds.items() if other == kind]
            more = f" and {len(names) - 8:,} more" if len(names) > 8 else ""
            lines.append(f"{kind}: {', '.join(names[:8])}{more}")
        return lines

    def digest(self) -> str:
        """A checksum of the data as numbers and of how they were made."""
        return checksum_of(self.record(), self.x, self.y, self.x_test, self.y_test)

    def train(self, callbacks: Sequence[Callback], checkpointer: Checkpointer | None = None) -> TrainResult:
        """A network."""
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
        """Its scores on what was held out."""
        return metrics(model, self.encoder.target, self.x_test, self.y_test)

    def record(self) -> dict[str, Any]:
        """The encoding of the columns."""
        return self.encoder.to_dict()

    def summary(self) -> dict[str, Any]:
        """The data and what will be made of it, JSON-able."""
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
        """What training would start from, and what growth costs there, JSON-able."""
        outputs = self.encoder.target.outputs
        model = build_model(self.x.shape[1], outputs, self.recipe)
        return planned(model, self.recipe, self.recipe.hidden, self.y, unit=self.x.shape[1] + 1 + outputs)


def checksum_of(record: dict[str, Any], *arrays: Tensor | NDArray[Any]) -> str:
    """SHA-256 of a JSON-able record and of arrays, with their shapes."""
    total = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for array in arrays:
        content = np.ascontiguousarray(array)
        total.update(f"{content.dtype} {content.shape}".encode())
        total.update(content.data if content.size else b"")
    return total.hexdigest()


def planned(model: nn.Module, recipe: TrainConfig, hidden: Sequence[int], y: Tensor, unit: int) -> dict[str, Any]:
    """What training would start from, JSON-able.

    Args:
        model: as it starts.
        recipe: all choices.
        hidden: widths of its hidden layers.
        y: targets of all rows that aren't for the test.
        unit: parameters that a unit more has.
    """
    drawn = torch.Generator().manual_seed(recipe.seed)
    fitted, validation = validation_split(y, recipe.validation_fraction, drawn, minimum=recipe.min_validation)
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
    """Read, split and encode the table, and settle the recipe, before anything is written or trained.

    Raises:
        SennError: for whatever is wrong with the table or the options, by name.
    """
    refuse_options(options, ("image_size", "data_dir", "no_flip"), "images, and {data} is a table")
    kinds = dict(options.column)
    table = read_table(options.data, text=[name for name, kind in kinds.items() if kind == "category"])
    name = options.target or table.target
    if name is None:
        which = f"which column of {options.data!r} is to be predicted? Name it with --target"
        raise SennError(f"{which}; the table has {listed(table.frame.columns)}")
    check_names(table.frame, name)
    if name in kinds:
        raise SennError(f"{name!r} is the target; --task says how it is read, not --column")
    rows = len(table.frame)
    if rows < FEWEST_ROWS:
        raise SennError(f"the table has {rows} row{'s' * (rows > 1)}; at least {FEWEST_ROWS} are needed to learn from")
    target = Target.fit(name, table.frame[name], options.task)
    classes = target.encode(table.frame[name]) if target.task == "classification" else None
    train, test = split(rows, options.test_fraction, options.seed, classes)
    parts = table.frame.iloc[train], table.frame.iloc[test]
    encoder = TableEncoder.fit(parts[0], name, target.task, kinds)
    (x, y), (x_test, y_test) = (
        (torch.from_numpy(encoder.transform(part)), torch.from_numpy(encoder.target.encode(part[name])))
        for part in parts
    )
    return Preparation(table, encoder, x, y, x_test, y_test, _recipe(options, encoder, x.shape[1]))


def refuse_options(options: FitOptions, names: Sequence[str], reason: str) -> None:
    """Refuse options of another kind of data.

    Args:
        options: of the run.
        names: fields of those that would have no meaning.
        reason: what they are for, and what `{data}` is.

    Raises:
        SennError: naming the first that is given.
    """
    record = options.to_dict()
    for name in names:
        if record[name] != DEFAULTS[name]:
            raise SennError(f"{option_name(name)} is for {reason.format(data=repr(options.data))}")


def _recipe(options: FitOptions, encoder: TableEncoder, features: int) -> TrainConfig:
    """The default recipe but for what the options say, checked as far as can be without training."""
    recipe = TrainConfig(policy=chosen_policy(options), **recipe_fields(options))
    with torch.random.fork_rng(devices=[]):
        model = build_model(features, encoder.target.outputs, recipe)
    check_start(model, recipe, encoder.target.task)
    return recipe


def recipe_fields(options: FitOptions) -> dict[str, Any]:
    """Fields of a recipe that the options set."""
    record = options.to_dict()
    names = ("seed", "optimizer", "epochs", "max_params")
    return {name: record[name] for name in names if record[name] is not None}


def check_start(model: nn.Module, recipe: TrainConfig, task: Task) -> None:
    """Refuse an optimizer that there isn't, and a budget that the network exceeds from the start.

    Raises:
        SennError: saying so.
    """
    build_optimizer(model, recipe, loss_function(task))
    smallest = count_parameters(model)
    if recipe.max_params is not None and recipe.max_params < smallest:
        raise SennError(f"--max-params {recipe.max_params:,} is less than the {smallest:,} of the network at the start")


def chosen_policy(options: FitOptions, prices: PricePolicy | None = None) -> Policy:
    """Build the growth policy that the options name; `prices` is the price policy where they set nothing of it."""
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
