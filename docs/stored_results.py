"""Stored results of the benchmarks and experiments, and how pages show them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STORED = Path(__file__).parents[1] / "benchmarks" / "results"


def stored(name: str) -> Any:
    """One stored results file."""
    return json.loads((STORED / f"{name}.json").read_text())


def is_stored(name: str) -> bool:
    """Return True if there is such a results file."""
    return (STORED / f"{name}.json").exists()


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def spread(values: Sequence[float], digits: int = 4) -> str:
    """Mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} ± {deviation:.{digits}f}"


def runs_of(found: Any) -> dict[str, list[dict[str, Any]]]:
    """Runs by arm."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for run in found["runs"]:
        arms.setdefault(run["arm"], []).append(run)
    return arms
