"""Units of the library's own draw, chosen by another figure than its score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rivals import pool_size
from senn.candidates.initializers import DataDirections, NewUnits, PlaceActivations, PlaceGradients

Figure = Callable[[PlaceGradients, Tensor, int], Tensor]
"""Chooses units by gradients at a place and the units' activations (rows, units): numbers of the chosen ones."""


@dataclass(frozen=True)
class Chosen:
    """The library's draw with another choice.

    Args:
        figure: chooses.
        activation: between the map that makes units and those that read them.
        is_spatial: True for channels of convolutions.
    """

    figure: Figure
    activation: Callable[[Tensor], Tensor]
    is_spatial: bool = False

    def sample(self, place: PlaceActivations, count: int, generator: torch.Generator) -> NewUnits:
        """Draw as the library does, and keep `count` units."""
        pool = max(pool_size(place, self.is_spatial), count)
        drawn = DataDirections().sample(place, pool, generator)
        gradients = place.gradients()
        assert drawn.bias is not None
        if not gradients.readers:  # nothing to choose by
            return NewUnits(weight=drawn.weight[:count], bias=drawn.bias[:count])
        activations = self.activation(gradients.x @ drawn.weight.mT + drawn.bias)
        chosen = self.figure(gradients, activations, count)
        return NewUnits(weight=drawn.weight[chosen], bias=drawn.bias[chosen])


def largest_gradient(gradients: PlaceGradients, activations: Tensor, count: int) -> Tensor:
    """Units whose outgoing weights have the longest gradient."""
    total = torch.zeros(activations.shape[1])
    for rows in gradients.readers.values():
        total += (rows.output_grad.mT @ activations).square().sum(0)
    return total.topk(count).indices


def most_orthogonal(gradients: PlaceGradients, activations: Tensor, count: int) -> Tensor:
    """NORTH-Select: units whose activations the existing and the chosen ones explain least.

    Maile, Rachelson, Luga and Wilson 2022, *When, where, and how to add new neurons to ANNs*, arXiv 2202.08539.
    """
    existing = next(iter(gradients.readers.values())).a.double()
    new = activations.double()
    basis = torch.linalg.qr(existing).Q
    rest = new - basis @ (basis.mT @ new)
    lengths, chosen = new.square().sum(0).clamp_min(1e-12), list[int]()
    for _ in range(count):
        fraction = rest.square().sum(0) / lengths
        fraction[chosen] = -1
        best = int(fraction.argmax())
        chosen.append(best)
        direction = rest[:, best] / rest[:, best].norm().clamp_min(1e-12)
        rest = rest - direction[:, None] * (direction @ rest)
    return torch.tensor(chosen)
