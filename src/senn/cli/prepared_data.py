"""Share what tables and images have in common on their way into `senn fit`: options, checks, plan, checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from senn.cli.scorer import Scorer
from senn.errors import SennError
from senn.flops import known_flops
from senn.policies import PaperPolicy, Policy, PricePolicy
from senn.runs import FitOptions
from senn.runs.fit_options import DEFAULTS, option_name
from senn.training import Callback, Task, TrainConfig, TrainResult
from senn.training.batches import validation_split
from senn.training.builders import check_optimizer, resolve_policy
from senn.training.run_state import Checkpointer
from senn.training.train_result import count_parameters

FEWEST_ROWS = 8
"""Least rows of a table, and least images: below it neither the test nor the validation part means anything."""


MOST_LISTED = 12
"""Classes that are listed by name."""


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

    def train(
        self, callbacks: Sequence[Callback], checkpointer: Checkpointer | None = None
    ) -> TrainResult:
        """Train a network.

        Args:
            callbacks: that hear of every record.
            checkpointer: keeps the run's state, and has the state to resume from; None to keep nothing.
        """

    @property
    def scorer(self) -> Scorer:
        """What predictions of the test part are scored by."""

    @property
    def clusters(self) -> NDArray[Any] | None:
        """Numbers of the test rows that belong together, (rows,); None where each stands for itself."""

    @property
    def times(self) -> NDArray[Any] | None:
        """Times of the test rows, (rows,), where these are the latest; else None."""

    @property
    def latest(self) -> float | None:
        """Encoded target of the latest training rows, a number; None where they have no order."""

    @property
    def folds(self) -> Sequence[Any]:
        """Parts of a cross-validation; none without `--cv`."""

    def fold(self, number: int) -> Prepared:
        """Prepare one of these parts.

        Args:
            number: of the fold, from 0.
        """

    def test_outputs(self, model: nn.Module) -> NDArray[Any]:
        """Compute a network's outputs for the test part, (rows, outputs)."""

    def train_arrays(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return inputs (rows, features) and targets of the training part, for baselines."""

    def test_arrays(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return those of the test part."""

    @property
    def mean(self) -> float:
        """Mean of the training rows' targets, for numbers; else 0."""

    def test_pixels(self) -> NDArray[np.uint8] | None:
        """Return the images of the test part, (images, side, side, channels); None for a table."""

    def record(self) -> dict[str, Any]:
        """Return what `senn predict` needs besides the network, JSON-able."""


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
        # The checksum is that of the numbers, however they lie in memory.
        content = np.ascontiguousarray(array)
        # Without these, the same bytes in another shape would have the same checksum.
        total.update(f"{content.dtype} {content.shape}".encode())
        total.update(content.data if content.size else b"")
    return total.hexdigest()


def class_rows(labels: Sequence[Any], *parts: NDArray[Any]) -> list[int]:
    """Count the rows of each class.

    Args:
        labels: the classes.
        *parts: (n,) class numbers.

    Returns:
        Counts in the order of the labels.
    """
    return [int(n) for n in np.bincount(np.concatenate(parts), minlength=len(labels))]


def class_line(what: str, labels: Sequence[Any], counts: Sequence[int]) -> str:
    """Format the rows of each class, the first few by name.

    Args:
        what: the rows that are counted.
        labels: the classes.
        counts: rows of each.
    """
    named = [f"{label} ({count:,})" for label, count in zip(labels, counts, strict=True)]
    more = f" and {len(named) - MOST_LISTED:,} more" if len(named) > MOST_LISTED else ""
    return f"{what}: {', '.join(named[:MOST_LISTED])}{more}"


def no_validation_note(count: int, unit: str, recipe: TrainConfig) -> str:
    """Say that there are no rows for validation, and what follows.

    Args:
        count: rows to fit on.
        unit: what they are called.
        recipe: training configuration.
    """
    return (
        f"0 {unit} for validation: {recipe.min_validation} of {count:,} would be more than a quarter, so the network "
        "of the last epoch is kept, not the best"
    )


def part_sizes(y: Tensor, recipe: TrainConfig, validation: Tensor | None = None) -> tuple[int, int]:
    """Count the rows that training fits on, and those that it validates on.

    Args:
        y: (rows,) or (rows, 1) targets of all rows but those for the test.
        recipe: training configuration.
        validation: numbers of the rows that are held out for validation; None where training draws them.
    """
    if validation is None:
        # The same draws as training makes, so that the plan names the very rows that a run would hold out.
        generator = torch.Generator().manual_seed(recipe.seed)
        _, validation = validation_split(y, recipe.validation_share(len(y)), generator)
    return len(y) - len(validation), len(validation)


def planned(
    model: nn.Module,
    recipe: TrainConfig,
    hidden: Sequence[int],
    rows: tuple[int, int],
    unit: int,
) -> dict[str, Any]:
    """Describe the start of training and the price of growth there, JSON-able.

    Args:
        model: network before training.
        recipe: training configuration.
        hidden: widths of the hidden layers.
        rows: numbers of rows to fit on and for validation, as of `part_sizes`.
        unit: number of parameters of one more unit.

    Returns:
        Counts of rows, steps and parameters, names of the choices, and `price_per_unit` in nats per sample.
    """
    fitted, validation = rows
    plan = recipe.plan(fitted)
    return {
        "fitted_rows": fitted,
        "validation_rows": validation,
        "optimizer": recipe.optimizer,
        "policy": type(recipe.policy).__name__,
        "architecture": list(hidden),
        "parameters": count_parameters(model),
        "epochs": plan.epochs,
        "steps": plan.steps,
        "growth_until_step": plan.growth_end,
        "parameters_per_unit": unit,
        "price_per_unit": resolve_policy(recipe.policy).price(unit, fitted),
    }


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


def refuse_fraction(options: FitOptions) -> None:
    """Refuse a share of held-out rows where `--test` has the rows to test on.

    Raises:
        SennError: both are given.
    """
    if options.test_fraction != DEFAULTS["test_fraction"]:
        raise SennError(
            "--test-fraction can't be combined with --test: all of DATA is trained on then"
        )


def recipe_fields(options: FitOptions) -> dict[str, Any]:
    """Return the fields of a recipe that the options set."""
    record = options.to_dict()
    limits = ("epochs", "max_params", "max_flops", "max_seconds", "members")
    names = ("seed", "threads", "optimizer", *limits, "ascent_steps")
    return {name: record[name] for name in names if record[name] is not None}


def check_start(model: nn.Module, recipe: TrainConfig, shape: Sequence[int]) -> None:
    """Refuse an unknown optimizer, and a budget that the network exceeds before training.

    Args:
        model: network before training.
        recipe: training configuration.
        shape: of the network's inputs for one row.

    Raises:
        SennError: naming the optimizer or the budget.
    """
    check_optimizer(recipe.optimizer)
    # The start can't be made smaller: growth begins with these widths.
    smallest = count_parameters(model)
    if recipe.max_params is not None and recipe.max_params < smallest:
        raise SennError(
            f"--max-params {recipe.max_params:,} is less than the {smallest:,} of the network at the start"
        )
    least = 0 if recipe.max_flops is None else known_flops(model, torch.zeros(1, *shape))
    if recipe.max_flops is not None and recipe.max_flops < least:
        raise SennError(
            f"--max-flops {recipe.max_flops:,} is less than the {least:,} of the network at the start"
        )


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
    record = options.to_dict()
    names = ("tau", "alpha", "prune_fraction")
    given = {name: record[name] for name in names if record[name] is not None}
    if options.policy == "paper":
        return replace(cast(PaperPolicy, resolve_policy("paper")), **given)
    if given:
        raise SennError(f"{option_name(next(iter(given)))} belongs to --policy paper")
    prices = prices or PricePolicy()
    return prices if options.kappa is None else replace(prices, kappa=options.kappa)
