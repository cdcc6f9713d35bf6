"""Options of `senn fit` that decide what a run computes, kept with the run so that it can be resumed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from senn._records import from_dict


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """What a run of `senn fit` was asked for; each field is named like its option, and None leaves the choice to senn.

    Attributes:
        data: path of a table or of a folder of images, or the name of a known data set.
        target: column to predict.
        task: what to learn.
        column: kinds of columns that aren't to be inferred, as (name, kind).
        test_fraction: share of the rows held out for the test, between 0 and 1.
        image_size: side of the squares that images become, in pixels.
        no_flip: never mirror images in training.
        data_dir: folder of the known image sets.
        max_params: most parameters that the network may have.
        epochs: most passes over the training rows.
        seed: seed of all random numbers.
        optimizer: name of the optimizer.
        policy: name of the growth policy.
        kappa: price of a parameter (price policy), in nats over the number of rows.
        tau: relative improvement of eta that is asked for (paper policy).
        alpha: absolute improvement of eta that is asked for (paper policy), as a share of lambda.
    """

    data: str
    target: str | None = None
    task: Literal["classification", "regression"] | None = None
    column: tuple[tuple[str, str], ...] = ()
    test_fraction: float = 0.2
    image_size: int | None = None
    no_flip: bool = False
    data_dir: str | None = None
    max_params: int | None = None
    epochs: int | None = None
    seed: int = 0
    optimizer: str | None = None
    policy: Literal["price", "paper"] = "price"
    kappa: float | None = None
    tau: float | None = None
    alpha: float | None = None

    def with_absolute_paths(self) -> FitOptions:
        """The same options, readable from any working directory."""
        data_dir = None if self.data_dir is None else _absolute(self.data_dir)
        return replace(self, data=_absolute(self.data), data_dir=data_dir)

    def arguments(self) -> list[str]:
        """Arguments of `senn fit` that say the same: DATA, and every option that isn't at its default."""
        words = [self.data]
        for name, value in self.to_dict().items():
            if name == "data" or value == DEFAULTS[name]:
                continue
            if name == "column":
                words += [f"--column={column}={kind}" for column, kind in self.column]
            else:
                words.append(option_name(name) if value is True else f"{option_name(name)}={value}")
        return words

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able record."""
        return {**vars(self), "column": [list(pair) for pair in self.column]}

    @classmethod
    def from_dict(cls, record: object, what: str = "the record of the options") -> FitOptions:
        """Read a record made by `to_dict`.

        Args:
            record: the record, usually from JSON.
            what: subject of the sentence if it isn't one.

        Raises:
            SennError: the record isn't one.
        """
        return from_dict(cls, record, what, finite=False)

    @classmethod
    def from_arguments(cls, arguments: Sequence[str], what: str = "the list of arguments") -> FitOptions:
        """Read the arguments that run folders of version 1 keep: DATA, `--flag` and `--name=value`.

        Args:
            arguments: as they are kept.
            what: subject of the sentence if they aren't such arguments.

        Raises:
            SennError: they aren't such arguments.
        """
        record: dict[str, Any] = {"column": []}
        for argument in arguments:
            option, equals, value = argument.partition("=")
            name = option[2:].replace("-", "_")
            if not option.startswith("--"):
                record["data"] = argument
            elif name == "column":
                record["column"].append([*value.rpartition("=")[::2]])
            else:
                record[name] = _read(name, value) if equals else True
        return cls.from_dict(record, what)


DEFAULTS: Mapping[str, Any] = {
    one.name: [] if one.name == "column" else one.default for one in fields(FitOptions) if one.name != "data"
}
"""What each option is when nobody says anything, as `FitOptions.to_dict` has it."""

_WHOLE = ("image_size", "max_params", "epochs", "seed")
_REAL = ("test_fraction", "kappa", "tau", "alpha")


def option_name(field: str) -> str:
    """An option as its user writes it, by the name of its field."""
    return "DATA" if field == "data" else f"--{field.replace('_', '-')}"


def _read(name: str, text: str) -> int | float | str:
    """An option's value from the command line, as a number where the option is one."""
    try:
        return int(text) if name in _WHOLE else float(text) if name in _REAL else text
    except ValueError:
        return text  # `from_dict` says that it is no number


def _absolute(path: str) -> str:
    """A path to something that exists, from the root; anything else, such as the name of a data set, as it is."""
    return os.path.abspath(path) if os.path.exists(path) else path
