"""GradMax: the largest gradient that new weights can have, in closed form.

Evci, van Merrienboer, Unterthiner, Vladymyrov and Pedregosa 2022, *GradMax: growing neural networks using gradient
information*, ICLR, arXiv 2201.05125. Of the product of output gradients with inputs, the published births take left
singular vectors as outgoing weights and zeros as incoming ones; with outgoing weights of zero it is the right ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rivals import scaled
from senn.candidates.initializers import DataDirections, NewUnits, PlaceActivations


class GradMax:
    """Right singular vectors as incoming weights; outgoing ones are the birth's."""

    def sample(self, place: PlaceActivations, count: int, generator: torch.Generator) -> NewUnits:
        """The directions of the largest gradient."""
        found = place.gradients()
        if not found.readers:
            return DataDirections().sample(place, count, generator)
        _, _, right = torch.linalg.svd(_cross(found.readers, found.x), full_matrices=False)
        return scaled(place, right, count, generator)


class PublishedGradMax:
    """Left singular vectors as outgoing weights, as long as those of existing units; incoming ones are zero."""

    def __init__(self) -> None:
        self.outgoing: dict[str, tuple[str, Tensor]] = {}

    def sample(self, place: PlaceActivations, count: int, generator: torch.Generator) -> NewUnits:
        """Units of zeros; what goes out of them is kept for `born`."""
        found = place.gradients()
        if not found.readers:
            return DataDirections().sample(place, count, generator)
        (name,) = found.readers
        left, _, _ = torch.linalg.svd(_cross(found.readers, found.x), full_matrices=False)
        wanted = torch.cat([left, -left], 1)[:, :count]
        more = torch.randn(len(left), count - wanted.shape[1], generator=generator)
        self.outgoing[place.map] = name, torch.cat([wanted, more / more.norm(dim=0)], 1)
        return NewUnits(weight=torch.zeros(count, place.x.shape[1]))

    @torch.no_grad()
    def born(self, model: nn.Module, place: str, units: Tensor) -> None:
        """Write the outgoing weights; all incoming ones are alike, so any order will do."""
        name, wanted = self.outgoing[place]
        weight = model.get_submodule(name).weight
        # a reader that has grown itself has its new outputs last
        matrix = weight.flatten(1)[: len(wanted)]
        length = matrix[:, : -len(units)].norm(dim=0).mean()
        matrix[:, -len(units) :] = length * wanted[:, : len(units)]


def _cross(readers: dict[str, object], x: Tensor) -> Tensor:
    return torch.cat([rows.output_grad.mT @ x for rows in readers.values()]) / len(x)
