"""The account of one linear map: what its candidate columns are worth, brought up to date as some are accepted.

The map reads existing columns a_c (c of them, with the constant 1) and candidate columns a_p (P of them), all in one
set of moments for each of two folds of samples. Everything follows by elimination: accepting columns is one step of a
block Cholesky on the (P, P) residual moment, so a greedy choice of many units costs no further pass over the data, and
a duplicate of an accepted unit is worth nothing.

Residual activations are those less what the columns that are in already predict, each fold with its own predictions.
`all` uses every sample (eta, gain, bound, as in the paper); `fit` and `held` the two folds (held-out gain).

K-FAC takes activations and output gradients as independent. Where both are sparse together (a unit that is active on
the few samples that another unit passes on) its curvature is too small by as much as the fraction of active samples,
and a gain can come out above lambda. So a step's *direction* is K-FAC's, and its *length* and held-out value come from
the exact curvature along it, d^T F d = E[(sum over a sample's locations of s^T d a_p)^2], which sampled rows give
without bias.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from senn.kfac.factors import DAMPING, FactorInverse, WoodburyInverse, cholesky, input_covariance, solve, whiten
from senn.kfac.folds import Fold
from senn.kfac.per_sample import PerSampleFactors, Samples
from senn.scoring.formulas import diagonal_gain

UNIT_DAMPING = 1e-3
"""Relative damping of a candidate column's own moment, so that an exact copy of an existing one gains nothing."""


