"""Options of `senn fit` that decide what a run computes; saved with the run to resume it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from senn._records import from_dict


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Options of a run of `senn fit`, each named like its option of the command; None leaves the choice to senn.

    Attributes:
        data: path of a table or of a folder of images, or the name of a known data set.
        continued: folder of a finished run whose network goes on with these data (`--continue`).
        target: column to predict.
        task: what to learn.
        column: kinds of columns that are set rather than inferred, as (name, kind).
        test_fraction: share of the rows held out for the test, between 0 and 1.
        test: path of a table or a folder of images that the network is scored on, in place of held-out rows.
        group: column whose rows of one value stay together in training, validation and test.
        time: column by which the latest rows are held out for the test, and before them for validation.
        cv: number of folds on which the recipe is scored before the run; None for no cross-validation.
        metric: name of a scorer of scikit-learn's that chooses the epoch that is kept, and is among the test scores.
        encoding: character encoding of the table's text.
        decimal: decimal mark of the table's numbers.
        image_size: side of the squares that images become, in pixels.
        no_flip: never mirror images in training.
        data_dir: folder of the known image sets.
        max_params: upper limit of the number of parameters.
        max_flops: upper limit of the operations of a forward pass, per row.
        members: number of networks whose predictions are averaged.
        epochs: upper limit of the number of passes over the training rows.
        max_seconds: upper limit of the training's time.
        seed: seed of all random numbers.
        threads: number of threads that compute the steps.
        optimizer: name of the optimizer.
        policy: name of the growth policy.
        kappa: price of a parameter (price policy), in nats over the number of rows.
        tau: relative improvement of eta that is required (paper policy).
        alpha: absolute improvement of eta that is required (paper policy), as a share of lambda.
        prune_fraction: share of eta below which a unit's cost has it pruned (paper policy).
        ascent_steps: steps of gradient ascent of candidates before they are scored.
    """

    data: str
    continued: str | None = None
    target: str | None = None
    task: Literal["classification", "regression"] | None = None
    column: tuple[tuple[str, str], ...] = ()
    test_fraction: float = 0.2
    test: str | None = None
    group: str | None = None
    time: str | None = None
    cv: int | None = None
    metric: str | None = None
    encoding: str | None = None
    decimal: Literal[".", ","] | None = None
    image_size: int | None = None
    no_flip: bool = False
    data_dir: str | None = None
    max_params: int | None = None
    max_flops: int | None = None
    members: int | None = None
    epochs: int | None = None
    max_seconds: float | None = None
    seed: int = 0
    threads: int | None = None
    optimizer: str | None = None
    policy: Literal["price", "paper"] = "price"
    kappa: float | None = None
    tau: float | None = None
    alpha: float | None = None
    prune_fraction: float | None = None
    ascent_steps: int | None = None

    def with_absolute_paths(self) -> FitOptions:
        """Return the options with absolute paths, so that a run can be resumed from any working directory."""
        # Relative paths mean something else in another working directory.
        others = {name: getattr(self, name) for name in ("data_dir", "test", "continued")}
        absolute: dict[str, Any] = {name: path and _absolute(path) for name, path in others.items()}
        return replace(self, data=_absolute(self.data), **absolute)

    def arguments(self) -> list[str]:
        """Return the arguments of `senn fit` for these options: DATA, and what isn't at its default.

        Returns:
            The arguments.

        >>> FitOptions(data="wine", epochs=3, column=(("ash", "dropped"),)).arguments()
        ['wine', '--column=ash=dropped', '--epochs=3']
        """
        arguments = [self.data]
        for name, value in self.to_dict().items():
            if name == "data" or value == DEFAULTS[name]:
                continue
            if name == "column":
                arguments += [f"--column={column}={kind}" for column, kind in self.column]
            else:
                arguments.append(
                    option_name(name) if value is True else f"{option_name(name)}={value}"
                )
        return arguments

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able record, which `from_dict` reads."""
        return {**vars(self), "column": [list(pair) for pair in self.column]}

    @classmethod
    def from_dict(cls, record: object, what: str = "the record of the options") -> FitOptions:
        """Read a record made by `to_dict`.

        Args:
            record: the record, usually from JSON.
            what: subject of the error's sentence.

        Raises:
            SennError: the record isn't one.
        """
        # NaN is left to the policy, which refuses it with the range that is allowed.
        return from_dict(cls, record, what, finite=False)

    @classmethod
    def from_arguments(
        cls, arguments: Sequence[str], what: str = "the list of arguments"
    ) -> FitOptions:
        """Read the arguments that run folders of version 1 keep: DATA, `--flag` and `--name=value`.

        Args:
            arguments: the arguments.
            what: subject of the error's sentence.

        Raises:
            SennError: they aren't such arguments.
        """
        record: dict[str, Any] = {"column": []}
        for argument in arguments:
            # No argparse: a folder must be read without the command, and only this form was ever written.
            option, equals, value = argument.partition("=")
            name = "continued" if option == "--continue" else option[2:].replace("-", "_")
            if not option.startswith("--"):
                record["data"] = argument
            elif name == "column":
                # A column's name may contain "=", a kind doesn't.
                record["column"].append([*value.rpartition("=")[::2]])
            else:
                record[name] = _read(name, value) if equals else True
        return cls.from_dict(record, what)


DEFAULTS: Mapping[str, Any] = {
    one.name: [] if one.name == "column" else one.default
    for one in fields(FitOptions)
    if one.name != "data"
}
"""Default of each option, as in the records of `FitOptions.to_dict`."""

_WHOLE = (
    "image_size",
    "max_params",
    "max_flops",
    "members",
    "epochs",
    "seed",
    "threads",
    "ascent_steps",
    "cv",
)
_REAL = ("max_seconds", "test_fraction", "kappa", "tau", "alpha", "prune_fraction")


def option_name(field: str) -> str:
    """Return the name of an option as its user writes it, from that of its field."""
    named = {"data": "DATA", "continued": "--continue"}
    return named.get(field) or f"--{field.replace('_', '-')}"


def _read(name: str, text: str) -> int | float | str:
    """Convert the text of an option to a number if the option is one."""
    try:
        return int(text) if name in _WHOLE else float(text) if name in _REAL else text
    except ValueError:
        return text  # `from_dict` refuses it, by name


def _absolute(path: str) -> str:
    """Make the path of an existing file absolute; the name of a data set stays as it is."""
    return os.path.abspath(path) if os.path.exists(path) else path
