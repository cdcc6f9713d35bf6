"""Write docs/criteria.md from the stored results of benchmarks/criteria.py.

python docs/criteria_page.py
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from criteria_moments import moments
from criteria_promises import promises
from criteria_twins import variants, winner
from layer_births_page import layer_births
from mean_error import error, mean_error, plus_minus
from stored_results import stored, table

HERE = Path(__file__).parent
BIRTHS = ("silent", "stepped", "own")
Record = Mapping[str, Any]

START = """# Does the score choose better than chance?

Made by `python docs/criteria_page.py` from `benchmarks/results/criteria.json`, which these commands write, run by run;
what is there is not run again. SENN_DATA names the folder with the public sets. Arms, births and seeds that
haven't run are missing here; tables say how many seeds each has.

    python benchmarks/criteria.py --out benchmarks/results/criteria.json
    python benchmarks/criteria.py --births silent own --out benchmarks/results/criteria.json
    python benchmarks/criteria.py --tasks mnist --when half spread --births stepped silent \\
        --arms score "random units" fixed --out benchmarks/results/criteria.json
    python benchmarks/criteria.py --oracle --births silent stepped --out benchmarks/results/criteria.json

One trainer for all: the same rows, batches, first weights, AdamW, learning rates (constant, down over the last third),
places, numbers of units and moments of growth. Units come in four births, at 5, 10, 15 and 20 % of the steps (*early*)
or at 50, 54, 58 and 62 % (*late*), at any price. Only what draws and chooses the new units differs, and how they are
born: *silent*, with outgoing weights of zero; *stepped*, as the library gives them; or as an arm's authors publish it
(*own*). Tables have the validation loss: mean over seeds and its standard error, and after it the difference
*score less rival*, paired seed by seed, with its standard error: **below 0 the score is better**.
"""

TASKS = {
    "mnist": "12,000 rows of MNIST, 784-[10]-10 to 42 units, 15 epochs",
    "digits": "the digits of scikit-learn, 64-[10]-10 to 42 units",
    "bike": "hired bicycles an hour, 4,000 rows, 12-[8]-[8]-1 to 32 and 32 units, least squares",
    "california": "prices of houses, 4,000 rows, 13-[8]-[8]-1 to 32 and 32 units, least squares",
    "letter": "printed letters, 4,000 rows, 16-[8]-[8]-26 to 32 and 32 units",
    "cifar": "4,000 images of CIFAR-10 (JPEG copy) at 16 x 16, four convolutions, [6] and [6] channels to 22 and 22",
    "text": "characters of plays, a transformer of width 32 with two blocks, feed-forward layers of [16] to 64",
}

ARMS = {
    "score": "the library: 64 to 256 units drawn, half along the data, chosen by held-out gain times what is new",
    "lower bound": "the same, chosen by the lower bound of the gain (Theorem 3.2)",
    "random units": "units of the same draw, not chosen",
    "torch": "units as PyTorch initializes layers",
    "gradient": "of the same draw, the longest gradients of outgoing weights",
    "GradMax": "right singular vectors of output gradients times inputs (arXiv 2201.05125, with zero outgoing weights)",
    "GradMax as published": "incoming weights of zero, left singular vectors as outgoing ones",
    "TINY": "the same of residual gradients, in the geometry of the inputs (arXiv 2405.19816)",
    "NORTH": "of the same draw, the activations that existing units explain least (arXiv 2202.08539, NORTH-Select)",
    "Firefly": "new units and perturbed copies, moved uphill in the gradient, the best kept (arXiv 2102.08574)",
    "Net2Net": "copies of existing units, with noise; its own birth shares what they pass on (arXiv 1511.05641)",
    "score chooses places": "the score chooses units *and* places",
    "random places": "the score chooses units, places are drawn",
    "fixed": "a net of the final size from the beginning, as many steps",
    "fixed, equal FLOPs": "the same, as many operations as the score's run, looking included",
    "never grown, equal FLOPs": "the small net, as many operations",
}


def of(records: Sequence[Record], key: str = "loss", **about: str) -> dict[int, float]:
    """A figure by seed."""
    return {
        one["seed"]: one[key]
        for one in records
        if all(one[name] == value for name, value in about.items())
    }


def differences(
    records: Sequence[Record], task: str, when: str, arm: str, birth: str
) -> list[float]:
    """Log ratios of validation loss, score over rival, both with the same birth; a rival's own against the default."""
    mine = of(records, task=task, arm="score", when=when, birth=reference_birth(records, birth))
    theirs = rival(records, task, when, arm, birth)
    return [math.log(mine[seed] / theirs[seed]) for seed in sorted({*mine} & {*theirs})]


