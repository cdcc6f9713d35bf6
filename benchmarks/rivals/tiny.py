"""TINY: new units along what the existing weights can't do, in the geometry of the inputs.

Verbockhaven, Rudkiewicz, Chevallier and Charpiat 2024, *Growing tiny networks: spotting expressivity bottlenecks and
fixing them optimally*, TMLR, arXiv 2405.19816. With the residual gradient v of a reader and inputs b, directions are
S^-1/2 u for the left singular vectors u of S^-1/2 E[b v^T], S = E[b b^T]; activations are taken to be linear.
"""

from __future__ import annotations

import torch

from rivals import scaled
from senn.candidates.initializers import DataDirections, NewUnits, PlaceActivations


class Tiny:
    """The directions; outgoing weights are the birth's."""

    def sample(self, place: PlaceActivations, count: int, generator: torch.Generator) -> NewUnits:
        """The directions of the largest residual gradient."""
        found = place.gradients()
        if not found.readers:
            return DataDirections().sample(place, count, generator)
        x = found.x.double()
        values, vectors = torch.linalg.eigh(x.mT @ x / len(x))
        kept = values > 1e-4 * values.max()
        root = vectors[:, kept] / values[kept].sqrt() @ vectors[:, kept].mT
        crosses = []
        for rows in found.readers.values():
            a, gradient = rows.a.double(), rows.output_grad.double()
            explained = a @ torch.linalg.lstsq(a, gradient, driver="gelsd").solution
            crosses.append(x.mT @ (gradient - explained) / len(x))
        left, _, _ = torch.linalg.svd(root @ torch.cat(crosses, 1), full_matrices=False)
        return scaled(place, (root @ left).mT, count, generator)
