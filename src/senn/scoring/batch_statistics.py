"""What a window of looking keeps: of one part of a batch, of the data, of the network as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from senn.curvature.folds import Fold
from senn.scoring.gains import Ledger
from senn.structure import LinearMap, matrix, tensor_of


@dataclass(frozen=True, eq=False)
class KnownMoment:
    """Input moment of a linear map that reads the data itself, kept from one window for the next ones.

    Attributes:
        factor: lower Cholesky factor of the damped moment, (c, c).
        rows: that it is a mean over.
        outgrown: a later window held at least twice as many rows; the next one of that size takes its place.
    """

    factor: Tensor
    rows: float
    outgrown: bool = False


@dataclass(frozen=True, eq=False)
class Look:
    """What one part of a batch showed.

    Attributes:
        samples: how many there were.
        loss: their mean loss.
        bound: their lambda.
        output: the model's outputs.
        folds: what was gathered, by map, of the samples on which steps are fitted (`fit`) and valued (`held`).
    """

    samples: int
    loss: float
    bound: float
    output: Tensor
    folds: dict[str, dict[str, Fold]] = field(default_factory=lambda: {"fit": {}, "held": {}})


def weight_of(model: nn.Module, one: LinearMap) -> Tensor:
    """[W | b] of a linear map, detached, (m, c)."""
    weight = matrix(model, one)
    return weight if one.bias is None else torch.cat([weight, tensor_of(model, one.bias).detach()[:, None]], 1)


def whole_eta_of(ledgers: Mapping[str, Ledger], folds: Sequence[Mapping[str, Fold]], limit: float) -> float:
    """A lower bound of the network's eta that takes its maps together, and so stays below lambda.

    The sum over the maps counts a decrease that several of them could bring several times, and may come out above
    lambda. Along the K-FAC step d of all maps, with the exact curvature d^T F d = E[(sum_l s_l^T d_l a_l)^2],
    (g^T d)^2 / d^T F d <= g^T F^-1 g (Cauchy-Schwarz).

    Args:
        ledgers: by linear map.
        folds: the two folds of samples, each by linear map.
        limit: lambda.
    """
    total = sum(ledger.eta for ledger in ledgers.values())
    square = weight = 0.0
    for fold in folds:
        parts = [fold[name].samples.of_existing(ledger.step) for name, ledger in ledgers.items()]
        kept = min(map(len, parts))
        square += float(torch.stack([part[:kept] for part in parts]).sum(0).square().sum())
        name, ledger = next(iter(ledgers.items()))
        weight += fold[name].samples.first(kept).total / ledger.locations
    exact = square / max(weight, 1e-300)
    return min(total**2 / max(exact, 1e-300), limit) if total > 0 else 0.0
