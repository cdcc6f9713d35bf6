"""Options of `senn fit` that decide on growth and time, and the type of positive numbers."""

from __future__ import annotations

import argparse


def positive_integer(text: str) -> int:
    """Read a whole number above 0."""
    # isdigit also refuses "1_000" and "+1", which int would take.
    value = int(text) if text.strip().isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


def add_growth_options(growth: argparse._ArgumentGroup) -> None:
    """Add the options that decide on growth to a group of arguments."""
    add = growth.add_argument
    add(
        "--max-params",
        type=positive_integer,
        metavar="N",
        help="upper limit of the number of parameters",
    )
    add(
        "--max-flops",
        type=positive_integer,
        metavar="N",
        help="upper limit of the floating-point operations of a prediction, per row",
    )
    add(
        "--members",
        type=positive_integer,
        metavar="N",
        help="tables: number of networks of the size that is found whose predictions are averaged (default: 8, fewer "
        "with more than 20,000 rows, 1 with a limit of size, or of time that leaves too little)",
    )
    add(
        "--policy",
        choices=("price", "paper"),
        help="grow if the expected decrease of the loss exceeds the price of the parameters (price, "
        "the default), or if the expansion score rises by a fraction (paper; tables then start from one "
        "rational unit without a linear shortcut)",
    )
    add(
        "--kappa",
        type=float,
        metavar="X",
        help="price policy: price of one parameter, in nats divided by the number of rows",
    )
    add("--tau", type=float, metavar="X", help="paper policy: required relative improvement")
    add(
        "--alpha",
        type=float,
        metavar="X",
        help="paper policy: required absolute improvement, as a fraction of lambda",
    )
    add(
        "--prune-fraction",
        type=float,
        metavar="X",
        help="paper policy: fraction of eta below which a unit's cost has it pruned (default: 0.01)",
    )
    add(
        "--ascent-steps",
        type=int,
        metavar="N",
        help="tables: steps of gradient ascent of candidates before they are scored (paper policy: 300)",
    )


def add_time_limit(training: argparse._ArgumentGroup) -> None:
    """Add the option that limits the time of training to a group of arguments."""
    training.add_argument(
        "--max-seconds",
        type=float,
        metavar="S",
        help="upper limit of the training's time: with less than its steps need, the run plans fewer, and ends as a "
        "shorter run does",
    )
