"""Arms of `criteria.py`: what draws and chooses new units, and the policy that takes so many of them.

Births: `silent` with outgoing weights of zero, `stepped` as the library gives them, `own` as an arm's authors publish.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from criteria_tasks import Task
from rivals.firefly import Firefly
from rivals.gradmax import GradMax, PublishedGradMax
from rivals.net2net import Net2Net
from rivals.selection import Chosen, largest_gradient, most_orthogonal
from rivals.tiny import Tiny

import senn
from senn.candidates.initializers import Initializer, TorchInitialization
from senn.policies import Candidate, Criterion

WHEN = {
    "early": (0.05, 0.1, 0.15, 0.2),
    "late": (0.5, 0.54, 0.58, 0.62),
    "half": (0.5,),
    "spread": tuple(epoch / 15 for epoch in range(1, 9)),
}
"""Births, as fractions of all steps; each brings as many units as any other."""

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


def units_at_birth(task: Task, when: str) -> int:
    """How many units a birth brings to each place."""
    return task.added // len(WHEN[when])


def policy(task: Task, arm: Arm, *, when: str, generator: torch.Generator) -> Counted:
    """How many units a birth brings, and where."""
    places, each = [*task.start], units_at_birth(task, when)
    if arm.places == "fixed":
        return Counted(dict.fromkeys(places, each), criterion=arm.criterion)
    total = each * len(places)
    if arm.places == "free":
        return Counted({}, total, tuple(places))
    drawn = torch.randint(len(places), (total,), generator=generator).tolist()
    return Counted({place: drawn.count(number) for number, place in enumerate(places)})
