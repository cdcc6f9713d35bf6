"""Section of docs/results.md on bins of numbers, from the stored results of benchmarks/table_bins.py."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mean_error import mean_error
from stored_results import stored, table

Record = Mapping[str, Any]
PAIRS = (("chosen", "equal"), ("shuffled", "equal"), ("finer", "equal"), ("chosen", "shuffled"))


def table_bins() -> Iterator[str]:
    """Losses by where bins go."""
    records: list[Record] = [*stored("table_bins").values()]
    tables = [*dict.fromkeys(one["table"] for one in records)]
    runs = {(one["table"], one["fold"], one["seed"], one["arm"]): one for one in records}
    commands = sorted({one["command"] for one in records})
    yield "\n\n".join(["## Where bins of numbers go", *(f"`{one}`" for one in commands)]) + "\n"
    seeds = len({one["seed"] for one in records})
    yield (
        f"The ten tables, three folds, {seeds} seed{'s' * (seeds > 1)}, on rows of the training folds alone. *Equal*: "
        "up to eight bins for each column of numbers; *chosen*: four times as many where these say more about the "
        "target on held-out rows, and none where bins say nothing; *shuffled*: the same numbers of bins at columns "
        "that are drawn (control); *finer*: up to 32 everywhere. Log ratios of losses (log-loss or RMSE), paired by "
        "fold and seed, mean and standard error: **below 0 the first is better**. How clearly bins must tell about the "
        "target was chosen on these rows, with other seeds.\n"
    )
    changed = [name for name in tables if _columns(runs, name)]
    rows = [(name, *_ratios(runs, [name]), _columns(runs, name) or "none") for name in tables]
    rows.append(("those with columns chosen", *_ratios(runs, changed), ""))
    head = (
        "table",
        *(f"{first}, less {second}" for first, second in PAIRS),
        "finer in more than half of the fits; columns without bins",
    )
    yield table(head, rows) + "\n"


def _ratios(runs: Mapping[Any, Record], tables: Sequence[str]) -> list[str]:
    cells = []
    for first, second in PAIRS:
        ratios = [
            math.log(one["loss"] / runs[name, fold, seed, second]["loss"])
            for (name, fold, seed, arm), one in runs.items()
            if arm == first and name in tables
        ]
        cells.append(mean_error(ratios, sign=True))
    return cells


def _columns(runs: Mapping[Any, Record], name: str) -> str:
    """Columns with finer bins, and how many have none, in most fits."""
    finer: Counter[str] = Counter()
    dropped, fits = [], 0
    for (other, fold, seed, arm), one in runs.items():
        if other != name or arm != "chosen":
            continue
        equal = runs[name, fold, seed, "equal"]["bins"]
        finer.update(column for column, count in one["bins"].items() if count > equal[column])
        dropped.append(sum(count < equal[column] for column, count in one["bins"].items()))
        fits += 1
    words = [column for column, count in finer.items() if count > fits / 2]
    most = max(dropped)
    if most:
        count = str(most) if min(dropped) == most else f"{min(dropped)} to {most}"
        words.append(f"{count} of {len(equal)} without")
    return ", ".join(words)
