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
import inspect
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from criteria_tasks import TASKS, Task
from rivals.firefly import Firefly
from rivals.gradmax import GradMax, PublishedGradMax
from rivals.net2net import Net2Net
from rivals.selection import Chosen, largest_gradient, most_orthogonal
from rivals.tiny import Tiny
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import senn
from senn.candidates.initializers import Initializer, TorchInitialization
from senn.policies import Candidate, Criterion

WHEN = {"early": (0.05, 0.1, 0.15, 0.2), "late": (0.5, 0.54, 0.58, 0.62)}
"""Births, as fractions of all steps; each brings a quarter of the units."""

PARITY_AFTER = 20
"""Steps after a birth at which gradients of new and old units are compared."""

Make = Callable[[Task], Initializer | None]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What draws and chooses new units.

    Attributes:
        make: makes the initializer of a run; None for the library's.
        draws: `pool` draws as many as the library does, from which its score chooses; `count` just as many as come.
        criterion: figure of the score by which it chooses.
        places: `fixed` as many units for each place; `free` lets the score choose places, `random` draws them.
        looks: rows that it looks at, as a multiple of the score's; gradients are those of the first half of them.
        births: those that it can have.
        grows: False for a net of fixed widths.
        final: True for one that has its final widths from the beginning.
        equal_flops: True for as many operations as the score's run has, looking included; False for as many steps.
    """

    make: Make = lambda task: None
    draws: str = "count"
    criterion: Criterion = "held_out_gain"
    places: str = "fixed"
    looks: int = 2
    births: tuple[str, ...] = ("silent", "stepped")
    grows: bool = True
    final: bool = False
    equal_flops: bool = False


def is_spatial(task: Task) -> bool:
    """True where units are channels of convolutions."""
    return task.rows[0].dim() == 4


def fixed(**others: bool) -> Arm:
    """A net that doesn't grow."""
    return Arm(grows=False, births=("none",), **others)


ARMS: dict[str, Arm] = {
    "score": Arm(draws="pool", looks=1),
    "lower bound": Arm(draws="pool", looks=1, criterion="gain_lower_bound"),
    "random units": Arm(looks=1),
    "torch": Arm(make=lambda task: TorchInitialization(), looks=1),
    "gradient": Arm(make=lambda task: Chosen(largest_gradient, task.activation, is_spatial(task))),
    "GradMax": Arm(make=lambda task: GradMax()),
    "GradMax as published": Arm(make=lambda task: PublishedGradMax(), births=("own",)),
    "TINY": Arm(make=lambda task: Tiny()),
    "NORTH": Arm(make=lambda task: Chosen(most_orthogonal, task.activation, is_spatial(task))),
    "Firefly": Arm(make=lambda task: Firefly(task.activation, is_spatial(task))),
    "Net2Net": Arm(make=lambda task: Net2Net(), looks=1, births=("silent", "stepped", "own")),
    "score chooses places": Arm(draws="pool", looks=1, places="free"),
    "random places": Arm(draws="pool", looks=1, places="random"),
    "fixed": fixed(final=True),
    "fixed, equal FLOPs": fixed(final=True, equal_flops=True),
    "never grown, equal FLOPs": fixed(equal_flops=True),
}


@dataclass
class Counted(senn.Policy):
    """Accepts so many units at each place, the best first, at any price.

    Args:
        left: by place, how many.
        anywhere: further ones, wherever they are best.
        open: places where these may be.
        criterion: figure by which they are the best.
    """

    left: dict[str, int]
    anywhere: int = 0
    open: tuple[str, ...] = ()
    criterion: Criterion = "held_out_gain"

    def choose(
        self, candidates: Sequence[Candidate], accepted: Sequence[Candidate]
    ) -> Candidate | None:
        """The best where there are too few."""
        counts = dict.fromkeys([*self.left, *self.open], 0)
        for one in accepted:
            counts[one.place] += one.units
        extra = sum(max(count - self.left.get(place, 0), 0) for place, count in counts.items())
        wanted = {place for place, count in self.left.items() if counts[place] < count}
        if extra < self.anywhere:
            wanted |= {*self.open}
        # one place offers units by each criterion, unless they agree: then by held-out gain alone
        ours = [c for c in candidates if c.place in wanted]
        if self.criterion == "held_out_gain":
            ours = [c for c in ours if c.criterion == "held_out_gain"]
        return max(ours, key=lambda c: getattr(c, self.criterion), default=None)


def policy(task: Task, arm: Arm, generator: torch.Generator) -> Counted:
    """How many units a birth brings, and where."""
    places, each = [*task.start], task.added // 4
    if arm.places == "fixed":
        return Counted(dict.fromkeys(places, each), criterion=arm.criterion)
    total = each * len(places)
    if arm.places == "free":
        return Counted({}, total, tuple(places))
    drawn = torch.randint(len(places), (total,), generator=generator).tolist()
    return Counted({place: drawn.count(number) for number, place in enumerate(places)})


