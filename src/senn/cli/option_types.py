"""Values of options, checked where they are parsed, so that an error names the option."""

from __future__ import annotations

import argparse
from typing import Any


class Once(argparse.Action):
    """Refuse an option that is given twice, of which argparse would take the last without a word."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store the value, unless there is one.

        Args:
            parser: that met the option.
            namespace: where its value goes.
            values: the value.
            option_string: the option as it was written.
        """
        former = getattr(namespace, self.dest, None)
        if former is not None:
            parser.error(
                f"{option_string} is given twice, {former!r} and {values!r}, and a run has one"
            )
        setattr(namespace, self.dest, values)


def port(text: str) -> int:
    """Read a port."""
    if not text.strip().isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, a whole number up to 65535")
    return int(text)


def seed(text: str) -> int:
    """Read a seed."""
    if not text.strip().isdigit() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2^63 - 1")
    return int(text)


def fold_count(text: str) -> int:
    """Read a number of folds."""
    if not text.strip().isdigit() or not 2 <= int(text) < 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of folds, from 2 to 999")
    return int(text)


def fraction(text: str) -> float:
    """Read a share between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        # Out of range, so that text that is no number ends in the same message.
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value


def column_kind(text: str) -> tuple[str, str]:
    """Read NAME=KIND."""
    # From the right: the name of a column may contain "=", a kind can't.
    name, equals, kind = text.rpartition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=KIND")
    return name, kind
