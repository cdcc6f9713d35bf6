"""Options of how a table's text is read, which `fit` and `predict` have in common."""

from __future__ import annotations

from collections.abc import Callable


def add_reading_options(add: Callable[..., object]) -> None:
    """Add `--encoding` and `--decimal` to a command, by its `add_argument`."""
    add(
        "--encoding",
        metavar="NAME",
        help="character encoding of a table's text, such as latin-1 (default: by its byte order mark, else UTF-8, else "
        "the likeliest by its words)",
    )
    add(
        "--decimal",
        choices=(".", ","),
        metavar="MARK",
        help="mark before the decimals of a table's numbers, . or , (default: the only one that fits)",
    )
