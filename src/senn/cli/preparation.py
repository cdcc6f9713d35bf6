"""From the arguments of `senn fit` to numbers ready for training: the table, its split, its encoding, the recipe."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from senn.data import Table, TableEncoder, Target, read_table, split
from senn.data.encoder import check_names
from senn.errors import SennError
from senn.policy import PaperPolicy, Policy, PricePolicy
from senn.training import Recipe
from senn.training.learner import build_model, build_optimizer, loss_function, resolve_policy
from senn.training.loop import count_parameters
from senn.training.split import validation_split

FEWEST_ROWS = 8


@dataclass(frozen=True, eq=False)
class Preparation:
    """A table as numbers.

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
    recipe: Recipe

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
        unit = self.x.shape[1] + 1 + outputs
        drawn = torch.Generator().manual_seed(self.recipe.seed)
        recipe = self.recipe
        fitted, validation = validation_split(self.y, recipe.validation_fraction, drawn, minimum=recipe.min_validation)
        plan = recipe.plan(len(fitted))
        return {
            "fitted_rows": len(fitted),
            "validation_rows": len(validation),
            "optimizer": self.recipe.optimizer,
            "policy": type(self.recipe.policy).__name__,
            "architecture": list(self.recipe.hidden),
            "parameters": count_parameters(model),
            "epochs": plan.epochs,
            "steps": plan.steps,
            "growth_until_step": plan.growth_end,
            "parameters_per_unit": unit,
            "price_per_unit": resolve_policy(recipe.policy).price(unit, len(fitted)),
        }


def prepare(args: argparse.Namespace) -> Preparation:
    """Read, split and encode the table, and settle the recipe, before anything is written or trained.

    Raises:
        SennError: for whatever is wrong with the table or the options, by name.
    """
    kinds = dict(args.column)
    table = read_table(args.data, text=[name for name, kind in kinds.items() if kind == "category"])
    name = args.target or table.target
    if name is None:
        raise SennError(f"which column of {args.data!r} is to be predicted? Name it with --target")
    check_names(table.frame, name)
    if name in kinds:
        raise SennError(f"{name!r} is the target; --task says how it is read, not --column")
    rows = len(table.frame)
    if rows < FEWEST_ROWS:
        raise SennError(f"the table has {rows} row{'s' * (rows > 1)}; at least {FEWEST_ROWS} are needed to learn from")
    target = Target.fit(name, table.frame[name], args.task)
    classes = target.encode(table.frame[name]) if target.task == "classification" else None
    train, test = split(rows, args.test_fraction, args.seed, classes)
    parts = table.frame.iloc[train], table.frame.iloc[test]
    encoder = TableEncoder.fit(parts[0], name, target.task, kinds)
    (x, y), (x_test, y_test) = (
        (torch.from_numpy(encoder.transform(part)), torch.from_numpy(encoder.target.encode(part[name])))
        for part in parts
    )
    return Preparation(table, encoder, x, y, x_test, y_test, _recipe(args, encoder, x.shape[1]))


def _recipe(args: argparse.Namespace, encoder: TableEncoder, features: int) -> Recipe:
    """The default recipe but for what the arguments say, checked as far as can be without training."""
    told = {key: getattr(args, key) for key in ("optimizer", "epochs", "max_params") if getattr(args, key) is not None}
    recipe = Recipe(seed=args.seed, policy=_policy(args), **told)
    with torch.random.fork_rng(devices=[]):
        model = build_model(features, encoder.target.outputs, recipe)
    build_optimizer(model, recipe, loss_function(encoder.target.task))
    smallest = count_parameters(model)
    if recipe.max_params is not None and recipe.max_params < smallest:
        raise SennError(f"--max-params {recipe.max_params:,} is less than the {smallest:,} of the network at the start")
    return recipe


def _policy(args: argparse.Namespace) -> Policy:
    options = {"price": ("kappa",), "paper": ("tau", "alpha")}
    for policy, names in options.items():
        for name in names:
            if policy != args.policy and getattr(args, name) is not None:
                raise SennError(f"--{name} belongs to --policy {policy}")
    told = {name: getattr(args, name) for name in options[args.policy] if getattr(args, name) is not None}
    return PaperPolicy(**told) if args.policy == "paper" else PricePolicy(**told)
