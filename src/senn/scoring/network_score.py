"""Expansion score of a network as a whole, which the sum over its maps overstates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from senn.collectives import Communicator
from senn.kfac.folds import Fold
from senn.kfac.transposed_samples import TransposedSamples
from senn.scoring.gains import LayerGains


def joint_score(
    communicator: Communicator,
    layer_gains: Mapping[str, LayerGains],
    folds: Sequence[Mapping[str, Fold]],
    *,
    slope: float,
    score_limit: float,
) -> float:
    """Lower bound of the network's eta that takes its maps together, and so stays below lambda.

    The sum over the maps counts a decrease that several of them could bring several times, and may come out above
    lambda. Along the K-FAC step d of all maps, with the exact curvature d^T F d = E[(sum_l s_l^T d_l a_l)^2],
    (g^T d)^2 / d^T F d <= g^T F^-1 g (Cauchy-Schwarz).

    Args:
        communicator: the processes.
        layer_gains: gains of each linear map that this rank owns.
        folds: the two folds of samples, each by linear map.
        slope: g^T d, the sum of eta over all maps, since d = F_KFAC^-1 g.
        score_limit: lambda.

    Returns:
        eta, 0 if no map has a gradient.
    """
    squares = weight = 0.0
    for fold in folds:
        effects = []
        for name, gains in layer_gains.items():
            samples = fold[name].samples
            assert not isinstance(samples, TransposedSamples)
            effects.append(samples.of_existing(gains.step))
        # maps keep different numbers of samples, always the first ones: sum over those that all of them keep
        own = min(map(len, effects), default=None)
        lengths = communicator.all_gather_object("score the network", own)
        kept = min(length for length in lengths if length is not None)
        total = torch.zeros(kept, dtype=torch.float64)
        if effects:
            total = torch.stack([one[:kept] for one in effects]).sum(0)
        (effect,) = communicator.all_reduce("score the network", [total])
        squares += float(effect.square().sum())
        # the same samples at every map, so any of them says their weight
        weights = [one.samples.first(kept).total for one in fold.values()][:1]
        weight += max(communicator.all_gather_object("score the network", sum(weights)))
    curvature = squares / max(weight, 1e-300)
    return min(slope**2 / max(curvature, 1e-300), score_limit) if slope > 0 else 0.0
