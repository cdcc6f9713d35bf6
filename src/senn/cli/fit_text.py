"""What `senn fit` prints of a plan and of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from senn._text import printable
from senn.checkpoint import DESCRIPTION, WEIGHTS
from senn.cli.prepared_data import Prepared
from senn.cli.score_lines import fold_table, score_table, tested
from senn.events import Frontier
from senn.runs import FIGURE, HISTORY, RESULTS, TEST
from senn.training.progress import widths

_WITHIN = 0.01
"""Loss of validation score that the line about smaller sizes allows: a point of accuracy."""


class LinePrinter:
    """Print plain lines: names from the data are no markup, and long lines aren't wrapped."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def __call__(self, line: str) -> None:
        """Print a line."""
        # A name with a line feed in it must not look like a line of senn's.
        shown = printable(line).replace("\n", r"\n")
        self.console.print(shown, markup=False, soft_wrap=True)


def report_outcome(say: LinePrinter, out: Path, results: dict[str, Any], *, as_json: bool) -> None:
    """Print what came of a run.

    Args:
        say: printer of lines.
        out: folder of the run.
        results: content of its `results.json`.
        as_json: print the results as one JSON document instead.
    """
    if as_json:
        print(json.dumps({"out": str(out), **results}, ensure_ascii=False))
        return
    for line in fold_table(results.get("cross_validation")):
        say(line)
    if results["test"]:
        for line in score_table(results, tested(results["data"])):
            say(line)
    for note in results.get("test_notes") or ():
        say(f"note: {note}")
    members = results["members"]
    mean = f"mean of {members} networks of this size; " if members > 1 else ""
    say(
        f"hidden layers: {widths(results['architecture'])}; {mean}{results['parameters']:,} parameters; "
        f"{results['seconds']:.1f} seconds"
    )
    if results["frontier"] is not None:
        say(_smaller(Frontier.from_dict(results["frontier"]), members))
    names = (WEIGHTS, DESCRIPTION, HISTORY, RESULTS, TEST, FIGURE)
    written = [name for name in names if (out / name).exists()]
    more = "" if FIGURE in written else f"; there was no time to draw {FIGURE}"
    say(f"written to {out}: {', '.join(written)}{more}")


def _smaller(sizes: Frontier, members: int) -> str:
    """Say how small the network, or each of several, could be."""
    of = "one network, " if members > 1 else ""
    name = sizes.score_name or "loss"
    point = sizes.smallest(_WITHIN)
    share = sizes.share_removed(point)
    if not share:
        return f"without training no unit can be pruned within {_WITHIN:g} of its validation {name}"
    return (
        f"{of}pruned without training, {point.parameters:,} parameters ({share:.0%} of the units removed) would be "
        f"within {_WITHIN:g} of its validation {name}"
    )


def show_plan(say: LinePrinter, preparation: Prepared, *, as_json: bool) -> None:
    """Print what a run would do.

    Args:
        say: printer of lines.
        preparation: the data.
        as_json: print it as one JSON document instead.
    """
    about, plan = preparation.summary(), preparation.plan()
    if as_json:
        print(
            json.dumps({"task": preparation.task, "data": about, "plan": plan}, ensure_ascii=False)
        )
        return
    say(preparation.line())
    for line in preparation.details():
        say(f"  {line}")
    for note in preparation.notes:
        say(f"  note: {note}")
    say(
        f"training rows: {plan['fitted_rows']:,} to fit on, {plan['validation_rows']:,} for validation"
    )
    say(
        f"{preparation.task}, {plan['optimizer']}, {plan['policy']}: at most {plan['epochs']} epochs "
        f"({plan['steps']:,} steps), growing until step {plan['growth_until_step']:,} at the latest"
    )
    if preparation.folds:
        sizes = [len(part.test) for part in preparation.folds]
        say(
            f"before the run, {len(sizes)} networks are trained from scratch, each tested on another {min(sizes):,} to "
            f"{max(sizes):,} rows (--cv)"
        )
    # Units of different convolutions have different numbers of parameters; the plan has the largest.
    up_to = "up to " if about.get("kind") == "images" else ""
    unit = f"{up_to}{plan['parameters_per_unit']:,} parameters"
    say(
        f"starts with hidden layers {widths(plan['architecture'])}, {plan['parameters']:,} parameters; "
        f"one more unit has {unit} and has to lower the loss by {plan['price_per_unit']:.3g} nats per sample"
    )
    say("nothing was written (--dry-run)")
