"""Section of docs/results.md on networks at smaller sizes and on other data; called by docs/results.py."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Table = Callable[[Sequence[str], Sequence[Sequence[object]]], str]

WITHIN, CHOSEN_ON, SHARE = 0.15, 3, 0.3
"""Error of a predicted size, as a logarithm, that counts as right; seeds that the rule was chosen on; the smaller share
of the rows."""


def smaller_sizes(stored: Callable[[str], Any], table: Table) -> Iterator[str]:
    """What is left of networks that are pruned without training, and sizes predicted for other data."""
    found = stored("frontier")
    tasks = list(dict.fromkeys(one["task"] for one in found))
    seeds = len({one["seed"] for one in found})
    yield "## Smaller sizes from one run\n"
    yield f"`python benchmarks/frontier.py --seeds {seeds} --out benchmarks/results/frontier.json`\n"
    yield (
        "Networks that were grown by default are pruned without any training: by the score with compensation "
        "(`senn.frontier`), by the norm of incoming weights, and at random (mean of five draws). Points of accuracy "
        f"lost on rows that neither training nor choosing has seen, mean and largest over {seeds} seeds; processor "
        "seconds of the run and of its frontier.\n"
    )
    rows = []
    for task in tasks:
        own = [one for one in found if one["task"] == task]
        cells = [
            _spread([100 * one["accuracy lost"][arm][share] for one in own])
            for share in ("0.3", "0.6")
            for arm in ("score", "magnitude", "random")
        ]
        time = [statistics.mean(one["whole"][key] for one in own) for key in _SECONDS]
        rows.append((task, *cells, f"{time[0]:.1f} and {time[1]:.1f}"))
    heads = [f"{share} %, {arm}" for share in (30, 60) for arm in ("score", "magnitude", "random")]
    yield table(("task", *heads, "seconds"), rows) + "\n"
    yield (
        "Where a network was pruned to its price already, little more can go. The other two ways move no weights that "
        "stay, so part of the difference is due to the compensation and not to the choice.\n"
    )
    yield from _other_data(found, tasks, table)


_SECONDS = ("seconds", "frontier seconds")


def _other_data(found: Sequence[Any], tasks: Sequence[str], table: Table) -> Iterator[str]:
    yield (
        "From the frontier of a run on .3 of the rows, `units_at` predicts the number of units that a run on all rows "
        "ends with, and the other way round. Logarithm of the predicted over the real number, by seed; the middle of "
        f"the frontier, which the power is fitted in, was chosen on seeds 0 to {CHOSEN_ON - 1}.\n"
    )
    ways = {"all rows from .3": "whole from part", ".3 from all rows": "part from whole"}
    rows = []
    for task in tasks:
        own = [one for one in found if one["task"] == task]
        sizes = ", ".join(f"{one['part']['units']} and {one['whole']['units']}" for one in own)
        errors = [", ".join(_signed(one[f"log error of {way}"]) for one in own) for way in ways.values()]  # fmt: skip
        rows.append((task, sizes, *errors))
    yield table(("task", "units on .3 and on all rows", *ways), rows) + "\n"
    new = [one for one in found if one["seed"] >= CHOSEN_ON]
    counts = [
        f"{_right(part, way)} of {len(part)}" for part in (found, new) for way in ways.values()
    ]
    yield (
        f"Within {WITHIN}: {counts[0]} for all rows and {counts[1]} for .3 of them; on the seeds that the rule was "
        f"not chosen on, {counts[2]} and {counts[3]}. Less was reached than was hoped for: always. For comparison, all "
        "rows from .3: no change of size "
        f"{_by_power(found, 0.0)} of {len(found)}, one power of .3 for all tasks {_by_power(found, 0.3)}.\n"
    )


def _right(part: Sequence[Any], way: str) -> int:
    errors = [one[f"log error of {way}"] for one in part]
    return sum(error is not None and abs(error) <= WITHIN for error in errors)


def _by_power(found: Sequence[Any], power: float) -> int:
    """How often the number of units grows as one power of the number of rows, within the error."""
    more = power * math.log(1 / SHARE)
    ratios = [math.log(one["part"]["units"] / one["whole"]["units"]) for one in found]
    return sum(abs(ratio + more) <= WITHIN for ratio in ratios)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.2f}, {max(values):.2f}"


def _signed(error: float | None) -> str:
    return "none" if error is None else f"{error:+.2f}"
