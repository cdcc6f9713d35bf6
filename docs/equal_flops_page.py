"""Section of docs/results.md on grown and fixed nets at equal operations; called by docs/results.py.

python docs/equal_flops_page.py draws its figure, docs/equal_flops.png, from the stored results.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mean_error import error, mean_error

HERE = Path(__file__).parent
FIGURE = HERE / "equal_flops.png"
Table = Callable[[Sequence[str], Sequence[Sequence[object]]], str]
Record = Mapping[str, Any]

RIVALS = {
    "best_fixed": "best fixed",
    "scratch": "scratch",
    "schedule": "schedule",
    "random": "random",
    "adaptive_width": "adaptive width",
    "grid_full": "grid in full",
}
COLORS = {arm: f"C{number}" for number, arm in enumerate(("grown", *RIVALS))}
FULL = "grid_full"
"""The arm whose operations are its own, so that it has records of one budget only."""


def by_seed(records: Sequence[Record], **about: object) -> dict[int, Record]:
    """Records of one kind by seed."""
    return {
        one["seed"]: one
        for one in records
        if all(one[name] == value for name, value in about.items())
    }


def pairs(
    records: Sequence[Record], task: str, rival: str, budget: float
) -> list[tuple[Record, Record]]:
    """Grown nets and a rival's, of the same task, budget and seed."""
    grown = by_seed(records, task=task, arm="grown", budget=budget)
    theirs = by_seed(records, task=task, arm=rival, budget=1.0 if rival == FULL else budget)
    return [(grown[seed], theirs[seed]) for seed in sorted({*grown} & {*theirs})]


def less(found: Sequence[tuple[Record, Record]]) -> list[float]:
    """Test scores, grown less rival."""
    return [one["test"]["score"] - other["test"]["score"] for one, other in found]


def tasks_of(records: Sequence[Record]) -> list[str]:
    """Names of tasks, in the order of their records."""
    return [*dict.fromkeys(one["task"] for one in records)]


def equal_flops(
    stored: Callable[[str], Any], exists: Callable[[str], bool], table: Table
) -> Iterator[str]:
    """Grown nets less each rival, and on how many tasks they are ahead; nothing where no results are stored."""
    if not exists("equal_flops"):
        return
    records: list[Record] = [*stored("equal_flops").values()]
    if not records:
        return
    seeds = len({one["seed"] for one in records})
    commands = sorted({one["command"] for one in records})
    commits = sorted({one["commit"] for one in records})
    yield "## Grown and fixed nets at equal operations\n\n" + "\n\n".join(
        f"`{command}`" for command in commands
    )
    yield (
        f"\nCommit {', '.join(commits)}; {seeds} seed{'s' if seeds > 1 else ''}. Operations are those of training and "
        "of all looks (scoring, births, second moments, analysis): matrix products, convolutions, attention and "
        "factorizations. Every rival but one has exactly as many as the grown net's run took on the same seed, with a "
        "learning rate that follows them. *Best fixed* is the best of a grid of sizes by validation rows, *scratch* a "
        "fixed net of the grown net's size, *schedule* grows to that size at fixed times, *random* by the library's "
        "draw at places drawn, *adaptive width* learns its widths by gradient (arXiv 2501.15889, written anew), and "
        "*grid in full* trains each size to its own end, whatever that takes. Differences are of test scores "
        "(accuracy or R²), paired by seed, mean ± standard error: **above 0 the grown net is better**.\n"
    )
    yield from differences(records, table)
    yield from sizes(records, table)
    yield from standing(records, table)
    if FIGURE.exists():
        yield "![Validation loss over operations and over parameters](equal_flops.png)\n"


def differences(records: Sequence[Record], table: Table) -> Iterator[str]:
    """A line for each task at the operations of the default run."""
    arms = [rival for rival in RIVALS if any(one["arm"] == rival for one in records)]
    rows = []
    for task in tasks_of(records):
        grown = by_seed(records, task=task, arm="grown", budget=1.0)
        if not grown:
            continue
        cells = []
        for rival in arms:
            found = less(pairs(records, task, rival, 1.0))
            cells.append(mean_error(found, sign=True) if found else "-")
        score = statistics.fmean(one["test"]["score"] for one in grown.values())
        rows.append((task, f"{score:.4f}", *cells))
    if rows:
        yield table(("task", "grown", *(f"less {RIVALS[one]}" for one in arms)), rows) + "\n"


