"""Is growing worth its operations, all of them counted?

Hypothesis: at the operations that the library's default run takes, looks included, what it grows is on held-out rows at
least as good as a fixed net of the best size for exactly these operations, better than one of its own final size from
the start, and better than growth without a criterion. Controls: `schedule` and `random` grow to the same size. It is
refuted where `best_fixed` is ahead by more than the standard error on more tasks than it is behind; the criterion is,
where `schedule` or `random` are.

Arms:

- `grown`: the library's default run. At other budgets its most epochs are scaled; what it then took is the budget.
- `scratch`: a fresh net of the size that it found, for the same operations.
- `best_fixed`: of a grid of sizes, each trained for these operations, the best on validation rows.
- `schedule`: grown to the same size from half of it, in births at fixed times, as PyTorch initializes layers.
- `random`: grown to the same size when the library grew, by its own draw and births, at places drawn.
- `grid_full`: of the same grid, each trained by the library's recipe to its own end, the best on validation rows.
- `adaptive_width`: a net that learns its widths by gradient (`adaptive_width.py`), on rows of numbers only.

Learning rates follow the operations that are spent. Every run validates on the same rows, of which the best weights are
kept; test rows are looked at once for each record. What validation costs is apart, since all arms validate alike; what
a whole grid costs is in `search flops`. Every record is written as soon as it is complete; what is there is not run
again.

    SENN_DATA=DIR python benchmarks/equal_flops.py --seeds 5 --out benchmarks/results/equal_flops.json
    SENN_DATA=DIR python benchmarks/equal_flops.py --short --tasks digits --seeds 1
"""

from __future__ import annotations

import argparse
import math
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from adaptive_width import AdaptiveMLP
from criteria import Results
from equal_flops_growth import RandomPlaces, Schedule, like, ungrown
from equal_flops_runs import BudgetedRun, evaluate, library_run, score_of, shapes_of
from equal_flops_tasks import TASKS, Problem, Size, shortened
from torch import nn

from senn.nn import MLP
from senn.training import TrainConfig

BUDGETS = (0.25, 0.5, 1.0, 2.0)
BIRTHS = 6
"""Births of the schedule, as many as the library has rounds of additions on a table."""

GRID_FIELDS = ("validation", "parameters", "flops", "steps", "seconds")

Record = Mapping[str, Any]


def grown(problem: Problem, budget: float, seed: int) -> dict[str, Any]:
    """The library's run, its most epochs scaled."""
    recipe: TrainConfig = problem.recipe(seed=seed)
    rows, *_ = problem.split(seed, recipe)
    epochs = max(1, round(budget * recipe.plan(len(rows)).epochs))
    recipe = problem.recipe(seed=seed, epochs=epochs)
    found = library_run(problem, problem.fresh(problem.start, seed), recipe)
    found["shapes"] = shapes_of(found["model"])
    return found


def fixed(
    problem: Problem, model: nn.Module, reference: Record, seed: int, **growth: Any
) -> dict[str, Any]:
    """A net trained for as many operations as the library's run took."""
    run = BudgetedRun(
        problem,
        model,
        budget=reference["flops"],
        seed=seed,
        validations=reference["epochs"],
        **growth,
    )
    return run.run()


def best_of(runs: Mapping[Size, dict[str, Any]], monitor: str) -> dict[str, Any]:
    """The best run of a grid on validation rows, with what the whole grid gave and took."""

    def figure(one: dict[str, Any]) -> float:
        value = one["validation"].get("loss", math.inf)
        return score_of(one["validation"]) if monitor == "score" else -value

    size = max(runs, key=lambda one: figure(runs[one]))
    return {
        **runs[size],
        "size": list(size),
        "search flops": sum(one["flops"] for one in runs.values()),
        "search seconds": sum(one["seconds"] for one in runs.values()),
        "grid": [
            {"size": list(size), **{key: one[key] for key in GRID_FIELDS}}
            for size, one in runs.items()
        ],
    }


def monitor_of(problem: Problem, seed: int) -> str:
    """Figure by which the library would choose."""
    _, held_out, _ = problem.split(seed, problem.recipe(seed=seed))
    return "score" if len(held_out) >= 1000 else "loss"


def best_fixed(problem: Problem, reference: Record, seed: int) -> dict[str, Any]:
    """The best size for the operations."""
    runs = {
        size: fixed(problem, problem.fresh(size, seed), reference, seed) for size in problem.grid
    }
    return best_of(runs, monitor_of(problem, seed))


def grid_full(problem: Problem, reference: Record, seed: int) -> dict[str, Any]:
    """The best size, whatever it takes."""
    recipe = problem.recipe(seed=seed, grow=False)
    runs = {size: library_run(problem, problem.fresh(size, seed), recipe) for size in problem.grid}
    return best_of(runs, monitor_of(problem, seed))


def scratch(problem: Problem, reference: Record, seed: int) -> dict[str, Any]:
    """The size that the library found, from the start."""
    return fixed(problem, like(problem, reference["shapes"], seed), reference, seed)


