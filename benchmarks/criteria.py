"""Does the score choose better units than chance, and than other criteria do?

One trainer for all: the same rows, batches, first weights, optimizer, learning rates, places, numbers of units and
moments of growth; only what draws and chooses the new units differs, and how they are born. Counts are forced, at any
price. Every run is one record of the results, which are written as they come: what is there already is not run again.

    SENN_DATA=DIR python benchmarks/criteria.py --tasks mnist digits --seeds 5 --out criteria.json
    SENN_DATA=DIR python benchmarks/criteria.py --oracle --tasks mnist --out criteria.json

Births: `silent` with outgoing weights of zero, `stepped` as the library gives them, `own` as an arm's authors publish.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from criteria_arms import ARMS, WHEN
from criteria_run import Run
from criteria_tasks import TASKS, Task


class Results:
    """Records of runs, in a file that is written after each.

    Args:
        path: the file; None keeps them in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.records: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            self.records = json.loads(path.read_text())

    @staticmethod
    def key(**about: object) -> str:
        """Key of a record."""
        return " | ".join(str(value) for value in about.values())

    def add(self, about: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a record."""
        record = {**about, **figures}
        self.records[self.key(**about)] = record
        if self.path is not None:
            draft = self.path.with_suffix(".draft")
            draft.write_text(json.dumps(self.records, indent=0) + "\n")
            draft.replace(self.path)
        return record


def measure(
    results: Results, task: Task, name: str, *, when: str, birth: str, seed: int
) -> dict[str, Any]:
    """One run, unless it is there already.

    Args:
        results: where it is kept.
        task: the task.
        name: of the arm.
        when: name of the moments of growth.
        birth: how units are born.
        seed: of everything drawn.
    """
    arm = ARMS[name]
    flops = None
    if arm.equal_flops:  # those of the score's run, with what it looked at
        like = measure(results, task, "score", when=when, birth="stepped", seed=seed)
        flops = like["training flops"] + like["looking flops"]
    if not arm.grows and not arm.equal_flops:
        when = "never"
    about = {"task": task.name, "arm": name, "when": when, "birth": birth, "seed": seed}
    key = Results.key(**about)
    if key in results.records:
        return results.records[key]
    run = Run(task, arm, when=when if when in WHEN else "late", birth=birth, seed=seed, flops=flops)
    record = results.add(about, run.run())
    print(
        f"{key}: loss {record['loss']:.4f} score {record['score']:.4f} widths {record['widths']} "
        f"{record['training seconds']:.1f} s + {record['looking seconds']:.1f} s",
        flush=True,
    )
    return record


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, seed by seed, so that all arms have as many."""
    arguments = parse(argv)
    torch.set_num_threads(1)
    results = Results(arguments.out)
    tasks = [TASKS[name]() for name in arguments.tasks]
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for task in tasks:
            for when in arguments.when:
                if arguments.oracle:
                    from criteria_oracle import correlate

                    for birth in arguments.births:
                        if birth != "own":
                            correlate(results, task, when=when, birth=birth, seed=seed)
                    continue
                for arm in arguments.arms:
                    several = arguments.births if ARMS[arm].grows else ("none",)
                    if len(task.start) == 1 and ARMS[arm].places != "fixed":
                        continue
                    for birth in several:
                        if birth in ARMS[arm].births:
                            measure(results, task, arm, when=when, birth=birth, seed=seed)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS], metavar="ARM")
    parser.add_argument("--when", nargs="+", choices=WHEN, default=["early", "late"])
    parser.add_argument(
        "--births", nargs="+", choices=("silent", "stepped", "own"), default=["stepped"]
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument(
        "--oracle",
        action="store_true",
        help="train each of 12 candidates, and correlate figures with that",
    )
    parser.add_argument("--out", type=Path, help="where the results are kept, as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
