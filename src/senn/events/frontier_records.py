"""Accuracy against size: one network pruned to smaller and smaller sizes, and what that says about other data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from typing import Any

from senn import html
from senn.errors import SennError

MIDDLE = (0.3, 0.8)
"""Shares of units removed between which costs are taken to fall as a power: units that go before are mostly copies of
others, and beyond it removals reach past the quadratic model."""

MOST_TIMES = 10.0
"""Largest factor, and its inverse the smallest, to which a size is extrapolated: further out nothing was checked."""


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """A network at one of the sizes of a frontier.

    Attributes:
        parameters: number of its parameters.
        removed: number of units that it has lost.
        widths: units that are left, by channel group.
        figures: what it makes of validation rows: `loss`, and perhaps a score.
        expected_rise: rise of the training loss that the quadratic model expects of all removals so far, in the loss's
            own unit.
    """

    parameters: int
    removed: int
    widths: Mapping[str, int]
    figures: Mapping[str, float]
    expected_rise: float


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """A network at falling sizes, each pruned from the one before without any training.

    Attributes:
        points: the network as it was given, then smaller and smaller.
        units: number of units that the network as given could lose one or the other of.
        score_name: the figure besides the loss, such as `accuracy`; None without one. Larger is better.
    """

    points: tuple[FrontierPoint, ...] = field(repr=False)
    units: int
    score_name: str | None = None

    def share_removed(self, point: FrontierPoint) -> float:
        """Share of the units that a network of the frontier has lost, 0 to 1."""
        return point.removed / max(self.units, 1)

    def smallest(self, within: float) -> FrontierPoint:
        """Find the smallest network that loses at most so much, as every larger one does.

        Args:
            within: most by which the score may fall, such as .01 for a point of accuracy; without a score the most by
                which the loss may rise, in its own unit.

        Returns:
            A point; the first one if already the next loses more.
        """
        found = self.points[0]
        for point in self.points[1:]:
            # NaN compares as False
            if not self._fall(point) <= within:
                break
            found = point
        return found

    @property
    def cost_exponent(self) -> float:
        """b, where the last of u units is worth about u^-b: least squares of logarithms in the middle of the frontier.

        Raises:
            SennError: there are fewer than three blocks there, or worth doesn't fall with size.
        """
        logs: list[tuple[float, float]] = []
        for before, after in pairwise(self.points):
            count = after.removed - before.removed
            cost = (after.expected_rise - before.expected_rise) / count
            left = self.units - (before.removed + after.removed) / 2
            if MIDDLE[0] <= 1 - left / self.units <= MIDDLE[1] and cost > 0:
                logs.append((math.log(left), math.log(cost)))
        if len(logs) < 3:
            raise SennError(
                "the frontier has fewer than three blocks in its middle, so it says nothing about other data"
            )
        slope = statistics.linear_regression(*zip(*logs, strict=True)).slope
        if slope >= 0:
            raise SennError(
                "the last units of smaller networks cost less, so the frontier says nothing about other data"
            )
        return -slope

    def units_at(self, times_data: float) -> float:
        """Predict how many units the best network would have with more or fewer training rows.

        Hypothesis: growth keeps a unit as long as that is worth more than its price. Prices fall as one over the number
        of rows, and the last of u units is worth u^-b whatever the rows, so that the best number of units grows as the
        rows to the power of 1/b. A run on other rows whose number of units differs refutes it.

        Args:
            times_data: number of training rows over that of this run, .1 to 10.

        Returns:
            Number of removable units, not rounded.

        Raises:
            SennError: `times_data` is out of range, or the frontier says nothing about other data.
        """
        if not 1 / MOST_TIMES <= times_data <= MOST_TIMES:
            raise SennError(f"times_data must be a number from 0.1 to 10, not {times_data!r}")
        return float(self.units * times_data ** (1 / self.cost_exponent))

    def _fall(self, point: FrontierPoint) -> float:
        """By how much a network is worse than the first one."""
        first = self.points[0].figures
        if self.score_name is None:
            return point.figures["loss"] - first["loss"]
        return first[self.score_name] - point.figures[self.score_name]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able record."""
        return {**asdict(self), "points": [asdict(point) for point in self.points]}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Frontier:
        """Read what `to_dict` returned.

        Raises:
            KeyError, TypeError: it isn't such a record.
        """
        points = []
        for one in record["points"]:
            # JSON has no NaN
            figures = {
                name: math.nan if value is None else value for name, value in one["figures"].items()
            }
            known = {one_field.name: one[one_field.name] for one_field in fields(FrontierPoint)}
            points.append(FrontierPoint(**{**known, "figures": figures}))
        return cls(points=tuple(points), units=record["units"], score_name=record["score_name"])

    def __str__(self) -> str:
        """A line for each network."""
        return "\n".join("  ".join(row) for row in self._rows())

    def _repr_html_(self) -> str:
        """A table, for notebooks."""
        head = ["units removed", "parameters", *self.points[0].figures]
        return html.table("Pruned without training", head, self._rows())

    def _rows(self) -> Sequence[Sequence[str]]:
        return [
            [
                f"{self.share_removed(point):.0%}",
                f"{point.parameters:,}",
                *(f"{value:.4g}" for value in point.figures.values()),
            ]
            for point in self.points
        ]
