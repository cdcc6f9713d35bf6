"""Gains of units whose parts in several maps bring one and the same decrease: the rows that write a residual stream.

A unit of a stream is written by embeddings, attention and feed-forward parts alike, at gradients that are much the
same. Each of them by itself could bring about the same decrease. A sum over them, as if the Fisher matrix were
block-diagonal, counts it several times (four in a decoder of one layer). So the direction is that of
each map's K-FAC, and the length and value are those of the joint step d, by its exact curvature
d^T F d = E[(sum over maps and locations of s^T d a)^2]. It is a lower bound, g^T F^-1 g >= (g^T d)^2 / d^T F d
(Cauchy-Schwarz), as in `senn.scoring.network_score`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from senn.kfac.whitening import unwhiten_outputs
from senn.scoring.formulas import quadratic_decrease
from senn.scoring.gains import LayerGains
from senn.scoring.residual_statistics import ResidualStatistics

FoldName = Literal["fit", "held_out"]


class JointGains:
    """Scores of candidate units that have a column in each of several maps; methods as of `LayerGains`.

    Args:
        parts: by map, the gains of its columns.
        accepted: by fold, (samples,) s^T d a of all steps accepted so far, summed over maps; empty for none.
    """

    def __init__(
        self, parts: Mapping[str, LayerGains], accepted: Mapping[FoldName, Tensor] | None = None
    ) -> None:
        self.parts = dict(parts)
        self.accepted = dict(accepted or {})
        self.n_held_out = min(one.n_held_out for one in self.parts.values())

    def gain(self, columns: Tensor, output_basis: Tensor | None = None) -> Tensor:
        """Lower bound of the K-FAC gain of groups of columns (groups, p), (groups,) in eta."""
        total = sum(one.gain(columns, output_basis) for one in self.parts.values())
        return self._length(columns) * total

    def gain_lower_bound(self, columns: Tensor, output_basis: Tensor | None = None) -> Tensor:
        """The same of D' (paper, Theorem 3.2), (groups,)."""
        total = sum(one.gain_lower_bound(columns, output_basis) for one in self.parts.values())
        return self._length(columns) * total

    def held_out_gain(
        self, columns: Tensor, output_basis: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Gain of joint steps fitted on one fold and valued on the other, and its standard error, (groups,) each."""
        steps, length = self._steps(columns), self._length(columns)
        slope = self._slope("held_out", columns)
        effect = self._effect("held_out", "pseudo_grad", steps, columns)
        curvature, crossed = self._curvature("held_out", effect)
        value = quadratic_decrease(slope - crossed, curvature, length)
        slopes = self._effect("held_out", "output_grad", steps, columns)
        taken = self._accepted("held_out", effect) * effect
        by_sample = quadratic_decrease(slopes - taken, effect.square(), length)
        return value, by_sample.double().std(0, correction=0) / self.n_held_out**0.5

    def cross_fold_gain(self, columns: Tensor, output_basis: Tensor | None = None) -> Tensor:
        """First-order decrease on one fold of joint steps fitted on the other, (groups,)."""
        effect = self._effect("held_out", "pseudo_grad", self._steps(columns), columns)
        _, crossed = self._curvature("held_out", effect)
        return self._length(columns) * (self._slope("held_out", columns) - crossed)

    def eliminate(self, columns: Tensor, output_basis: Tensor | None = None) -> None:
        """Count columns (p,) as part of each map from now on."""
        group = columns[None]
        steps, length = self._steps(group), self._length(group)
        for fold in ("fit", "held_out"):
            effect = length * self._effect(fold, "pseudo_grad", steps, group)
            self.accepted[fold] = (self._accepted(fold, effect) + effect)[:, 0]
        for one in self.parts.values():
            one.eliminate(columns, output_basis)

    def clone(self) -> JointGains:
        """A copy to try eliminations on."""
        return JointGains({name: one.clone() for name, one in self.parts.items()}, self.accepted)

    # -- of the joint step

    def _statistics(self, fold: FoldName, one: LayerGains) -> ResidualStatistics:
        return one.fit if fold == "fit" else one.held_out

    def _steps(self, columns: Tensor) -> list[Tensor]:
        """K-FAC's own step of each map for groups of columns, (m, groups * p)."""
        found = []
        for one in self.parts.values():
            white, _ = one.fitted_step(columns, None)
            flat = white.movedim(1, 0).reshape(white.shape[1], -1)
            found.append(unwhiten_outputs(one.whitener, flat))
        return found

    def _length(self, columns: Tensor) -> Tensor:
        """Best length of the joint step on the fitting fold, given what was accepted, at most 1, (groups,)."""
        effect = self._effect("fit", "pseudo_grad", self._steps(columns), columns)
        curvature, crossed = self._curvature("fit", effect)
        slope = (self._slope("fit", columns) - crossed).clamp_min(0)
        return slope / torch.maximum(curvature, slope).clamp_min(1e-30)

    def _slope(self, fold: FoldName, columns: Tensor) -> Tensor:
        """<g, d> on a fold of a sample's locations together, (groups,)."""
        total = torch.zeros(len(columns), dtype=torch.float64)
        for one in self.parts.values():
            white, _ = one.fitted_step(columns, None)
            cross = self._statistics(fold, one).cross[:, columns].movedim(1, 0)
            total += one.locations * (white * cross).sum((-2, -1)).to(total)
        return total

    def _effect(
        self,
        fold: FoldName,
        kind: Literal["pseudo_grad", "output_grad"],
        steps: list[Tensor],
        columns: Tensor,
    ) -> Tensor:
        """r^T d a of each sample that all maps keep, summed over maps and locations, (samples, groups)."""
        effects = [
            self._statistics(fold, one).effect(kind, step, columns)
            for one, step in zip(self.parts.values(), steps, strict=True)
        ]
        # always the first ones
        kept = min(map(len, effects))
        return torch.stack([one[:kept] for one in effects]).sum(0).cpu()

    def _accepted(self, fold: FoldName, like: Tensor) -> Tensor:
        known = self.accepted.get(fold)
        return like.new_zeros(len(like), 1) if known is None else known[:, None].to(like)

    def _curvature(self, fold: FoldName, effect: Tensor) -> tuple[Tensor, Tensor]:
        """d^T F d of each step, and d^T F d_0 with the sum of the accepted ones, of whole samples, (groups,) each."""
        first = self._statistics(fold, next(iter(self.parts.values())))
        assert first.samples is not None
        weight = max(first.samples.first(len(effect)).total, 1e-30)
        squared = effect.square().sum(0).double() / weight
        crossed = (effect * self._accepted(fold, effect)).sum(0).double() / weight
        return squared, crossed
