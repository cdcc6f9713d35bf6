"""How should a layer be born: silent, with its natural step, or with fresh weights?

One hidden layer more comes before the last map, at a quarter (*early*) or at six tenths (*late*) of the steps. All arms
of a seed have the same rows, batches, first weights and learning rates; the loss and the score are those of validation
rows at the end.

- `residual KIND`: 16 units beside a path around them, chosen by the score among 32 drawn; `silent`, with outgoing
  weights of zero, or `stepped`, with as much of their natural step as lowers the loss on held-out rows;
- `drawn KIND`: the same, but only 16 are drawn, and all taken (control);
- `fresh`: the same layer with PyTorch's own initialization in both of its maps, whatever that does to the loss;
- `identity KIND`: a layer with PReLU that is folded into the map after it;
- `none`: no layer; `start`: the layer is there from the start, with PyTorch's initialization.

Hypothesis before the run: stepped layers end no worse than silent ones, and both end below fresh ones. It is refuted
where a paired difference is beyond two standard errors on the other side. Every record is written as soon as it is
complete; what is there is not run again.

    SENN_DATA=DIR python benchmarks/layer_births.py --seeds 5 --out benchmarks/results/layer_births.json
"""

from __future__ import annotations

import argparse
import math
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from criteria import Results
from criteria_tasks import TASKS, Task
from equal_flops import commit
from torch import nn

import senn

NAMES = ("digits", "bike", "letter", "mnist")
WHEN = {"early": 0.25, "late": 0.6}
WIDTH, UNITS, DRAWN = 32, 16, 32
"""Units of the hidden layers, of the layer that comes, and candidates for it."""

KINDS, BIRTHS = ("residual", "drawn", "identity"), ("silent", "stepped")
ARMS = ("none", "start", "fresh", *(f"{kind} {birth}" for kind in KINDS for birth in BIRTHS))


class Layer(senn.Policy):
    """Takes a layer before one map, at any price.

    Args:
        place: name of the map.
        units: how many of its units.
    """

    def __init__(self, place: str, units: int) -> None:
        self.place, self.units = place, units

    def choose(self, candidates: Any, accepted: Any) -> Any:
        """The next unit there."""
        here = [one for one in candidates if (one.kind, one.place) == ("insert", self.place)]
        if len(accepted) >= self.units:
            return None
        return max(here, key=lambda one: one.held_out_gain, default=None)


def last_map(model: nn.Module) -> str:
    """Name of the map that makes the outputs."""
    return [name for name, one in model.named_modules() if isinstance(one, nn.Linear)][-1]


class Run:
    """One net through all of its steps.

    Args:
        task: the task.
        arm: what comes.
        when: at which part of the steps.
        seed: of everything drawn.
    """

    def __init__(self, task: Task, arm: str, *, when: float, seed: int) -> None:
        torch.manual_seed(seed)
        self.task, self.arm, self.seed = task, arm, seed
        self.model = task.build(dict.fromkeys(task.start, WIDTH))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=task.lr, weight_decay=0.01)
        self.moment = (
            0 if arm == "start" else math.inf if arm == "none" else round(when * task.steps)
        )
        self.jump = 0.0

    def run(self) -> dict[str, Any]:
        """Train; returns the record's figures."""
        task, batches = self.task, self.task.batches(self.seed)
        x, y, *_ = task.rows
        for step in range(task.steps):
            if step == self.moment:
                self.grow()
            rows = next(batches)
            # constant, then down over the last third
            rate = task.lr * min(1.0, 3 * (1 - step / task.steps), (step + 1) / 20)
            self.optimizer.param_groups[0]["lr"] = rate
            self.optimizer.zero_grad()
            task.loss(self.model(x[rows]), y[rows]).backward()
            self.optimizer.step()
        size = sum(one.numel() for one in self.model.parameters())
        return {**task.figures(self.model), "parameters": size, "jump": self.jump}

    def grow(self) -> None:
        """Let the layer come."""
        kind, _, birth = self.arm.partition(" ")
        task, is_identity = self.task, kind == "identity"
        x, y, *held = task.rows
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.seed))
        rows = rows[: task.looked_at]
        grower = senn.Grower(
            self.model,
            self.optimizer,
            loss=task.loss,
            moves=("depth",),
            samples=len(x),
            policy=Layer(last_map(self.model), 1 if is_identity else UNITS),
            birth=birth or "silent",
            candidate_config=senn.CandidateConfig(
                residual_units={"identity": 0, "drawn": UNITS}.get(kind, DRAWN),
                identity_bases=2 * is_identity,
            ),
            seed=self.seed,
        )
        before = self._held_loss(held)
        grower.grow([(x[rows], y[rows])])
        if kind in ("fresh", "start"):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                for module in self.model.modules():
                    if isinstance(module, senn.nn.Residual):
                        module.branch.apply(
                            lambda one: isinstance(one, nn.Linear) and one.reset_parameters()
                        )
        self.jump = self._held_loss(held) - before

    @torch.no_grad()
    def _held_loss(self, held: Sequence[torch.Tensor]) -> float:
        return float(self.task.loss(self.model(held[0]), held[1]))


def report(records: dict[str, dict[str, Any]]) -> str:
    """Mean log ratios of losses, paired by seed, with standard errors over tasks' seeds."""
    lines = []
    for when in WHEN:
        for arm in ARMS:
            for other in ("none", "residual silent"):
                ratios = [
                    math.log(one["loss"] / records[twin]["loss"])
                    for one in records.values()
                    if (one["arm"], one["when"]) == (arm, when)
                    for twin in [
                        Results.key(task=one["task"], arm=other, when=when, seed=one["seed"])
                    ]
                    if twin in records and other != arm
                ]
                if len(ratios) > 1:
                    error = statistics.stdev(ratios) / len(ratios) ** 0.5
                    lines.append(
                        f"{when:6} {arm:18} less {other:16} {statistics.fmean(ratios):+.4f} +- {error:.4f}"
                    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing."""
    given = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="where the records are kept, as JSON")
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    about = {
        "commit": commit(),
        "command": f"python benchmarks/layer_births.py {shlex.join(given)}",
    }
    results = Results(options.out)
    for name in options.tasks:
        task = TASKS[name]()
        for seed in range(options.seeds):
            for when, part in WHEN.items():
                for arm in options.arms:
                    named = {"task": name, "arm": arm, "when": when, "seed": seed}
                    if Results.key(**named) not in results.records:
                        found = Run(task, arm, when=part, seed=seed).run()
                        results.add(named, {**found, **about})
    print(report(results.records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
