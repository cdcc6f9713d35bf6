"""Section of docs/results.md on data that change while a network learns; called by docs/results.py."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mean_error import error, plus_minus

Table = Callable[[Sequence[str], Sequence[Sequence[object]]], str]
Runs = Mapping[str, Mapping[str, Any]]

NAMES = {
    "senn": "senn, at most 1.5 x the parameters",
    "fixed": "fixed net",
    "fixed, 1.5 x": "fixed net, 1.5 x the parameters",
    "continual backprop": "continual backpropagation",
    "random growth": "senn's changes with random units (control)",
}
AROUND_TEN, LAST = slice(5, 14), slice(-10, None)
"""Tasks that are averaged: single ones differ by a point or two by their permutation."""


def of(runs: Runs, arm: str) -> dict[str, Mapping[str, Any]]:
    """Runs of one learner, by seed."""
    return {
        key.rpartition("/")[2]: one for key, one in runs.items() if key.rpartition("/")[0] == arm
    }


def continual(found: Mapping[str, Runs], table: Table) -> Iterator[str]:
    """Accuracies on streams of tasks, and how far what was supposed before holds."""
    yield "## Data that change\n\n`python benchmarks/continual.py permuted --out continual.json`\n"
    yield "`python benchmarks/continual.py classes --seeds 0 1 2 3 4 --out continual.json`\n"
    yield (
        "**Online permuted MNIST**: 14 x 14 pixels, 60 permutations of 4,000 images each, of which no learner is told; "
        "each image is seen once, by Adam. Percent of the images that are right before they are learned from, mean ± "
        "standard error over seeds. Supposed before the run: senn is at task 60 as good as at task 10, and above "
        "continual backpropagation.\n"
    )
    yield from _permuted(found["permuted"], table)
    yield (
        "**Classes that come two by two**, 200 steps each, with a memory of ten rows of each former class: percent "
        "of test rows of all ten classes that are right at the end. senn and its control get outputs as classes come, "
        "the others have ten from the start.\n"
    )
    yield from _classes(found, table)


def _permuted(runs: Runs, table: Table) -> Iterator[str]:
    def share(own: Mapping[str, Mapping[str, Any]], tasks: slice) -> list[float]:
        return [100 * statistics.fmean(one["scores"][tasks]) for one in own.values()]

    rows = []
    for arm, name in NAMES.items():
        own = of(runs, arm)
        singles = [[100 * one["scores"][task] for one in own.values()] for task in (9, -1)]
        means = [share(own, tasks) for tasks in (AROUND_TEN, LAST)]
        fallen = [late - early for early, late in zip(*means, strict=True)]
        size = f"{statistics.fmean(one['parameters'] for one in own.values()):,.0f}"
        cells = [_percent(values) for values in (*singles, *means)]
        rows.append((name, size, *cells, _percent(fallen, sign=True), len(own)))
    head = ("learner", "parameters", "task 10", "task 60", "tasks 6 - 14", "tasks 51 - 60", "less")
    yield table((*head, "seeds"), rows) + "\n"
    senn, rival = of(runs, "senn"), of(runs, "continual backprop")
    both = sorted({*senn} & {*rival})
    ahead = [
        100
        * (
            statistics.fmean(senn[seed]["scores"][LAST])
            - statistics.fmean(rival[seed]["scores"][LAST])
        )
        for seed in both
    ]
    yield (
        "*Less* is tasks 51 - 60 less tasks 6 - 14. Over the last ten tasks senn is ahead of continual backpropagation "
        f"by {_percent(ahead, sign=True)} points, paired by seed.\n"
    )


def _classes(found: Mapping[str, Runs], table: Table) -> Iterator[str]:
    rows = []
    for data in ("digits", "mnist"):
        senn = of(found[data], "senn")
        for arm, name in NAMES.items():
            own = of(found[data], arm)
            less = [
                100 * (one["scores"][-1] - own[seed]["scores"][-1]) for seed, one in senn.items()
            ]
            size = f"{statistics.fmean(one['parameters'] for one in own.values()):,.0f}"
            ends = [100 * one["scores"][-1] for one in own.values()]
            ahead = "-" if arm == "senn" else _percent(less, sign=True)
            rows.append((data, name, size, _percent(ends), ahead, len(own)))
    yield (
        table(("rows", "learner", "parameters", "accuracy", "senn less this", "seeds"), rows) + "\n"
    )


def _percent(values: Sequence[float], *, sign: bool = False) -> str:
    """Mean and standard error with one digit."""
    return plus_minus(statistics.fmean(values), error(values), digits=1, sign=sign)
