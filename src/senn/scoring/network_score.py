"""Expansion score of a network as a whole, which the sum over its maps overstates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from senn.kfac.folds import Fold
from senn.scoring.gains import LayerGains


def joint_score(
    layer_gains: Mapping[str, LayerGains], folds: Sequence[Mapping[str, Fold]], score_limit: float
) -> float:
    """Lower bound of the network's eta that takes its maps together, and so stays below lambda.

    The sum over the maps counts a decrease that several of them could bring several times, and may come out above
    lambda. Along the K-FAC step d of all maps, with the exact curvature d^T F d = E[(sum_l s_l^T d_l a_l)^2],
    (g^T d)^2 / d^T F d <= g^T F^-1 g (Cauchy-Schwarz).

    Args:
        layer_gains: gains of each linear map.
        folds: the two folds of samples, each by linear map.
        score_limit: lambda.

    Returns:
        eta, 0 if no map has a gradient.
    """
    slope = sum(gains.eta for gains in layer_gains.values())  # g^T d, since d = F_KFAC^-1 g
    squares = weight = 0.0
    for fold in folds:
        effects = [
            fold[name].samples.of_existing(gains.step) for name, gains in layer_gains.items()
        ]
        # maps keep different numbers of samples, always the first ones: sum over those that all of them keep
        kept = min(map(len, effects))
        effect = torch.stack([one[:kept] for one in effects]).sum(0)
        squares += float(effect.square().sum())
        weight += fold[next(iter(layer_gains))].samples.first(kept).total
    curvature = squares / max(weight, 1e-300)
    return min(slope**2 / max(curvature, 1e-300), score_limit) if slope > 0 else 0.0
