"""Section of docs/criteria.md on promises, from the stored results of benchmarks/criteria.py."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stored_results import table

Record = Mapping[str, Any]


def promises(records: Sequence[Record]) -> Iterator[str]:
    """What the units that the score chose promised, and what they brought by the next birth."""
    rows = []
    for birth in ("stepped", "silent"):
        for when in ("early", "late", "half", "spread"):
            for task in dict.fromkeys(one["task"] for one in records):
                mine = [
                    one
                    for one in records
                    if (one["task"], one["when"], one["birth"], one["arm"])
                    == (task, when, birth, "score")
                    and one.get("promised")
                ]
                if mine:
                    rows.append((task, when, birth, *_figures(mine)))
    if not rows:
        return
    yield (
        "\n## Promises, and what came of them\n\n*Promised* is the fall of the true loss on held-out rows with the "
        "whole natural step, *realized* what the units bring at the next birth, by ablation with compensation, on the "
        "rows of that round; of the last birth it isn't known. "
        "Births that promised nothing have no ratio and are left out of the count. "
        "Medians over births and seeds, with the quartiles of "
        "their ratio, and Spearman's rank correlation of the two. *Gradient* is the length of the gradient of new "
        "units' incoming weights over that of the others', 20 steps after the birth: mean over births.\n"
    )
    head = (
        "task",
        "when",
        "birth",
        "births",
        "promised",
        "realized over promised",
        "rank",
        "gradient",
    )
    yield table(head, rows) + "\n"


def _figures(records: Sequence[Record]) -> tuple[str, ...]:
    pairs = [
        (promised, realized)
        for one in records
        for promised, realized in zip(one["promised"], one["realized"], strict=True)
        if realized is not None and promised > 0
    ]
    parity = [value for one in records for value in one["parity"]]
    gradient = f"{statistics.fmean(parity):.2f}" if parity else "-"
    if len(pairs) < 3:
        return f"{len(pairs)}", "-", "-", "-", gradient
    low, middle, high = statistics.quantiles([realized / promised for promised, realized in pairs])
    return (
        f"{len(pairs)}",
        f"{statistics.median(promised for promised, _ in pairs):.4f}",
        f"{middle:.2f} ({low:.2f} to {high:.2f})",
        f"{_rank_correlation(pairs):.2f}",
        gradient,
    )


def _rank_correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Spearman's correlation."""
    columns = list(zip(*pairs, strict=True))
    ranks = [[sorted(column).index(value) for value in column] for column in columns]
    return statistics.correlation(*ranks) if all(len({*one}) > 1 for one in ranks) else math.nan
