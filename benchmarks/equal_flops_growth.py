"""Growth without a criterion, for `equal_flops.py`: by schedule, and of units at random places.

Both end with the size that the library's run found. They start with half of its units at each place, or with as many
as that run started with where these are fewer: to double a net is what most schedules do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from criteria_arms import Counted
from equal_flops_runs import BudgetedRun
from equal_flops_tasks import Problem, reset
from torch import Tensor, nn

import senn
from senn.checkpoint.module_shapes import resize_like
from senn.graph import ChannelGroup, DependencyGraph
from senn.surgery import Prune, Widen, apply_moves, transaction
from senn.training.builders import loss_function

SCHEDULE_END = 0.25
"""Fraction of the operations after which the schedule adds no more; later births cost accuracy."""

PROBE = 64


def like(problem: Problem, shapes: dict[str, Any], seed: int) -> nn.Module:
    """A fresh net of the size that the library's run found."""
    model = problem.fresh(problem.start, seed)
    resize_like(model, shapes)
    torch.manual_seed(seed)
    return reset(model)


def growable(graph: DependencyGraph) -> dict[str, ChannelGroup]:
    """Places that the library could widen unit by unit."""
    groups = (group for group in graph.groups if not group.norms and group.granularity == 1)
    return {group.name: group for group in groups}


@dataclass
class Ungrown:
    """A net before the growth that ends with the library's size.

    Attributes:
        model: fresh.
        graph: its places.
        missing: units that each place has to gain.
    """

    model: nn.Module
    graph: DependencyGraph
    missing: dict[str, int]


def ungrown(problem: Problem, shapes: dict[str, Any], seed: int) -> Ungrown:
    """Make the net that the library's size is grown from."""
    model = like(problem, shapes, seed)
    inputs = problem.inputs(problem.train.x[:PROBE])
    graph = senn.analyze(model, inputs)
    first = growable(senn.analyze(problem.fresh(problem.start, seed), inputs))
    missing = {
        name: group.width - min(first[name].width, max(1, group.width // 2))
        for name, group in growable(graph).items()
        if name in first
    }
    last = {name: tuple(range(count)) for name, count in missing.items() if count}
    moves = [Prune(name, units) for name, units in last.items()]
    if moves:
        apply_moves(model, moves, graph)
        graph = senn.analyze(model, inputs)
    torch.manual_seed(seed)
    return Ungrown(reset(model), graph, missing)


def drawn_rows(group: ChannelGroup, model: nn.Module, units: int) -> dict[str, Tensor]:
    """Rows of new units, as PyTorch initializes linear layers and convolutions."""
    values = {}
    for dim in group.dims_of("producer"):
        module = model.get_submodule(dim.module)
        weight: Tensor = module.weight
        shape = [*getattr(module, dim.tensor).shape]
        shape[dim.dim] = units * dim.index.shape[1]
        bound = (weight[0].numel()) ** -0.5
        values[dim.name] = torch.empty(shape).uniform_(-bound, bound)
    return values


class Schedule:
    """Adds units at fixed times, evenly, with PyTorch's first weights and outgoing weights of zero.

    Args:
        start: the net before, with what it lacks.
        births: number of births.
        probe: inputs by which a change is verified.
    """

    def __init__(self, start: Ungrown, births: int, probe: Tensor) -> None:
        self.start, self.births, self.probe, self.graph = start, births, probe, start.graph
        is_any = any(start.missing.values())
        last = births + 1 if is_any else 1
        self.moments = [SCHEDULE_END * number / births for number in range(1, last)]

    def __call__(self, run: BudgetedRun, number: int) -> None:
        """Carry out one birth."""
        moves = []
        for name, missing in self.start.missing.items():
            group = self.graph.group(name)
            units = missing * (number + 1) // self.births - missing * number // self.births
            if units:
                moves.append(Widen(name, units, drawn_rows(group, run.model, units)))
        if moves:
            receipt = transaction(
                run.model, moves, self.graph, optimizer=run.learner.optimizer, probe=self.probe
            )
            assert receipt.graph is not None
            self.graph = receipt.graph


class RandomPlaces:
    """Adds as many units as the library did, when it did, of its own draw and with its births, at places drawn.

    A round draws as many units for each place as the fullest place gets; where fewer come, they are the best of these.

    Args:
        start: the net before, with what it lacks.
        births: of the library's run: operations so far as a fraction, units.
        looks_at: rows of a look.
        seed: of places and units.
    """

    def __init__(
        self, start: Ungrown, births: Sequence[tuple[float, int]], *, looks_at: int, seed: int
    ) -> None:
        self.looks_at, self.seed = looks_at, seed
        self.generator = torch.Generator().manual_seed(7919 * seed + 1)
        self.places = [*start.missing]
        total, given = sum(start.missing.values()), sum(units for _, units in births)
        self.moments: list[float] = []
        self.counts: list[int] = []
        passed = 0
        for moment, units in births if total else ():
            before = total * passed // given
            passed += units
            self.moments.append(moment)
            self.counts.append(total * passed // given - before)

    def __call__(self, run: BudgetedRun, number: int) -> None:
        """Carry out one round."""
        drawn = torch.randint(
            len(self.places), (self.counts[number],), generator=self.generator
        ).tolist()
        if not drawn:
            return
        wanted = Counter(self.places[one] for one in drawn)
        grower = senn.Grower(
            run.model,
            run.learner.optimizer,
            loss=loss_function(run.problem.kind),
            policy=Counted(dict(wanted)),
            samples=len(run.rows),
            moves=("width",),
            candidate_config=senn.CandidateConfig(units=max(wanted.values())),
            seed=self.seed + number,
        )
        order = torch.randperm(len(run.rows), generator=self.generator)[: self.looks_at]
        (batch,) = run.rows.take(order).batches(1)
        grower.grow([run.problem.inputs.training(batch, self.generator)])
