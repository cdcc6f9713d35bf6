"""Section of docs/results.md on sizes on ten tables; called by docs/results.py."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mean_error import mean_error

Table = Callable[[Sequence[str], Sequence[Sequence[object]]], str]
Record = Mapping[str, Any]


def table_sizes(records: Sequence[Record], table: Table) -> Iterator[str]:
    """Grown nets beside a fixed one of 128-128."""
    seeds = len({one["seed"] for one in records})
    folds = len({one["fold"] for one in records})
    yield "## Sizes on ten tables\n\n`python benchmarks/table_sizes.py --arms grown 128-128`\n"
    yield (
        "Grown by default beside a fixed net of 128-128 with the same optimizer, epochs and stopping rule, on the same "
        f"inputs; at most 6,000 rows a table, {folds} folds, {seeds} seeds. *Less* is grown less fixed, mean ± its "
        "standard error over folds and seeds: of the score (accuracy or R²), where above 0 growing is better, and of "
        "the logarithm of the loss (log-loss or RMSE), where below 0 it is. *Varies* is the deviation of the grown "
        "size over seeds, over its mean, averaged over folds. The start of two layers of 64 was chosen by `--tuning`, "
        "which looks at no row of the test folds, with seeds 100 and 101, and how numbers are read with seeds 400 and "
        "401. The test folds had been scored before, by a version that read numbers by mean and deviation; how many "
        "rows each bin needs was settled after test rows of digits and scikit-learn's small tables had been seen.\n"
    )
    rows, scores = [], []
    for name in dict.fromkeys(one["table"] for one in records):
        mine = [one for one in records if one["table"] == name]
        by_arm = {
            arm: {(one["fold"], one["seed"]): one for one in mine if one["arm"] == arm}
            for arm in ("grown", "128-128")
        }
        grown, fixed = by_arm["grown"], by_arm["128-128"]
        pairs = [(grown[key], fixed[key]) for key in grown if key in fixed]
        less = [one["score"] - other["score"] for one, other in pairs]
        ratio = [math.log(one["loss"] / other["loss"]) for one, other in pairs]
        seconds = [one["seconds"] / other["seconds"] for one, other in pairs]
        scores.append(statistics.fmean(less))
        sizes = [statistics.fmean(one[at]["parameters"] for one in pairs) for at in (0, 1)]
        rows.append(
            (
                name,
                f"{statistics.fmean(one['score'] for one, _ in pairs):.4f}",
                f"{statistics.fmean(one['score'] for _, one in pairs):.4f}",
                mean_error(less, sign=True),
                mean_error(ratio, sign=True),
                f"{sizes[0]:,.0f}",
                f"{sizes[1]:,.0f}",
                _variation([*grown.values()]),
                f"{statistics.median(seconds):.1f}",
            )
        )
    head = (
        "table",
        "grown",
        "128-128",
        "less, score",
        "less, log loss",
        "parameters",
        "its",
        "varies",
    )
    yield table((*head, "time over its"), rows)
    better = sum(score >= 0 for score in scores)
    yield (
        f"\nGrowing has the better score on {better} of {len(scores)} tables, mean "
        f"{mean_error(scores, sign=True)} over tables.\n"
    )


def _variation(grown: Sequence[Record]) -> str:
    found = []
    for fold in {one["fold"] for one in grown}:
        sizes = [one["parameters"] for one in grown if one["fold"] == fold]
        if len(sizes) > 1:
            found.append(statistics.stdev(sizes) / statistics.fmean(sizes))
    return f"{statistics.fmean(found):.0%}" if found else "-"
