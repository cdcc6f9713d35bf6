"""Figures 2 and 3 for the page of results: at our settings and at the values of the paper's authors."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# What they call error or accuracy, their title, and how our settings and the authors' differ.
EXPERIMENTS = {
    "regression": (
        "error",
        "Figure 2, one-dimensional regression: squared error over the target's variance",
        "Ours: 180 steps of a natural gradient that chooses its own length and damping, 30 steps of ascent, at most 11 "
        "neurons. Tau, alpha and the rounds every 30 steps are the authors'.",
        "2,000 steps at a fixed rate and damping of 0.1, 100 candidates and 300 steps of ascent, at most 128 neurons.",
    ),
    "moons": (
        "accuracy",
        "Figure 3, half-moons: accuracy",
        "Ours: tau 2, alpha 0.01, a layer's cost 1.5, a weight decay of 0.003, at most 100 parameters. Natural "
        "gradient and the rounds every 30 steps are the authors'.",
        "tau 1, alpha 0.0025, a layer's cost 2, no decay, at most 16 units in each of at most three layers, 100 "
        "candidates and 300 steps of ascent.",
    ),
}


def experiments(
    stored: Callable[[str], Any], exists: Callable[[str], bool], table: Callable[..., str]
) -> Iterator[str]:
    """Write the sections of figures 2 and 3."""
    for name, (metric, title, ours, theirs) in EXPERIMENTS.items():
        yield f"## {title}\n\n{ours}\n"
        yield from _runs(stored(name), metric, table)
        if exists(f"{name}_full"):
            yield f"With the values of the authors' code: {theirs}\n"
            yield from _runs(stored(f"{name}_full"), metric, table)


def _runs(found: Any, metric: str, table: Callable[..., str]) -> Iterator[str]:
    """A line for each seed, and what they come to."""
    yield f"`{found['command']}`\n"
    runs = found["runs"]
    rows = [
        (r["seed"], f"{r['test'][metric]:.3g}", r["hidden"], r["parameters"], f"{r['seconds']:.0f}")
        for r in runs
    ]
    yield table(("seed", f"test {metric}", "hidden units", "parameters", "seconds"), rows)
    said = _summary([r["test"][metric] for r in runs])
    yield f"\n{said} Seconds are by the clock, while other programs ran.\n"


def _summary(values: Sequence[float]) -> str:
    """Mean, spread and median, as far as there are seeds for them."""
    if len(values) == 1:
        return "One seed: there is no spread to tell."
    return (
        f"{len(values)} seeds: mean {statistics.fmean(values):.3g}, standard deviation {statistics.stdev(values):.2g}, "
        f"median {statistics.median(values):.3g}, from {min(values):.3g} to {max(values):.3g}."
    )
