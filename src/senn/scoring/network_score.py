"""Expansion score of a network as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from senn.kfac.folds import Fold
from senn.scoring.gains import LayerGains


def whole_eta_of(
    layer_gains_by_map: Mapping[str, LayerGains], folds: Sequence[Mapping[str, Fold]], limit: float
) -> float:
    """A lower bound of the network's eta that takes its maps together, and so stays below lambda.

    The sum over the maps counts a decrease that several of them could bring several times, and may come out above
    lambda. Along the K-FAC step d of all maps, with the exact curvature d^T F d = E[(sum_l s_l^T d_l a_l)^2],
    (g^T d)^2 / d^T F d <= g^T F^-1 g (Cauchy-Schwarz).

    Args:
        layer_gains_by_map: by linear map.
        folds: the two folds of samples, each by linear map.
        limit: lambda.
    """
    total = sum(layer_gains.eta for layer_gains in layer_gains_by_map.values())
    square = weight = 0.0
    for fold in folds:
        parts = [fold[name].samples.of_existing(layer_gains.step) for name, layer_gains in layer_gains_by_map.items()]
        kept = min(map(len, parts))
        square += float(torch.stack([part[:kept] for part in parts]).sum(0).square().sum())
        name, layer_gains = next(iter(layer_gains_by_map.items()))
        weight += fold[name].samples.first(kept).total / layer_gains.locations
    exact = square / max(weight, 1e-300)
    return min(total**2 / max(exact, 1e-300), limit) if total > 0 else 0.0
