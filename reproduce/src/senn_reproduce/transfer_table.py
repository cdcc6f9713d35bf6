"""Table 1: the arms of the transfer experiment, over all seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from senn_reproduce.results import Record

ARMS = ("fixed", "grown", "scratch")


def summary(records: Sequence[Record]) -> str:
    """Write a line for each arm, mean ± standard deviation over the seeds, and what growth brought for each seed."""

    def cells(name: str, arm: str, form: str) -> str:
        values = [record[name][arm] for record in records]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return f"{f'{statistics.fmean(values):{form}} ± {spread:{form}}':>20}"

    columns: dict[str, Any] = {
        "test": ".4f",
        "train": ".4f",
        "parameters": ",.0f",
        "seconds": ",.0f",
    }
    lines = [" " * 8 + "".join(f"{name:>20}" for name in columns)]
    lines += [
        f"{arm:8}" + "".join(cells(name, arm, form) for name, form in columns.items())
        for arm in ARMS
    ]
    for arm in ("fixed", "scratch"):
        gains = [record["gain"][f"over {arm}"] for record in records]
        lines.append(
            f"grown over {arm}: {statistics.fmean(gains):+.4f} ({', '.join(f'{g:+.4f}' for g in gains)})"
        )
    return "\n".join(lines)