def sizes(records: Sequence[Record], table: Table) -> Iterator[str]:
    """What nets of the default run's operations weigh, and what these go to."""
    rows = []
    for task in tasks_of(records):
        grown = [*by_seed(records, task=task, arm="grown", budget=1.0).values()]
        if not grown:
            continue
        flops = statistics.fmean(one["flops"] for one in grown)
        looking = statistics.fmean(one["by kind"]["looking"] / one["flops"] for one in grown)
        cells = [f"{statistics.fmean(one['parameters'] for one in grown):,.0f}"]
        for rival in ("best_fixed", FULL):
            theirs = [*by_seed(records, task=task, arm=rival, budget=1.0).values()]
            found = [one["parameters"] for one in theirs]
            cells.append(f"{statistics.fmean(found):,.0f}" if found else "-")
        full = [other["flops"] / one["flops"] for one, other in pairs(records, task, FULL, 1.0)]
        ratio = f"{statistics.fmean(full):.2f}" if full else "-"
        rows.append((task, *cells, f"{flops:.2g}", f"{looking:.0%}", ratio))
    if rows:
        head = ("task", "parameters, grown", "best fixed", "grid in full", "operations, grown")
        yield table((*head, "of these looking", "grid in full, over them"), rows) + "\n"


def standing(records: Sequence[Record], table: Table) -> Iterator[str]:
    """On how many tasks grown nets are ahead or behind by more than the standard error, by budget and rival."""
    yield (
        "Tasks on which the grown net is ahead, level or behind, by more than the standard error of the difference of "
        "scores, where at least two seeds have run; and the logarithm of the ratio of test losses, grown over rival, "
        "mean over tasks ± its standard error: below 0 the grown net is better.\n"
    )
    rows = []
    for budget in sorted({one["budget"] for one in records}):
        for rival, name in RIVALS.items():
            every = [pairs(records, task, rival, budget) for task in tasks_of(records)]
            every = [found for found in every if len(found) > 1]
            if not every:
                continue
            gaps = [(statistics.fmean(less(found)), error(less(found))) for found in every]
            ahead = sum(gap > spread for gap, spread in gaps)
            behind = sum(gap < -spread for gap, spread in gaps)
            ratios = [statistics.fmean(map(log_ratio, found)) for found in every]
            level = len(every) - ahead - behind
            rows.append((f"{budget:g}", name, ahead, level, behind, mean_error(ratios, sign=True)))
    head = ("operations, of the default run's", "rival", "ahead", "level", "behind")
    if rows:
        yield table((*head, "log ratio of losses"), rows) + "\n"


def log_ratio(pair: tuple[Record, Record]) -> float:
    """Logarithm of the ratio of test losses of two records."""
    return math.log(pair[0]["test"]["loss"] / pair[1]["test"]["loss"])


def draw(records: Sequence[Record], path: Path) -> None:
    """Draw validation loss so far over operations and over parameters, a row of panels for each task.

    Args:
        records: of any arms; the first seed of the default run's operations is drawn.
        path: of the picture.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    seed = min(one["seed"] for one in records)
    shown = [one for one in records if one["seed"] == seed and one["budget"] == 1]
    names = tasks_of(shown)
    figure, panels = plt.subplots(
        len(names), 2, figsize=(9, 2.4 * len(names)), squeeze=False, layout="constrained"
    )
    for task, (left, right) in zip(names, panels, strict=True):
        for one in (one for one in shown if one["task"] == task and one["arm"] != FULL):
            points = [point for point in one["curve"] if math.isfinite(point[2])]
            arm = one["arm"]
            style = {"label": arm.replace("_", " "), "color": COLORS[arm]}
            style["lw"] = 2 if arm == "grown" else 1
            best = [min(point[2] for point in points[: end + 1]) for end in range(len(points))]
            left.plot([point[0] for point in points], best, **style)
            right.plot(
                [point[1] for point in points], best, marker=".", markersize=3, alpha=0.7, **style
            )
            right.plot(points[-1][1], best[-1], "o", color=COLORS[arm])
        left.set(title=task, xlabel="operations", ylabel="best validation loss so far")
        right.set(xlabel="parameters")
        for panel in (left, right):
            panel.set(xscale="log", yscale="log")
    panels[0][0].legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    results = HERE.parent / "benchmarks" / "results" / "equal_flops.json"
    draw([*json.loads(results.read_text()).values()], FIGURE)