@dataclass(frozen=True, kw_only=True)
class Gains:
    """Figures of one change in eta's unit, twice the loss's; `+` adds those of several units or maps.

    Attributes:
        gain: K-FAC gain D on all samples.
        gain_lower_bound: D' (Theorem 3.2).
        held_out_gain: gain of a step fitted on one fold and valued on the other.
        held_out_stderr: standard error of `held_out_gain` over the samples of that fold.
        cross_fold_gain: gain as both folds agree on it; NaN where it isn't known.
    """

    gain: float = 0.0
    gain_lower_bound: float = 0.0
    held_out_gain: float = 0.0
    held_out_stderr: float = 0.0
    cross_fold_gain: float = 0.0

    def __add__(self, other: Gains) -> Gains:
        """Sums; of the standard errors too, since all figures come from the same samples and may err together."""
        return Gains(
            gain=self.gain + other.gain,
            gain_lower_bound=self.gain_lower_bound + other.gain_lower_bound,
            held_out_gain=self.held_out_gain + other.held_out_gain,
            held_out_stderr=self.held_out_stderr + other.held_out_stderr,
            cross_fold_gain=self.cross_fold_gain + other.cross_fold_gain,
        )


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What the gains of one round are held against; only `eta` changes while candidates are accepted.

    Attributes:
        samples: number of training samples.
        loss_per_nat: how much of the loss one nat per sample is.
        eta: the network's expansion score now.
        score_limit: lambda, what eta cannot exceed.
    """

    samples: int
    loss_per_nat: float
    eta: float
    score_limit: float


class LayerGains:
    """Scores of candidate columns of one linear map.

    Args:
        fit: the fold on which steps are fitted.
        held: the fold on which they are valued.
        existing: c, the number of existing columns.
        factor: Cholesky factor of the damped A_cc where that is known (the input moment of a map that reads the data
            itself never changes); both folds then share it, and their moments need not hold A_cc.

    Attributes:
        inverse: of A_cc on all samples, damped.
        eta: the map's expansion score now, accepted columns included.
        whitener: (m, m) lower factor L of S = L L^T; cross moments here are L^-1 times theirs.
    """

    def __init__(self, fit: Fold, held: Fold, existing: int, factor: Tensor | None = None) -> None:
        rows = [fold.rows for fold in (fit, held)]
        few = all(one is not None for one in rows)
        both = fit.factors + held.factors if few else fit.complete + held.complete
        self.locations = both.locations
        self.held_samples = max(held.factors.rows / both.locations, 1.0)
        self.whitener = cholesky(both.S, DAMPING)
        G = both.G
        self.inverse: FactorInverse
        if few:
            self.inverse = WoodburyInverse(torch.cat([one[:, :existing] for one in rows if one is not None]))
        else:
            self.inverse = FactorInverse(cholesky(both.A[:existing, :existing], DAMPING) if factor is None else factor)
        white = whiten(self.whitener, G[:, :existing])
        square, self._finish = self.inverse.quadratic_form(white.mT)
        self.eta = self.locations * square
        self._gradients = [fold.factors.G[:, :existing] for fold in (fit, held)]
        if G.shape[1] == existing:
            return
        if few:
            self._account_for_rows([cast(PerSampleFactors, fold.samples) for fold in (fit, held)], existing)
            return
        inputs = (both.A, fit.complete.A, held.complete.A)
        candidates = G.shape[1] - existing
        self._set_level(inputs[0][existing:, inputs[0].shape[1] - candidates :])
        predictions = self._predictions(inputs, existing, shared=factor is not None)
        folds = ((fit, held) if factor is not None else (), (fit,), (held,))
        self.all, self.fit, self.held = (
            self._account(A, G, some, predict, by_rows=factor is not None)
            for A, G, some, predict in zip(inputs, (G, fit.factors.G, held.factors.G), folds, predictions, strict=True)
        )

    def _set_level(self, raw: Tensor) -> None:
        """Keep the candidates' own moment (P, P), and the damping of each."""
        self.raw = raw
        level = raw.diagonal() * UNIT_DAMPING
        self.level = level + 1e-12 * level.sum() + 1e-30

    def _predictions(self, inputs: Sequence[Tensor], c: int, *, shared: bool) -> Sequence[Tensor]:
        """A^-1 A_cp for the moments of all samples and of each fold; own A_cc unless the factor is shared."""
        sides = [A[:c, A.shape[1] - len(self.level) :] for A in inputs]
        if shared:
            return self.inverse.solve(torch.cat(sides, 1)).chunk(len(sides), 1)
        inverses = [self.inverse, *(FactorInverse(cholesky(A[:c, :c], DAMPING)) for A in inputs[1:])]
        return [inverse.solve(side) for inverse, side in zip(inverses, sides, strict=True)]

    def _account_for_rows(self, folds: Sequence[PerSampleFactors], c: int) -> None:
        """Open the accounts of folds whose rows are all there."""
        new = torch.cat([fold.a[:, c:] for fold in folds]).double()
        self._set_level(new.mT @ new / len(new))

        def account(
            inverse: WoodburyInverse, new: Tensor, dz: Tensor, samples: PerSampleFactors | None
        ) -> ResidualStatistics:
            rest = inverse.residual(new)
            kept = None if samples is None else replace(samples, a=rest.to(samples.a))
            cross = whiten(self.whitener, dz.double().mT @ rest / len(rest))
            return ResidualStatistics(new.mT @ rest / len(rest) + torch.diag(self.level), cross, kept, float(len(rest)))

        assert isinstance(self.inverse, WoodburyInverse)
        self.all = account(self.inverse, new, torch.cat([fold.output_grad for fold in folds]), None)
        self.fit, self.held = (
            account(WoodburyInverse(fold.a[:, :c]), fold.a[:, c:].double(), fold.output_grad, fold) for fold in folds
        )

    def _account(
        self, A: Tensor, G: Tensor, folds: Sequence[Fold], predict: Tensor, *, by_rows: bool
    ) -> ResidualStatistics:
        """The account of the samples that A and G are means over, with the kept samples of these folds.

        With a factor that comes from other samples, A_pp - A_pc A^-1 A_cp need not be positive; the moment of the kept
        rows' residual activations always is (`by_rows`).
        """
        c, cut = len(predict), A.shape[1] - len(self.level)
        kept = [fold.samples.residual(predict) for fold in folds]
        if by_rows:
            moments = [input_covariance(one.a, one.weight) for one in kept if isinstance(one, PerSampleFactors)]
            residual = sum(moments[1:], moments[0]).double() / sum(one.total for one in kept)
        else:
            residual = A[c:, cut:] - predict.mT @ A[:c, cut:]
        cross = whiten(self.whitener, G[:, c:] - G[:, :c] @ predict)
        samples = kept[0] if len(kept) == 1 else None
        weight = max(sum(one.total for one in kept), 1e-30)
        return ResidualStatistics(residual + torch.diag(self.level), cross, samples, weight)

    @cached_property
    def _step(self) -> Tensor:
        """L_S^-1 G A^-1: the natural step, whitened."""
        return self._finish().mT

    @property
    def step(self) -> Tensor:
        """The natural step of the existing weights, (m, c)."""
        step: Tensor = torch.linalg.solve_triangular(self.whitener.mT, self._step, upper=True)
        return step

    def after(self, weight: Tensor) -> Tensor:
        """L^T times the weights [W | b] (m, c) less their natural step, S = L L^T: where they are going, whitened.

        Returns:
            (3, m, c): with the step of all samples, and with those that each fold's gradient asks for.
        """
        steps = [self.inverse.solve(whiten(self.whitener, G).mT).mT for G in self._gradients]
        return self.whitener.mT @ weight.double() - torch.stack([self._step, *steps])

    def gain(self, columns: Tensor, onto: Tensor | None = None) -> Tensor:
        """Exact gain D of each group of columns, (groups, p) long to (groups,), see `scores.width_gain`."""
        return self._quadratic(self.all.residual, columns, onto)

    def gain_lower_bound(self, columns: Tensor, onto: Tensor | None = None) -> Tensor:
        """Lower bound D' of each group (Theorem 3.2, `scores.width_gain_bound`); residuals include what is accepted."""
        return self._quadratic(self.raw + torch.diag(self.level), columns, onto)

    def held_out_gain(self, columns: Tensor, onto: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Held-out gain of each group and its standard error: steps fitted on one fold, valued on the other."""
        cross = _projected(_gather(self.fit.cross, columns), onto)
        step = _divide(cross, _blocks(self.fit.residual, columns))
        return self._value(
            step, (step * cross).sum((-2, -1)), (step * _gather(self.held.cross, columns)).sum((-2, -1)), columns
        )

    def cross_fold_gain(self, columns: Tensor, onto: Tensor | None = None) -> Tensor:
        """Gain of each group as the two folds agree on it: what one's step brings to first order on the other.

        At the best length half of what a step brings to first order is lost to curvature. The held-out gain is less by
        what the noise of its step costs; this one isn't, on average, but nothing bounds it.
        """
        cross = _projected(_gather(self.fit.cross, columns), onto)
        step = _divide(cross, _blocks(self.fit.residual, columns))
        flat, length = self._stepped(step, (step * cross).sum((-2, -1)), columns)
        _, crossed = self.held.curvature(self.held.directional("pseudo_grad", flat, columns))
        slope = (step * _gather(self.held.cross, columns)).sum((-2, -1))
        return self.locations * length * (slope - crossed)

    def diagonal(self, columns: Tensor, through: Tensor) -> Gains:
        """Gains of parameters that enter z through fixed columns, see `scores.diagonal_gain`; their gain is its bound.

        Args:
            columns: (q,) their features.
            through: (m, q) where each enters, whitened: L^T M.
        """
        metric = through.mT @ through

        def gradient(account: ResidualStatistics) -> Tensor:
            return (through * account.cross[:, columns]).sum(0)

        def curvature(account: ResidualStatistics) -> Tensor:
            return account.residual[columns][:, columns] * metric

        gain = float(diagonal_gain(gradient(self.all), curvature(self.all), locations=self.locations))
        values = solve(cholesky(curvature(self.fit), DAMPING), gradient(self.fit)[:, None])[:, 0]
        step = (through * values)[None]
        fitted, held = ((values @ gradient(account))[None] for account in (self.fit, self.held))
        value, error = self._value(step, fitted, held, columns[None])
        return Gains(
            gain=gain,
            gain_lower_bound=gain,
            held_out_gain=float(value),
            held_out_stderr=float(error),
            cross_fold_gain=math.nan,
        )

    def eliminate(self, columns: Tensor, onto: Tensor | None = None) -> None:
        """Count these columns (p,) as part of the map from now on."""
        self.eta += float(self.gain(columns[None], onto)[0])
        cross = _projected(_gather(self.fit.cross, columns[None]), onto)
        step = _divide(cross, _blocks(self.fit.residual, columns[None]))
        flat, length = self._stepped(step, (step * cross).sum((-2, -1)), columns[None])
        self.fit, self.held = (
            account.moved(length * account.directional("pseudo_grad", flat, columns[None]))
            for account in (self.fit, self.held)
        )
        self.all, self.fit, self.held = (account.without(columns) for account in (self.all, self.fit, self.held))

    def clone(self) -> LayerGains:
        """A ledger to try acceptances on: tensors are replaced, never written to, so a shallow copy is enough."""
        return copy.copy(self)

    def _stepped(self, step: Tensor, fitted: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Whitened steps (groups, m, p) as (m, groups * p) of the map, and their lengths (groups,).

        The length is the best one along the step on the fold that it was fitted on, given what was accepted before, and
        at most K-FAC's own, 1. `fitted` is the step's decrease to first order.
        """
        groups, m, p = step.shape
        flat = step.movedim(1, 0).reshape(m, groups * p)
        flat = torch.linalg.solve_triangular(self.whitener.mT, flat, upper=True)
        curved, crossed = self.fit.curvature(self.fit.directional("pseudo_grad", flat, columns))
        slope = (fitted - crossed).clamp_min(0)
        return flat, slope / torch.maximum(curved, slope).clamp_min(1e-30)

    def _value(self, step: Tensor, fitted: Tensor, held: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """2 t <g_held, d> - t^2 d^T F_held d - 2 t d^T F_held d_0 of a step t d after the accepted ones, d_0.

        The last term is what K-FAC takes to be zero, since columns are residual ones: without it, units that are active
        on the same samples would each promise the same decrease. The standard error is that of the mean over the
        held-out samples.
        """
        flat, length = self._stepped(step, fitted, columns)
        # what a step does to a sample is the sum of what it does at its locations: summed before it is squared
        on_held = self.held.directional("pseudo_grad", flat, columns)
        curved, crossed = self.held.curvature(on_held)
        value = 2 * length * (held - crossed) - length.square() * curved
        slope = self.held.directional("output_grad", flat, columns)
        samples = 2 * length * (slope - self.held.before(on_held) * on_held) - length.square() * on_held.square()
        error = (samples / self.locations).std(0, correction=0) / self.held_samples**0.5
        return self.locations * value, self.locations * error

    def _quadratic(self, moment: Tensor, columns: Tensor, onto: Tensor | None) -> Tensor:
        """Tr(C M^-1 C^T) of each group, C on all samples."""
        taken = _gather(self.all.cross, columns)
        if onto is not None:
            taken = onto.mT @ taken
        return self.locations * (_divide(taken, _blocks(moment, columns)) * taken).sum((-2, -1))


@dataclass(frozen=True, eq=False)
class ResidualStatistics:
    """Residual moments of the candidate columns on some samples.

    Attributes:
        residual: (P, P) Schur complement A_pp - A_pc A^-1 A_cp, damped.
        cross: (m, P) L^-1 E[d_r a_p^T].
        samples: kept one by one, over the residual activations; none are kept for all samples together.
        weight: sum of their rows' weights.
        accepted: (samples,) s^T d a of the steps that were accepted, summed; None for none.
    """

    residual: Tensor
    cross: Tensor
    samples: Samples | None
    weight: float
    accepted: Tensor | None = None

    def without(self, columns: Tensor) -> ResidualStatistics:
        """After these columns are part of the map: one step of block elimination."""
        taken = torch.linalg.solve(self.residual[columns][:, columns], self.residual[columns]).mT
        return ResidualStatistics(
            self.residual - taken @ self.residual[columns],
            self.cross - self.cross[:, columns] @ taken.mT,
            None if self.samples is None else self.samples.without(columns, taken),
            self.weight,
            self.accepted,
        )

    def moved(self, along: Tensor) -> ResidualStatistics:
        """After a step with s^T d a of (samples, 1)."""
        return replace(self, accepted=along[:, 0] if self.accepted is None else self.accepted + along[:, 0])

    def before(self, along: Tensor) -> Tensor:
        """What the accepted steps do to the samples, (samples, 1) of the dtype of (samples, groups)."""
        return along.new_zeros(len(along), 1) if self.accepted is None else self.accepted[:, None].to(along)

    def curvature(self, along: Tensor) -> tuple[Tensor, Tensor]:
        """d^T F d of each step, and d^T F d_0 with the accepted ones, for s^T d a of (samples, groups)."""
        curved, crossed = along.square().sum(0), (along * self.before(along)).sum(0)
        return curved.double() / self.weight, crossed.double() / self.weight

    def directional(self, kind: str, step: Tensor, columns: Tensor) -> Tensor:
        """See `Rowwise.along`: of the kept samples, (samples, groups)."""
        assert self.samples is not None
        return self.samples.directional(kind, step, columns)


def _gather(cross: Tensor, columns: Tensor) -> Tensor:
    """Columns of a whitened cross moment by group, (groups, m, p)."""
    return cross[:, columns].movedim(1, 0)


def _blocks(moment: Tensor, columns: Tensor) -> Tensor:
    """The diagonal blocks (groups, p, p) of the groups."""
    return moment[columns[:, :, None], columns[:, None, :]]


def _divide(rows: Tensor, blocks: Tensor) -> Tensor:
    """Rows (groups, m, p) times the inverses of symmetric blocks (groups, p, p)."""
    return rows / blocks if blocks.shape[-1] == 1 else torch.linalg.solve(blocks, rows.mT).mT


def _projected(cross: Tensor, onto: Tensor | None) -> Tensor:
    """The part of each (m, p) in the span of an orthonormal basis (m, r)."""
    return cross if onto is None else onto @ (onto.mT @ cross)
