"""Other criteria for new units, each an initializer that draws as many units as are wanted, or what picks among a draw.

Written from the papers that each file names. `Born` is what some of them do to a unit's outgoing weights at its birth.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from senn.candidates.initializers import DataDirections, NewUnits, PlaceActivations


class Born(Protocol):
    """An initializer with births of its own."""

    def born(self, model: nn.Module, place: str, units: Tensor) -> None:
        """Write outgoing weights of the units of a place that were just added.

        Args:
            model: the model, whose last units of the place are the new ones.
            place: name of the map that makes them.
            units: (new,) which of those drawn they are, in the model's order.
        """


def pool_size(place: PlaceActivations, is_spatial: bool) -> int:
    """Number of candidates that the library draws at a place by default."""
    if is_spatial:
        return max(len(place.weight) // 4, 8)
    per_unit = place.x.shape[1] + 1 + sum(m * p for m, p in place.outgoing_shapes.values())
    return min(max(100_000 // per_unit, 64), 256)


def scaled(
    place: PlaceActivations, directions: Tensor, count: int, generator: torch.Generator
) -> NewUnits:
    """Units along directions, at the scale of the existing ones; where there are too few, their negatives and a draw.

    Args:
        place: where.
        directions: (some, d), the best first.
        count: number of units.
        generator: source of randomness.
    """
    directions = torch.cat([directions, -directions])[:count].to(place.x)
    spread = (place.x @ directions.mT).std(0).clamp_min(1e-6)
    weight = directions * (place.spread / spread)[:, None]
    bias = weight.new_zeros(len(weight))
    if len(weight) < count:
        rest = DataDirections().sample(place, count - len(weight), generator)
        assert rest.bias is not None
        weight, bias = torch.cat([weight, rest.weight]), torch.cat([bias, rest.bias])
    return NewUnits(weight=weight, bias=bias)