def schedule(problem: Problem, reference: Record, seed: int) -> dict[str, Any]:
    """The same size, grown at fixed times."""
    start = ungrown(problem, reference["shapes"], seed)
    grow = Schedule(start, BIRTHS, problem.inputs(problem.train.x[:64]))
    return fixed(problem, start.model, reference, seed, births=grow.moments, grow=grow)


def random_places(problem: Problem, reference: Record, seed: int) -> dict[str, Any]:
    """The same size, grown at places drawn."""
    start = ungrown(problem, reference["shapes"], seed)
    births = [(spent / reference["flops"], units) for spent, units in reference["births"]]
    looks_at = problem.recipe(seed=seed).max_scoring_samples
    grow = RandomPlaces(start, births, looks_at=looks_at, seed=seed)
    return fixed(problem, start.model, reference, seed, births=grow.moments, grow=grow)


def adaptive_width(problem: Problem, reference: Record, seed: int) -> dict[str, Any]:
    """Widths learned by gradient, from those that the library starts with."""
    plain = problem.fresh(problem.start, seed)
    assert isinstance(plain, MLP)
    torch.manual_seed(seed)
    model = AdaptiveMLP(problem.train.x.shape[1], problem.start, plain.body[-1].out_features)
    found = fixed(problem, model, reference, seed)
    return {**found, "widths": list(found["model"].widths)}


ARMS: dict[str, Callable[[Problem, Record, int], dict[str, Any]]] = {
    "scratch": scratch,
    "best_fixed": best_fixed,
    "schedule": schedule,
    "random": random_places,
    "grid_full": grid_full,
    "adaptive_width": adaptive_width,
}


def commit() -> str:
    """Commit of the library, with a plus where files differ from it."""

    def git(*words: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", "-C", here, *words], capture_output=True, text=True).stdout

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "../src", ".")
    return git("rev-parse", "--short=12", "HEAD").strip() + ("+" if changed else "")


class Bench:
    """Runs what is missing.

    Args:
        results: where records are kept.
        command: the command line, for the records.
    """

    def __init__(self, results: Results, command: str) -> None:
        self.results, self.about_code = results, {"commit": commit(), "command": command}

    def measure(self, problem: Problem, arm: str, budget: float, seed: int) -> dict[str, Any]:
        """One record, unless it is there already.

        Args:
            problem: the task.
            arm: name of the arm.
            budget: operations, as a multiple of those of the default run.
            seed: of everything drawn.
        """
        about = {"task": problem.name, "arm": arm, "budget": budget, "seed": seed}
        key = Results.key(**about)
        if key in self.results.records:
            return self.results.records[key]
        if arm == "grown":
            found = grown(problem, budget, seed)
            of_budget = found["flops"]
        else:
            reference = self.measure(problem, "grown", budget, seed)
            found, of_budget = ARMS[arm](problem, reference, seed), reference["flops"]
        figures = {**self.tested(problem, found), "budget flops": of_budget, **self.about_code}
        record = self.results.add(about, figures)
        print(
            f"{key}: {record['test']} {record['parameters']:,} parameters, {record['flops']:.3g} operations "
            f"({record['by kind']['looking'] / record['flops']:.0%} of looking), {record['seconds']:.1f} s",
            flush=True,
        )
        return record

    @staticmethod
    def tested(problem: Problem, found: dict[str, Any]) -> dict[str, Any]:
        """What is kept of a run, with its figures on the test rows."""
        model, loss = found.pop("model").eval(), found.pop("loss")
        figures = evaluate(model, problem.test, problem, loss).figures
        kept = {key: value for key, value in found.items() if key != "validation"}
        for name, part in (("test", figures), ("validation", found["validation"])):
            kept[name] = {"loss": part["loss"], "score": score_of(part)}
        return kept


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, seed by seed, so that all arms have as many."""
    given = sys.argv[1:] if argv is None else argv
    arguments = parse(given)
    torch.set_num_threads(1)
    command = f"python benchmarks/equal_flops.py {shlex.join(given)}".strip()
    bench = Bench(Results(arguments.out), command)
    loaded: dict[str, Problem] = {}
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for name in arguments.tasks:
            if name not in loaded:
                whole = TASKS[name]()
                loaded[name] = shortened(whole) if arguments.short else whole
            for budget in arguments.budgets:
                for arm in arguments.arms:
                    if is_sensible(loaded[name], arm, budget):
                        bench.measure(loaded[name], arm, budget, seed)
    return 0


def is_sensible(problem: Problem, arm: str, budget: float) -> bool:
    """False where an arm can't have the net, or where it would be the same at another budget."""
    if arm == "adaptive_width":
        return problem.train.x.dim() == 2 and problem.train.x.is_floating_point()
    return arm != "grid_full" or budget == 1


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arms = ["grown", *ARMS]
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS])
    parser.add_argument("--arms", nargs="+", choices=arms, default=arms)
    parser.add_argument(
        "--budgets", nargs="+", type=float, default=[*BUDGETS], help="of the default run's"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="few rows and epochs: seconds")
    parser.add_argument("--out", type=Path, help="where the records are kept, as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
