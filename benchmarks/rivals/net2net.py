"""Net2Net: copies of existing units, which share what the originals pass on.

Chen, Goodfellow and Shlens 2016, *Net2Net: accelerating learning via knowledge transfer*, ICLR, arXiv 1511.05641
(Net2WiderNet). A little noise on the copies lets them part from their originals.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from senn.candidates.initializers import NewUnits, PlaceActivations

NOISE = 0.01


class Net2Net:
    """Copies of units drawn at random, with noise of a hundredth of their length; births are shares of the original."""

    def __init__(self) -> None:
        self.originals: dict[str, Tensor] = {}
        self.readers: dict[str, list[str]] = {}

    def sample(self, place: PlaceActivations, count: int, generator: torch.Generator) -> NewUnits:
        """Copies."""
        chosen = torch.randint(len(place.weight), (count,), generator=generator)
        self.originals[place.map], self.readers[place.map] = chosen, [*place.outgoing_shapes]
        weight = place.weight[chosen]
        noise = torch.randn(weight.shape, generator=generator)
        noise *= NOISE * weight.norm(dim=1, keepdim=True) / weight.shape[1] ** 0.5
        assert place.bias is not None
        return NewUnits(weight=weight + noise, bias=place.bias[chosen])

    @torch.no_grad()
    def born(self, model: nn.Module, place: str, units: Tensor) -> None:
        """Share the original's outgoing weights among it and its copies."""
        originals = self.originals[place][units]
        shares = 1 + torch.bincount(originals, minlength=int(originals.max()) + 1)
        for name in self.readers[place]:
            matrix = model.get_submodule(name).weight.flatten(1)
            columns = torch.arange(matrix.shape[1] - len(units), matrix.shape[1])
            matrix[:, columns] = matrix[:, originals] / shares[originals]
            owners = originals.unique()
            matrix[:, owners] /= shares[owners]
