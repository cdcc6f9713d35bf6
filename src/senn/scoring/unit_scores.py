"""Scores of every candidate unit that was drawn, and the factors that they are computed from."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from senn import html
from senn.kfac.factors import FactorInverse
from senn.scoring.gains import LayerGains
from senn.scoring.pool import CandidatePool

__all__ = ["PlaceScores", "ReaderFactors", "score_units"]

SHOWN = 10
"""Units of a place that a notebook shows, the best ones."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReaderFactors:
    """Kronecker factors of a map that reads candidate units, over its existing columns and theirs.

    Means over the samples and locations of both folds; `senn.kfac.factors` has the notation.

    Attributes:
        A: E[a a^T], (c + P, c + P); the block of existing columns is damped where it is known from earlier rounds.
        S: E[s s^T], (m, m), or its diagonal (m,) of very wide maps.
        G: E[dz a^T], (m, c + P).
        columns: columns of each unit, (units, p).
        locations: rows per sample.
    """

    A: Tensor
    S: Tensor
    G: Tensor
    columns: Tensor
    locations: float


@dataclass(frozen=True, kw_only=True, eq=False)
class PlaceScores:
    """Scores of all candidate units of one place, each as if it were added alone.

    Attributes:
        place: name of the channel group.
        gain: exact K-FAC gain, (units,), in the unit of eta, as all gains.
        gain_lower_bound: D' (Theorem 3.2), (units,).
        held_out_gain: gain of a step fitted on one fold and valued on the other, (units,).
        held_out_stderr: its standard error, (units,).
        gradient_norm: length of the gradient that the unit's outgoing weights would have, (units,), in the loss's unit.
        incoming: by name of the parameter, the entries that the units would add; units in the dimension that grows.
        readers: by map that reads the units, its factors; several maps' gains add.
    """

    place: str
    gain: Tensor
    gain_lower_bound: Tensor
    held_out_gain: Tensor
    held_out_stderr: Tensor
    gradient_norm: Tensor
    incoming: Mapping[str, Tensor]
    readers: Mapping[str, ReaderFactors]

    def __len__(self) -> int:
        """Number of units."""
        return len(self.gain)

    def _repr_html_(self) -> str:
        """Table of the best units by held-out gain, for notebooks."""
        names = ("gain", "gain_lower_bound", "held_out_gain", "held_out_stderr", "gradient_norm")
        best = self.held_out_gain.argsort(descending=True)[:SHOWN].tolist()
        rows = [
            (f"{unit}", *(html.number(float(getattr(self, name)[unit])) for name in names))
            for unit in best
        ]
        head = ("unit", *(name.replace("_", " ") for name in names))
        return html.table(f"{self.place}: best of {len(self)} candidates", head, rows, left=1)


def score_units(pool: CandidatePool) -> dict[str, PlaceScores]:
    """Score every candidate unit, given what the pool has accepted; nothing is decided.

    Args:
        pool: the scored candidates of a round.

    Returns:
        by place that a scored map reads, its units' scores.
    """
    found = {}
    for group, move in pool.candidate_set.widen.items():
        readers = [
            (name, layout.existing, layout.groups[group])
            for name, layout in pool.columns.items()
            if group in layout.groups
        ]
        if not readers:
            continue
        # Gains of the maps that read a unit add: the Fisher matrix is taken block-diagonal.
        total = torch.zeros(5, move.units, dtype=torch.float64)
        factors = {}
        for name, existing, columns in readers:
            compute = functools.partial(_reader_scores, pool, name, columns)
            scores, A, S, G, locations = pool.owners.share("score the units", name, compute)
            total += scores
            factors[name] = ReaderFactors(
                A=A, S=S, G=G, columns=columns + existing, locations=float(locations)
            )
        found[group] = PlaceScores(
            place=group,
            gain=total[0],
            gain_lower_bound=total[1],
            held_out_gain=total[2],
            held_out_stderr=total[3],
            gradient_norm=total[4].sqrt(),
            incoming=dict(move.values),
            readers=factors,
        )
    return found


def _squared_gradient(gains: LayerGains, columns: Tensor) -> Tensor:
    """Squared length of the residual gradient of each group's columns, (units,), of a sample's locations together."""
    root, cross = gains.whitener, gains.all.cross  # whitened: L^-1 times what is wanted
    cross = root[:, None] * cross if root.ndim == 1 else root @ cross
    return gains.locations**2 * cross[:, columns].square().sum((0, 2))


def _reader_scores(pool: CandidatePool, name: str, columns: Tensor) -> list[Tensor]:
    """Scores (5, units) of the units that a map reads, and its A, S, G and locations, from its account."""
    gains = pool.layer_gains[name]
    scores = [
        gains.gain(columns),
        gains.gain_lower_bound(columns),
        *gains.held_out_gain(columns),
        _squared_gradient(gains, columns),
    ]
    both, existing = gains.factors, gains.existing
    A = both.A
    if len(A) != A.shape[1]:  # the existing block is known from earlier rounds
        assert isinstance(gains.inverse, FactorInverse)
        root = gains.inverse.factor
        side = torch.cat([root @ root.mT, A[:existing].mT.to(root)])
        A = torch.cat([side, A.to(root)], 1)
    locations = torch.tensor(both.locations, dtype=torch.float64)
    return [torch.stack(scores), A, both.S, both.G, locations]
