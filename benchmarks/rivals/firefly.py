"""Firefly: new units and copies of existing ones, moved uphill in the gradient of their birth, the best of them kept.

Wu, Liu, Stone and Liu 2020, *Firefly neural architecture descent*, NeurIPS, arXiv 2102.08574. For outgoing weights of
any direction and small length, the loss falls fastest along the longest gradient; incoming weights are found by ascent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rivals import pool_size
from senn.candidates.initializers import DataDirections, NewUnits, PlaceActivations, PlaceGradients


@dataclass(frozen=True)
class Firefly:
    """Half of the candidates new, half perturbed copies; `steps` of ascent at a fixed spread of pre-activations."""

    activation: Callable[[Tensor], Tensor]
    is_spatial: bool = False
    steps: int = 20
    rate: float = 0.1

    def sample(self, place: PlaceActivations, count: int, generator: torch.Generator) -> NewUnits:
        """Ascend, and keep the units of the longest gradient."""
        pool = max(pool_size(place, self.is_spatial), count)
        drawn = DataDirections(copy_fraction=0.5).sample(place, pool, generator)
        gradients = place.gradients()
        assert drawn.bias is not None
        if not gradients.readers:
            return NewUnits(weight=drawn.weight[:count], bias=drawn.bias[:count])
        weight, bias = drawn.weight, drawn.bias
        for _ in range(self.steps):
            leaves = [one.detach().requires_grad_() for one in (weight, bias)]
            lengths = self._lengths(gradients, *leaves)
            with torch.enable_grad():
                slopes = torch.autograd.grad(lengths.clamp_min(1e-30).log().sum(), leaves)
            step = self.rate * weight.norm(dim=1, keepdim=True)
            slope = slopes[0] / slopes[0].norm(dim=1, keepdim=True).clamp_min(1e-30)
            moved = weight + step * slope
            factor = place.spread / (place.x @ moved.mT).std(0).clamp_min(1e-6)
            weight, bias = moved * factor[:, None], (bias + step[:, 0] * 0) * factor
        best = self._lengths(gradients, weight, bias).detach().topk(count).indices
        return NewUnits(weight=weight[best], bias=bias[best])

    def _lengths(self, gradients: PlaceGradients, weight: Tensor, bias: Tensor) -> Tensor:
        """Squared length of the gradient of each unit's outgoing weights, (units,)."""
        with torch.enable_grad():
            activations = self.activation(gradients.x @ weight.mT + bias)
            parts = [
                (rows.output_grad.mT @ activations / len(activations)).square().sum(0)
                for rows in gradients.readers.values()
            ]
            return torch.stack(parts).sum(0)
