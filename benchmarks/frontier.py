"""What is left of a trained network at smaller sizes, and what one run says about the size for other data?

Networks are grown by default on all rows of a task, and on .3 of them. Those of all rows are pruned without any
training by the score (`senn.frontier`), by the size of incoming weights, and at random; what is lost is accuracy on
rows that neither training nor the choice of the network has seen. The number of units for all rows is predicted from
the run on .3 of them, and the other way round, and held against that of the real run.

    SENN_DATA=DIR python benchmarks/frontier.py --seeds 6 --out benchmarks/results/frontier.json

The range of the frontier that the prediction is fitted in was chosen on seeds 0 to 2; later ones are a test of it.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from criteria_tasks import TASKS, Task
from torch import Tensor, nn
from torch.nn import functional as F

import senn
from senn.errors import SennError
from senn.events import Frontier
from senn.surgery import Prune, transaction
from senn.training import TrainConfig, train

SHARE, LOOKED_AT, RANDOM_DRAWS = 0.3, 4096, 5
REMOVED = (0.3, 0.6)


@torch.no_grad()
def figures(model: nn.Module, task: Task) -> dict[str, float]:
    """Loss and accuracy on the task's validation rows, which training doesn't see."""
    x, y = task.rows[2:]
    outputs = model(x)
    accuracy = (outputs.argmax(1) == y).float().mean()
    return {"loss": F.cross_entropy(outputs, y).item(), "accuracy": accuracy.item()}


def grown(task: Task, rows: Tensor, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """Grow a network on some rows, with its figures."""
    x, y = task.rows[0][rows], task.rows[1][rows]
    started = time.process_time()
    outputs = int(task.rows[1].max()) + 1
    result = train(
        x, y, task="classification", outputs=outputs, recipe=TrainConfig(seed=seed, members=1)
    )
    about = {
        "rows": len(rows),
        "architecture": list(result.architecture),
        "parameters": result.parameters,
        "kept": result.kept,
        "seconds": time.process_time() - started,
        **figures(result.model, task),
    }
    return result.model, about


def measured(model: nn.Module, task: Task, rows: Tensor) -> tuple[Frontier, float]:
    """Frontier of a network, and its processor time in seconds."""
    chosen = rows[:LOOKED_AT]
    batch = task.rows[0][chosen], task.rows[1][chosen]
    started = time.process_time()
    found = senn.frontier(model, F.cross_entropy, [batch], lambda net: figures(net, task))
    return found, time.process_time() - started


def pruned(model: nn.Module, task: Task, order: Sequence[tuple[str, int]]) -> dict[str, float]:
    """Figures without the given units, whose place nothing takes."""
    smaller = copy.deepcopy(model)
    graph = senn.analyze(smaller, task.rows[0][:8])
    gone: dict[str, list[int]] = {}
    for name, unit in order:
        if len(gone.setdefault(name, [])) < graph.group(name).width - 1:
            gone[name].append(unit)
    moves = [Prune(name, tuple(sorted(units)), {}) for name, units in gone.items() if units]
    transaction(smaller, moves, graph)
    return figures(smaller, task)


def controls(model: nn.Module, task: Task, counts: Sequence[int]) -> dict[str, list[float]]:
    """Accuracies with so many units removed at random and by the size of their incoming weights."""
    graph = senn.analyze(model, task.rows[0][:8])
    sizes = {
        (group.name, unit): float(row.norm())
        for group in graph.groups
        for unit, row in enumerate(model.get_submodule(group.name).weight.detach())
    }
    smallest = sorted(sizes, key=sizes.__getitem__)
    generator = torch.Generator().manual_seed(0)
    orders = [
        [smallest[i] for i in torch.randperm(len(smallest), generator=generator)]
        for _ in range(RANDOM_DRAWS)
    ]
    by_chance = [
        statistics.mean(pruned(model, task, order[:count])["accuracy"] for order in orders)
        for count in counts
    ]
    by_size = [pruned(model, task, smallest[:count])["accuracy"] for count in counts]
    return {"random": by_chance, "magnitude": by_size}


def falls(model: nn.Module, task: Task, found: Frontier) -> dict[str, dict[str, float]]:
    """Accuracy lost at each share of units removed, by each way to choose them."""
    points = [
        min(found.points, key=lambda one: abs(found.share_removed(one) - share))
        for share in REMOVED
    ]
    start = found.points[0].figures["accuracy"]
    accuracies = {"score": [point.figures["accuracy"] for point in points]}
    accuracies |= controls(model, task, [point.removed for point in points])
    return {
        arm: {f"{share:g}": start - value for share, value in zip(REMOVED, values, strict=True)}
        for arm, values in accuracies.items()
    }


def log_error(found: Frontier, factor: float, units: int) -> float | None:
    """Logarithm of a predicted number of units over the real one; None where the frontier says nothing."""
    try:
        return math.log(found.units_at(factor) / units)
    except SennError:
        return None


def record(name: str, seed: int) -> dict[str, Any]:
    """All figures of one task and seed."""
    task = TASKS[name]()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(task.rows[0]), generator=generator)
    found: dict[str, Any] = {"task": name, "seed": seed}
    frontiers = {}
    for label, rows in (("whole", order), ("part", order[: round(SHARE * len(order))])):
        model, about = grown(task, rows, seed)
        frontiers[label], seconds = measured(model, task, rows)
        about |= {"units": frontiers[label].units, "frontier seconds": seconds}
        found[label] = {**about, "frontier": frontiers[label].to_dict()}
        if label == "whole":
            found["accuracy lost"] = falls(model, task, frontiers[label])
    whole, part = frontiers["whole"], frontiers["part"]
    found["log error of whole from part"] = log_error(part, 1 / SHARE, whole.units)
    found["log error of part from whole"] = log_error(whole, SHARE, part.units)
    return found


def show(one: dict[str, Any]) -> None:
    """Print one record in two lines."""
    errors = [one[f"log error of {way}"] for way in ("whole from part", "part from whole")]
    said = ", ".join("none" if error is None else f"{error:+.2f}" for error in errors)
    print(
        f"{one['task']} {one['seed']}: {one['part']['units']} and {one['whole']['units']} units, log errors {said}"
    )
    for arm, lost in one["accuracy lost"].items():
        print(f"  {arm:>9}: " + ", ".join(f"{100 * v:.2f} points at {k}" for k, v in lost.items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every task and seed, and write the records as they come."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", default=["digits", "letter", "mnist"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for name in arguments.tasks:
            found.append(record(name, seed))
            show(found[-1])
            if arguments.out:
                arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