def reference_birth(records: Sequence[Record], birth: str) -> str:
    """The score's birth that a rival's is compared with."""
    if birth in ("silent", "stepped"):
        return birth
    return "stepped" if any(one["birth"] == "stepped" for one in records) else "silent"


def rival(
    records: Sequence[Record], task: str, when: str, arm: str, birth: str
) -> dict[int, float]:
    """A rival's losses by seed; a net that is fixed has no moment of growth."""
    return of(records, task=task, arm=arm, birth=birth, when="never" if arm == "fixed" else when)


def task_tables(records: Sequence[Record]) -> Iterator[str]:
    """One table for each task and moment."""
    for task, about in TASKS.items():
        mine = [one for one in records if one["task"] == task]
        if not mine:
            continue
        yield f"\n## {task}\n\n{about}.\n"
        for when in ("early", "late"):
            rows = []
            for arm in ARMS:
                for birth in (*BIRTHS, "none"):
                    losses = rival(mine, task, when, arm, birth)
                    if losses:
                        rows.append(task_row(mine, task, when, arm, birth))
            head = ("units from", "birth", "seeds", "loss", "accuracy or R²", "score less rival")
            yield f"\n{when}:\n\n{table((*head, 'change of the loss at births'), rows)}\n"


def task_row(
    records: Sequence[Record], task: str, when: str, arm: str, birth: str
) -> Sequence[str]:
    """One arm on one task."""
    losses = rival(records, task, when, arm, birth)
    moment = "never" if arm == "fixed" else when
    about = {"task": task, "arm": arm, "when": moment, "birth": birth}
    scores = [*of(records, "score", **about).values()]
    jumps = [sum(one) for one in of(records, "jumps", **about).values() if one]
    mine = of(records, task=task, arm="score", when=when, birth=reference_birth(records, birth))
    shared = sorted({*mine} & {*losses})
    less = [mine[seed] - losses[seed] for seed in shared]
    return (
        arm,
        birth,
        f"{len(losses)}",
        mean_error([*losses.values()]),
        f"{statistics.fmean(scores):.4f}",
        "-" if arm == "score" or not less else mean_error(less, sign=True),
        f"{statistics.fmean(jumps):+.4f}" if jumps else "-",
    )


def summary(records: Sequence[Record]) -> Iterator[str]:
    """Over all tasks: the mean log ratio of losses, every task and moment weighing the same."""
    yield "\n## All tasks together\n"
    yield (
        "Logarithm of the ratio of validation losses, score over rival, below 0 where the score is better: mean over "
        "tasks, seeds averaged first, with the standard error over tasks and seeds; in how many tasks it is better.\n"
    )
    for when in ("early", "late"):
        rows = []
        for arm in ARMS:
            for birth in (*BIRTHS, "none"):
                by_task = {
                    task: found
                    for task in TASKS
                    if (found := differences(records, task, when, arm, birth))
                }
                if arm == "score" or not by_task:
                    continue
                means = [statistics.fmean(found) for found in by_task.values()]
                # the error of a mean of tasks' means, each with its own over seeds
                squares = [error(found) ** 2 for found in by_task.values() if len(found) > 1]
                spread = math.sqrt(sum(squares)) / len(squares) if squares else math.nan
                better = sum(mean < 0 for mean in means)
                rows.append(
                    (
                        arm,
                        birth,
                        plus_minus(statistics.fmean(means), spread, 3, sign=True),
                        f"{better} of {len(means)}",
                    )
                )
        yield f"{when}:\n\n{table(('rival', 'birth', 'log ratio', 'score better in'), rows)}\n"


def pairs(records: Sequence[Record], one: str, other: str, birth: str) -> list[list[float]]:
    """Log ratios of two arms' losses by task and moment, paired by seed."""
    found = []
    for task in TASKS:
        for when in ("early", "late"):
            mine, theirs = (
                of(records, task=task, arm=arm, when=when, birth=birth) for arm in (one, other)
            )
            if shared := sorted({*mine} & {*theirs}):
                found.append([math.log(mine[seed] / theirs[seed]) for seed in shared])
    return found