class Run:
    """One net through all of its steps.

    Args:
        task: the task.
        arm: what chooses.
        when: name of the moments of growth.
        birth: how units are born.
        seed: of everything drawn.
        flops: operations after which it ends; None for the task's number of steps.
    """

    def __init__(
        self, task: Task, arm: Arm, *, when: str, birth: str, seed: int, flops: float | None
    ) -> None:
        torch.manual_seed(seed)
        self.task, self.arm, self.birth, self.seed = task, arm, birth, seed
        self.model = task.build(task.final() if arm.final else task.start)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=task.lr, weight_decay=0.01)
        self.training_flops = self.looking_flops = self._step_flops = 0.0
        self.training_seconds = self.looking_seconds = 0.0
        self.jumps: list[float] = []
        self.parity: list[float] = []
        self.former: dict[str, int] = {}
        self.steps = task.steps
        if flops is not None:
            self.steps = round(flops / self._measured_step(torch.arange(task.batch)))
        self.rounds = {round(part * self.steps) for part in WHEN[when]} if arm.grows else set()
        self.generator = torch.Generator().manual_seed(7919 * seed + 1)
        self.grower = self._make_grower()

    def run(self) -> dict[str, Any]:
        """Train and grow; returns the record's figures."""
        batches = self.task.batches(self.seed)
        for step in range(self.steps):
            if step in self.rounds:
                self.former = self._widths()
                self._grow()
            self._step(next(batches), step)
            if step - PARITY_AFTER in self.rounds:
                self.parity.append(self._gradient_ratio())
        return {
            **self.task.figures(self.model),
            "widths": [*self._widths().values()],
            "steps": self.steps,
            "jumps": self.jumps,
            "parity": self.parity,
            "promised": [event.expected_decrease for event in self.grower.events],
            "realized": [event.realized_decrease for event in self.grower.events],
            "training flops": self.training_flops,
            "looking flops": self.looking_flops,
            "training seconds": self.training_seconds,
            "looking seconds": self.looking_seconds,
        }

    def _widths(self) -> dict[str, int]:
        return {name: len(self.model.get_submodule(name).weight) for name in self.task.start}

    def _gradient_ratio(self) -> float:
        """Length of the gradient of new units' incoming weights over that of the others', mean over places."""
        ratios = []
        for name, count in self.former.items():
            lengths = self.model.get_submodule(name).weight.grad.flatten(1).norm(dim=1)
            ratios.append(float(lengths[count:].mean() / lengths[:count].mean()))
        return sum(ratios) / len(ratios)

    def _make_grower(self) -> senn.Grower:
        task = self.task
        units = None if self.arm.draws == "pool" else task.added // 4
        return senn.Grower(
            self.model,
            self.optimizer,
            loss=task.loss,
            moves=("width",),
            samples=len(task.rows[0]),
            candidate_config=senn.CandidateConfig(units=units, initializer=self.arm.make(task)),
            seed=self.seed,
            **birth_argument(self.birth),
        )

    def _measured_step(self, rows: Tensor) -> float:
        """Operations of one step at the present widths."""
        x, y, *_ = self.task.rows
        with FlopCounterMode(display=False) as counter:
            self.task.loss(self.model(x[rows]), y[rows]).backward()
        self.optimizer.zero_grad()
        self._step_flops = float(counter.get_total_flops())
        return self._step_flops

    def _step(self, rows: Tensor, step: int) -> None:
        if not self._step_flops:
            self._measured_step(rows)
        started = time.process_time()
        x, y, *_ = self.task.rows
        # constant, then down over the last third
        rate = self.task.lr * min(1.0, 3 * (1 - step / self.steps), (step + 1) / 20)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.zero_grad()
        self.task.loss(self.model(x[rows]), y[rows]).backward()
        self.optimizer.step()
        self.training_flops += self._step_flops
        self.training_seconds += time.process_time() - started

    def _grow(self) -> None:
        started = time.process_time()
        task, x, y = self.task, *self.task.rows[:2]
        # drawn by number alone, so that all arms see the same rows in a round
        count = min(self.arm.looks * task.looked_at, len(x))
        rows = torch.randperm(len(x), generator=self.generator)[:count]
        grower = self.grower
        grower.policy = policy(task, self.arm, self.generator)
        with FlopCounterMode(display=False) as counter:
            grower.observe(x[rows], y[rows])
        events = grower.grow()
        if self.birth == "own":
            with torch.no_grad():
                before = float(task.loss(self.model(x[rows]), y[rows]))
                for event in events:
                    drawn = grower.candidate_set.widen[event.place].values
                    self._born(event.place, drawn)
                after = float(task.loss(self.model(x[rows]), y[rows]))
            self.jumps.append(after - before)
        else:
            self.jumps.append(events[0].loss_after - events[0].loss_before)
        self.looking_flops += counter.get_total_flops()
        self.looking_seconds += time.process_time() - started
        self._step_flops = 0.0

    def _born(self, place: str, drawn: Mapping[str, Tensor]) -> None:
        """Let an arm give its units outgoing weights, with incoming ones as it drew them."""
        module, weight = self.model.get_submodule(place), drawn[f"{place}.weight"].flatten(1)
        new = slice(-(self.task.added // 4), None)
        # Units that the map reads may have come in the same round: theirs are the last columns. The library may have
        # scaled units, and chose them in an order of its own.
        now = module.weight[new].flatten(1)[:, : weight.shape[1]]
        units = (F.normalize(now) @ F.normalize(weight).mT).argmax(1)
        now.copy_(weight[units])  # a view of the weight
        module.bias[new] = drawn[f"{place}.bias"][units]
        initializer: Any = self.grower.candidate_config.initializer
        initializer.born(self.model, place, units)


def birth_argument(birth: str) -> dict[str, str]:
    """The grower's argument for births, where it has one."""
    if "birth" in inspect.signature(senn.Grower).parameters:
        return {"birth": "stepped" if birth == "stepped" else "silent"}
    if birth == "stepped":
        raise SystemExit("this senn has no stepped births")
    return {}


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
        like = measure(results, task, "score", when=when, birth="silent", seed=seed)
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
    parser.add_argument("--when", nargs="+", choices=WHEN, default=[*WHEN])
    parser.add_argument(
        "--births", nargs="+", choices=("silent", "stepped", "own"), default=["silent", "own"]
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
