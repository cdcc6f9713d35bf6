"""What every experiment writes down: `results.json`, and a table for people."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def write_results(
    runs: Sequence[Record], path: Path, command: str, *, arms: bool = False, **more: Any
) -> None:
    """Write all runs with mean, standard deviation and median of every figure of theirs as JSON.

    Args:
        runs: one record for each seed; figures may lie one level deep, as in `{"test": {"accuracy": .9}}`.
        path: the file; its folder is made.
        command: how to run the experiment again.
        arms: whether the runs are of several `arm`s: means are then kept for each, under `arms`.
        more: what else there is to say.
    """
    means = (
        {"arms": {arm: _means(of) for arm, of in by_arm(runs).items()}} if arms else _means(runs)
    )
    document = {"command": command, "runs": list(runs), **means, **more}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")


def by_arm(runs: Sequence[Record]) -> dict[str, list[Record]]:
    """Sort the runs by their arm."""
    arms: dict[str, list[Record]] = {}
    for run in runs:
        arms.setdefault(run["arm"], []).append(run)
    return arms


def _means(runs: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Mean, standard deviation and median of every figure."""
    columns = {
        name: [figures(run)[name] for run in runs] for name in figures(runs[0]) if name != "seed"
    }
    spread: Callable[[list[float]], float] = statistics.stdev if len(runs) > 1 else lambda _: 0.0
    return {
        "mean": {name: statistics.fmean(values) for name, values in columns.items()},
        "std": {name: spread(values) for name, values in columns.items()},
        "median": {name: statistics.median(values) for name, values in columns.items()},
    }


def figures(run: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a record, those one level deep under `outer.inner`."""
    flat = {}
    for name, value in run.items():
        inner = (
            {f"{name}.{key}": v for key, v in value.items()}
            if isinstance(value, Mapping)
            else {name: value}
        )
        flat.update({key: float(v) for key, v in inner.items() if isinstance(v, int | float)})
    return flat


def table(runs: Sequence[Record]) -> str:
    """One line for each run and one for the mean."""
    rows = [figures(run) for run in runs]
    names = list(rows[0])
    mean = {name: statistics.fmean(row[name] for row in rows) for name in names}
    lines = ["  ".join(f"{name:>14}" for name in names) + "  hidden"]
    lines += [
        _line(row, names) + f"  {'-'.join(map(str, run['hidden']))}"
        for row, run in zip(rows, runs, strict=True)
    ]
    return "\n".join([*lines, _line({**mean, "seed": "mean"}, names)])


def _line(row: Mapping[str, float | str], names: Sequence[str]) -> str:
    return "  ".join(
        f"{row[n]:>14}" if isinstance(row[n], str) else f"{row[n]:>14.4g}" for n in names
    )