def findings(records: Sequence[Record]) -> Iterator[str]:
    """The comparisons that matter most, over everything that was run."""
    yield (
        "\n## In short\n\nPairs are runs of the same task, moment, seed and birth. Means weigh each task and moment "
        "alike; their standard error is that over tasks and moments.\n"
    )
    rows = []
    for birth in ("silent", "stepped"):
        for one, other in (
            ("score", "random units"),
            ("lower bound", "random units"),
            ("lower bound", "score"),
            ("random places", "score"),
            ("score chooses places", "score"),
        ):
            found = pairs(records, one, other, birth)
            if len(found) > 1:
                every = [value for several in found for value in several]
                means = [statistics.fmean(several) for several in found]
                better = sum(value < 0 for value in every)
                mean = plus_minus(statistics.fmean(means), error(means), 3, sign=True)
                rows.append((f"{one} over {other}", birth, f"{better} of {len(every)}", mean))
    yield table(("loss of", "birth", "pairs below 0", "mean log ratio"), rows) + "\n"


def births(records: Sequence[Record]) -> Iterator[str]:
    """What a stepped birth does, arm by arm."""
    rows = []
    for arm in ARMS:
        for when in ("early", "late"):
            found = []
            for task in TASKS:
                silent, stepped = (
                    of(records, task=task, arm=arm, when=when, birth=birth)
                    for birth in ("silent", "stepped")
                )
                found += [math.log(stepped[s] / silent[s]) for s in {*silent} & {*stepped}]
            if found:
                rows.append((arm, when, f"{len(found)}", mean_error(found, sign=True)))
    if rows:
        yield "\n## Stepped against silent births\n\nLog ratio of validation losses, below 0 where the step helps.\n"
        yield table(("units from", "when", "runs", "stepped over silent"), rows) + "\n"


def looking(records: Sequence[Record]) -> Iterator[str]:
    """What choosing costs."""
    rows = []
    for arm in ARMS:
        ratios, seconds = defaultdict(list), []
        for one in records:
            if one["arm"] == arm and one.get("looking flops"):
                ratios[one["task"]].append(one["looking flops"] / one["training flops"])
                seconds.append(one["looking seconds"] / one["training seconds"])
        if seconds:
            cells = [f"{statistics.fmean(ratios[t]):.2f}" if ratios[t] else "-" for t in TASKS]
            rows.append((arm, *cells, f"{statistics.fmean(seconds):.2f}"))
    yield (
        "\n## What looking costs\n\nOperations of the four looks over those of training, by task, counted in matrix "
        "products and convolutions; and processor time, which has all else in it. These nets are tiny: a look at "
        "thousands of rows weighs more than it would in any larger one.\n"
    )
    yield table(("units from", *TASKS, "time, all tasks"), rows) + "\n"


def oracle(records: Sequence[Record]) -> Iterator[str]:
    """Rank correlations with what training makes of candidates."""
    mine = [one for one in records if one["arm"].startswith("oracle")]
    if not mine:
        return
    yield (
        "\n## The oracle\n\nTwelve candidates of the library's draw, each added to a copy with an optimizer of its "
        "own and trained on the same batches; Spearman's correlation of each figure with the fall of the validation "
        "loss that the unit brought, mean over tasks, places and seeds, with the standard error over these. "
        f"It has run on {', '.join(dict.fromkeys(one['task'] for one in mine))}.\n"
    )
    names = [*mine[0]["correlations"]["after 100"]]
    for birth in ("silent", "stepped"):
        rows = []
        for when in ("early", "late"):
            chosen = [one for one in mine if one["birth"] == birth and one["when"] == when]
            for steps in ("after 20", "after 100", "after 300"):
                cells = []
                for name in names:
                    values = [one["correlations"][steps][name] for one in chosen]
                    values = [value for value in values if not math.isnan(value)]
                    cells.append(
                        plus_minus(statistics.fmean(values), error(values), 2, sign=True)
                        if values
                        else "-"
                    )
                if chosen:
                    rows.append((when, f"{steps} steps", f"{len(chosen)}", *cells))
        if rows:
            yield f"{birth}:\n\n{table(('when', 'trained', 'looks', *names), rows)}\n"


def main() -> None:
    """Write the page."""
    everything = [*stored("criteria").values()]
    records = [one for one in everything if not one["arm"].startswith("oracle")]
    arms = table(("units from", "what"), [*ARMS.items()])
    parts = [START, arms, ""]
    for section in (findings, summary, moments, promises, births, task_tables, looking):
        parts += section(records)
    parts += [*oracle(everything), *layer_births(), *winner(), *variants()]
    (HERE / "criteria.md").write_text("\n".join(parts).rstrip() + "\n")


if __name__ == "__main__":
    main()
