"""The recipes that `deficit.py` compares: when a net grows, and how it trains from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from senn.errors import SennError
from senn.policies import Candidate, Policy


@dataclass(frozen=True)
class Recipe:
    """How a net grows and trains.

    Attributes:
        rounds: considerations of growth, as fractions of all steps.
        force: units that each of them adds at any price; 0: as many as pay.
        prune: considerations of removals alone, likewise: a unit goes that isn't worth half its price.
        bid: the price at which units are bought, as a multiple of that at which they are kept.
        schedule: of the learning rate: `tail` (constant, then down over the last third), `cosine`, `onecycle`, or
            `rewarm` (up over the 20 steps after each growth, then as `tail`).
        clock: Adam's moments of new units start at zero. `shared`: they are corrected by their parameter's count of
            steps, as Adam does; `own`: by the units' own age; `inherit`: squares start at the old units' mean instead.
        boost: factor on the steps of new units, which decays to 1 over 50 steps.
        birth: length of new units' incoming weights over that of freshly initialised units; None as they are drawn.
        smooth: fraction of proposals whose direction follows the data.
    """

    rounds: tuple[float, ...]
    force: int = 0
    prune: tuple[float, ...] = ()
    bid: float = 1.0
    schedule: str = "tail"
    clock: str = "shared"
    boost: float = 1.0
    birth: float | None = None
    smooth: float = 0.0


WHEN: dict[str, dict[str, Any]] = {
    "each epoch": {"rounds": tuple(k / 15 for k in range(1, 15))},
    "early": {"rounds": (0.02, 0.04, 0.08, 0.16, 0.32)},
    "4 x 8 epochs": {
        "rounds": tuple(k / 15 for k in range(1, 9)),
        "force": 4,
    },  # at any price: all end at 42 units
    **{f"32 at {p:g}": {"rounds": (p,), "force": 32} for p in (0.02, 0.07, 0.2, 0.5)},
}
HOW: dict[str, dict[str, Any]] = {
    "cosine": {"schedule": "cosine"},
    "one cycle": {"schedule": "onecycle"},
    "re-warmed": {"schedule": "rewarm"},
    "own clock": {"clock": "own"},
    "inherit": {"clock": "inherit"},
    "x3": {"boost": 3.0},
    "born short": {"birth": 1.0},
    "smooth": {"smooth": 1.0},
    "past and back": {"bid": 0.3, "prune": (0.4, 0.5)},
}
SMOOTH = (
    "smooth",
    "smooth, own clock",
    "smooth, past and back",
    "smooth, own clock, past and back",
)
DEFAULT = (
    *(
        "each epoch",
        "each epoch, smooth, own clock",
        "early",
        *(f"early, {how}" for how in (*HOW, *SMOOTH[1:])),
    ),
    *("32 at 0.02", "32 at 0.07", "32 at 0.2"),
    *(
        f"{when}{how}"
        for when in ("32 at 0.5", "4 x 8 epochs")
        for how in ("", ", own clock", ", x3", ", born short")
    ),
    *(
        f"{when}, {how}"
        for when in ("32 at 0.5", "4 x 8 epochs")
        for how in ("inherit", *SMOOTH[:2])
    ),
)


def recipe_of(name: str) -> Recipe:
    """The recipe of a name."""
    when, *rest = name.split(", ")
    if when not in WHEN or not {*rest} <= {*HOW}:
        raise SennError(f"{name!r} isn't one of {', '.join(WHEN)} with any of {', '.join(HOW)}")
    options: dict[str, Any] = {}
    for part in (WHEN[when], *(HOW[how] for how in rest)):
        options.update(part)
    return Recipe(**options)


@dataclass(frozen=True)
class Forced(Policy):
    """So many units a round, the best by held-out gain, at any price."""

    units: int

    def choose(
        self, candidates: Sequence[Candidate], accepted: Sequence[Candidate]
    ) -> Candidate | None:
        """The best until there are enough."""
        enough = sum(c.units for c in accepted) >= self.units
        return None if enough else max(candidates, key=lambda c: c.held_out_gain, default=None)
