"""Births: how much of its natural step a new unit or layer is given, measured on the true loss.

A step is fitted on one fold of the round's samples and its length is searched on the other, by forward passes of the
whole model. So what an event expects is a decrease of the true loss that was seen on rows which didn't fit the step:
it can't exceed the loss, and several maps can't count one decrease twice. What came of it is measured in the same way
later, as the difference that the new units make (`senn.scoring.ablation`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from senn.collectives import Communicator
from senn.scoring.balance import balance, existing_ratio
from senn.scoring.birth_steps import BirthStep
from senn.surgery.reindex import NewPositions

LENGTHS = (*(0.5**k for k in range(6)), *(0.25**k for k in range(3, 11)))
"""Lengths of a step that are tried, from the whole down.

K-FAC's parabola can be far too narrow or too wide: with thousands of outputs, most of them rare, the best length may be
a thousandth. Where no length helps, the search ends as soon as the loss no longer moves by more than rounding.
"""

LOSS_ROUNDING = 1e-6
"""Relative change of a loss that is taken for rounding."""

STEP_FRACTION = 0.25
"""Fraction of the best length that new entries are given, in which training finds its own way.

The best length for the loss at once is not that for what comes of it: units that begin with all of their step have
fitted what is particular to the rows that they were scored on. On MNIST rows, digits and tables nets end best with a
tenth to a quarter; with all of it, those that grow early end worst, and with a thirtieth the choice of units is lost.
"""

LEAST_DECREASE = 0.25
"""Fraction of the expected decrease that the loss on all rows of the batch must fall by, or the birth is silent.

Half of the rows chose the length, and it is long for the others by chance: late in a run, when steps bring a hundredth
of a nat, half of the decrease is seen on all rows in one of two births, a quarter in most.
"""


@dataclass(frozen=True, eq=False, kw_only=True)
class Birth:
    """What a round has added, its steps, and what came of the search for their length.

    Attributes:
        model: the grown model.
        steps: new entries and their steps; none where nothing was added that a step is known for.
        communicator: the processes.
        groups: by widened group, where its new units stand.
    """

    model: nn.Module
    steps: Sequence[BirthStep]
    groups: Mapping[str, Sequence[NewPositions]]
    communicator: Communicator

    def give(self, length: float) -> None:
        """Write new entries: their silent values less so much of their step."""
        values = [
            one.entries.silent - length * one.step.to(one.entries.silent) for one in self.steps
        ]
        # Ranks computed the same steps up to rounding: the first one's count.
        self.communicator.broadcast("send the new weights", values)
        for one, value in zip(self.steps, values, strict=True):
            one.entries.write(self.model, value)

    def silence(self) -> None:
        """Write the silent values on this rank."""
        for one in self.steps:
            one.entries.write(self.model, one.entries.silent)

    def perform(self, loss: Callable[..., float], *, stepped: bool) -> tuple[float, float]:
        """Give new entries as much of their step as lowers the loss, if it does so on all rows.

        Args:
            loss: loss of the model as it is, `loss()` on all rows of a batch and `loss(held_out=True)` on those that
                didn't fit the steps.
            stepped: False to measure what a step would bring, and leave the new entries silent.

        Returns:
            The length of the step that was given, and the decrease of the loss that the best length brings.
        """
        length, decrease = self.search(lambda: loss(held_out=True))
        plain = self._without_compensation()
        if plain is not None:
            other = plain.search(lambda: loss(held_out=True))
            if other[1] > decrease:
                return plain.perform(loss, stepped=stepped)
        if not length:
            return 0.0, decrease
        silent, given = loss(), STEP_FRACTION * length
        # Before the step, which the weights of existing units take back a part of.
        ratios = [existing_ratio(positions) for positions in self.groups.values()]
        self.give(given)
        # Written so that NaN fails: it compares as False. On a parabola so much of the best step brings so much of it.
        keeps = silent - loss() >= LEAST_DECREASE * (1 - (1 - STEP_FRACTION) ** 2) * decrease
        for positions, ratio in zip(self.groups.values(), ratios, strict=True):
            balance(positions, ratio, loss)
        if stepped and keeps:
            return given, decrease
        self.give(0.0)
        return 0.0, decrease

    def _without_compensation(self) -> Birth | None:
        """The same births with existing weights as they are; None where these take part in no insertion.

        What the weights behind a new layer take back, the layer multiplies again: that is of second order in the
        step, but a layer's step may be long.
        """
        if not any(one.entries.kind == "insert" and not one.entries.is_new for one in self.steps):
            return None
        return replace(self, steps=[one for one in self.steps if one.entries.is_new])

    def search(self, loss: Callable[[], float]) -> tuple[float, float]:
        """Find the length of the step, at most 1, at which the loss is least.

        Args:
            loss: loss of the model as it is, on rows that didn't fit the steps.

        Returns:
            The length and the decrease of the loss; zeros if no length lowers it. New entries are silent afterwards.
        """
        if not self.steps:
            return 0.0, 0.0

        def at(length: float) -> float:
            self.give(length)
            return loss()

        try:
            silent = loss()
            return _search(at, silent)
        finally:
            self.give(0.0)


def _search(at: Callable[[float], float], silent: float) -> tuple[float, float]:
    """Shorten a step until that no longer lowers the loss, then try the vertex of the parabola there."""
    found = {0.0: silent}
    for length in LENGTHS:
        found[length] = at(length)
        best = _lowest(found)
        if best > length:  # the lowest point has been passed
            break
        if abs(found[length] - silent) <= LOSS_ROUNDING * abs(silent):
            break
    tried = sorted(found)
    place = tried.index(best)
    if 0 < place < len(tried) - 1:
        vertex = _vertex(*((one, found[one]) for one in tried[place - 1 : place + 2]))
        found[vertex] = at(vertex)
        best = _lowest(found)
    return best, silent - found[best]


def _lowest(found: Mapping[float, float]) -> float:
    """Return the length of the lowest finite loss."""
    finite = {length: loss for length, loss in found.items() if math.isfinite(loss)}
    return min(finite, key=lambda length: finite[length], default=0.0)


def _vertex(*points: tuple[float, float]) -> float:
    """Return where a parabola through three points (x, y), the middle one of which is the lowest, is least."""
    (a, fa), (b, fb), (c, fc) = points
    if not (math.isfinite(fa) and math.isfinite(fc)):
        return b
    left, right = (b - a) * (fb - fc), (b - c) * (fb - fa)
    # both falls are zero where all three losses are equal
    return b - ((b - a) * left - (b - c) * right) / (2 * (left - right)) if left != right else b
