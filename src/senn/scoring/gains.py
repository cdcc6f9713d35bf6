"""Gains of the candidate columns of one linear map, brought up to date as some of them are accepted.

The map reads existing columns a_c (c of them, with the constant 1) and candidate columns a_p (P of them), all in one
set of moments for each of two folds of samples. A duplicate of an accepted unit is worth nothing, since accepting a
column eliminates it from all others (`ResidualStatistics`).

Statistics `all` use every sample (eta, gain and bound, as in the paper); `fit` and `held_out` are of the two folds.

K-FAC (Martens & Grosse 2015, arXiv 1503.05671) takes activations and output gradients as independent. Where both are
sparse together (a unit that is active on the few samples that another unit passes on) its curvature is too small by as
much as the fraction of active samples, and a gain can come out above lambda. So a step's *direction* is K-FAC's, and
its *length* and held-out value come from the exact curvature along it, d^T F d = E[(sum over a sample's locations of
s^T d a_p)^2], which sampled rows give without bias.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from senn.kfac.factors import (
    DAMPING,
    FactorInverse,
    KroneckerFactors,
    WoodburyInverse,
    cholesky,
    solve,
)
from senn.kfac.folds import Fold
from senn.kfac.per_sample import PerSampleFactors
from senn.kfac.whitening import square_root, unwhiten_outputs, whiten_outputs, whiten_weights
from senn.scoring.changes import Gains
from senn.scoring.formulas import diagonal_gain, divided, quadratic_decrease, trace_product
from senn.scoring.residual_statistics import ResidualStatistics, column_damping


class LayerGains:
    """Scores of candidate columns of one linear map.

    Args:
        fit: the fold on which steps are fitted.
        held_out: the fold on which they are valued.
        existing: c, the number of existing columns.
        factor: Cholesky factor of the damped A_cc where that is known (the input covariance of a map that reads the
            data itself never changes). Both folds then share it, and their moments need not hold A_cc.

    Attributes:
        inverse: inverse of A_cc on all samples, damped.
        eta: the map's expansion score now, accepted columns included.
        whitener: L with S = L L^T, (m, m) or (m,) (`whitening`); cross moments here are L^-1 times theirs.
        damping: (P,) damping of the candidate columns.
        first_fit: statistics of the fitting fold before anything was accepted.
        existing: c, as above.
        folds: both folds.
        is_shared: True if both folds share a known A_cc.
    """

    def __init__(
        self, fit: Fold, held_out: Fold, existing: int, factor: Tensor | None = None
    ) -> None:
        rows = [fold.rows for fold in (fit, held_out)]
        has_all_rows = all(one is not None for one in rows)
        both = fit.factors + held_out.factors if has_all_rows else fit.complete + held_out.complete
        self.locations = both.locations
        # Standard errors count samples: locations of one sample aren't independent.
        self.n_held_out = max(held_out.factors.samples, 1.0)
        # S = L L^T: with L^-1 applied once, all that follows is plain sums of squares.
        self.whitener = square_root(both.S, DAMPING)
        G = both.G
        A = G.new_empty(0) if has_all_rows else both.A  # once: a mean is a pass over memory
        self.inverse: FactorInverse
        if has_all_rows:  # fewer than columns: (rows, rows) products are cheaper than (c, c) ones
            self.inverse = WoodburyInverse(
                torch.cat([one[:, :existing] for one in rows if one is not None])
            )
        elif factor is None:
            self.inverse = FactorInverse(cholesky(A[:existing, :existing], DAMPING))
        else:
            self.inverse = FactorInverse(factor)
        # eta = locations * Tr(S^-1 G A^-1 G^T) (paper, equation 2), as in `formulas.expansion_score`
        score, self._finish_step = self.inverse.quadratic_form(
            whiten_outputs(self.whitener, G[:, :existing]).mT
        )
        self.eta = self.locations * score
        # sums, which the folds hold anyway: means in float64 are made when they are asked for
        self.existing, self.folds, self.is_shared = existing, (fit, held_out), factor is not None
        if G.shape[1] == existing:  # no candidates
            return
        if has_all_rows:
            self._read_rows(
                [cast(PerSampleFactors, fold.samples) for fold in (fit, held_out)], existing
            )
        else:
            inputs = (A, fit.complete.A, held_out.complete.A)
            self._read_moments(inputs, (G, fit.factors.G, held_out.factors.G), existing)
        # Statistics are replaced, never written to: keeping these costs nothing until something is accepted.
        self.first_fit = self.fit

    def _read_moments(self, inputs: Sequence[Tensor], gradients: Sequence[Tensor], c: int) -> None:
        """Make the statistics from moments of all samples and of each fold, in this order."""
        folds, is_shared = self.folds, self.is_shared
        candidates = gradients[0].shape[1] - c
        # where A_cc is known, A holds the candidates' columns alone: count from the end
        self._set_moment(inputs[0][c:, inputs[0].shape[1] - candidates :])
        sides = [A[:c, A.shape[1] - candidates :] for A in inputs]
        kept: list[Sequence[Fold]] = [folds, folds[:1], folds[1:]]
        if is_shared:
            predictions = self.inverse.solve(torch.cat(sides, 1)).chunk(len(sides), 1)
        else:
            # All samples together keep no rows that a prediction were subtracted from.
            self.all = ResidualStatistics.from_step(
                new=inputs[0][:, c:],
                cross=gradients[0][:, c:],
                factor=self.inverse.factor,
                step=self._white_step,
                damping=self.damping,
                whitener=self.whitener,
            )
            inputs, gradients, kept = inputs[1:], gradients[1:], kept[1:]
            # each fold predicts with its own A^-1, or its residuals would have been fitted on the other fold, too
            predictions = tuple(
                solve(cholesky(A[:c, :c], DAMPING), side)
                for A, side in zip(inputs, sides[1:], strict=True)
            )
        of_moments = functools.partial(
            ResidualStatistics.from_moments,
            damping=self.damping,
            whitener=self.whitener,
            locations=self.locations,
            by_rows=is_shared,
        )
        found = [
            of_moments(A=A, G=G, folds=of, prediction=prediction)
            for A, G, of, prediction in zip(inputs, gradients, kept, predictions, strict=True)
        ]
        self.fit, self.held_out = found[-2:]
        if is_shared:
            self.all = found[0]

    def _read_rows(self, folds: Sequence[PerSampleFactors], c: int) -> None:
        """Make the statistics from folds all of whose rows are kept."""
        new = torch.cat([fold.a[:, c:] for fold in folds]).double()
        self._set_moment(new.mT @ new / len(new))
        assert isinstance(self.inverse, WoodburyInverse)

        def statistics(
            new: Tensor,
            output_grad: Tensor,
            samples: PerSampleFactors | None,
            inverse: WoodburyInverse,
        ) -> ResidualStatistics:
            return ResidualStatistics.from_rows(
                new=new,
                output_grad=output_grad,
                samples=samples,
                inverse=inverse,
                damping=self.damping,
                whitener=self.whitener,
            )

        self.all = statistics(
            new, torch.cat([fold.output_grad for fold in folds]), None, self.inverse
        )
        self.fit, self.held_out = (
            statistics(
                fold.a[:, c:].double(), fold.output_grad, fold, WoodburyInverse(fold.a[:, :c])
            )
            for fold in folds
        )

    def _set_moment(self, moment: Tensor) -> None:
        """Keep the candidates' own moment (P, P), damped, and the damping of each."""
        self.damping = column_damping(moment)
        self._moment = moment + torch.diag(self.damping)

    @property
    def factors(self) -> KroneckerFactors:
        """Factors of all samples; without the moments among the existing columns where these are known."""
        fit, held_out = self.folds
        return fit.complete + held_out.complete

    @cached_property
    def _white_step(self) -> Tensor:
        """Natural step L^-1 G A^-1, whitened, (m, c)."""
        return self._finish_step().mT

    @property
    def step(self) -> Tensor:
        """Natural step S^-1 G A^-1 of the existing weights, (m, c); see `formulas.natural_step`."""
        return unwhiten_outputs(self.whitener, self._white_step)

    def next_weights(self, weight: Tensor) -> Tensor:
        """Whitened weights after their natural step: what removing a column costs is read off these.

        Args:
            weight: [W | b], (m, c).

        Returns:
            L^T ([W | b] - step), (3, m, c): with the step of all samples, and with those that each fold's gradient asks
            for.
        """
        fit, held_out = (fold.factors for fold in self.folds)
        white = whiten_outputs(self.whitener, fit.G[:, : self.existing])
        # The step is linear in the gradient, which is a mean over both folds: one step follows from the other two.
        fitted = self.inverse.solve(white.mT).mT
        share = fit.rows / max(fit.rows + held_out.rows, 1e-30)
        # all zeros where no weight is held out
        other = (self._white_step - share * fitted) / (1 - share) if share < 1 else 0 * fitted
        steps = torch.stack([self._white_step, fitted, other])
        return whiten_weights(self.whitener, weight.double()) - steps

    def gain(self, columns: Tensor, output_basis: Tensor | None = None) -> Tensor:
        """Exact K-FAC gain D of groups of columns (`formulas.width_gain`), given what is accepted already.

        Args:
            columns: (groups, p) numbers of candidate columns.
            output_basis: (m, r) orthonormal basis of the outputs that can change; None for all of them.

        Returns:
            (groups,) in eta.
        """
        return self._trace_product(self.all.residual, columns, output_basis)

    def gain_lower_bound(self, columns: Tensor, output_basis: Tensor | None = None) -> Tensor:
        """Lower bound D' of groups of columns (paper, Theorem 3.2; `formulas.width_gain_bound`).

        Args:
            columns: (groups, p) numbers of candidate columns.
            output_basis: (m, r) orthonormal basis of the outputs that can change; None for all of them.

        Returns:
            (groups,) in eta; residual gradients take into account what is accepted.
        """
        return self._trace_product(self._moment, columns, output_basis)

    def held_out_gain(
        self, columns: Tensor, output_basis: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Gain of groups of columns by steps that are fitted on one fold and valued on the other.

        Args:
            columns: (groups, p) numbers of candidate columns.
            output_basis: (m, r) orthonormal basis of the outputs that can change; None for all of them.

        Returns:
            held-out gain and its standard error, (groups,) each, in eta.
        """
        step, fitted_slope = self.fitted_step(columns, output_basis)
        held_out_slope = (step * _by_group(self.held_out.cross, columns)).sum((-2, -1))
        return self._value(step, fitted_slope, held_out_slope, columns)

    def cross_fold_gain(self, columns: Tensor, output_basis: Tensor | None = None) -> Tensor:
        """Gain that the two folds agree on: the first-order decrease on one fold of a step fitted on the other.

        At the best length half of a step's first-order decrease is lost to curvature. The held-out gain is less by
        what the noise of its step costs; this one isn't, on average, but nothing bounds it.

        Args:
            columns: (groups, p) numbers of candidate columns.
            output_basis: (m, r) orthonormal basis of the outputs that can change; None for all of them.

        Returns:
            (groups,) in eta.
        """
        step, fitted_slope = self.fitted_step(columns, output_basis)
        flat, length = self.with_length(step, fitted_slope, columns)
        _, crossed = self.held_out.curvature(self.held_out.effect("pseudo_grad", flat, columns))
        slope = (step * _by_group(self.held_out.cross, columns)).sum((-2, -1))
        return self.locations * length * (slope - crossed)

    def diagonal(self, columns: Tensor, through: Tensor) -> Gains:
        """Gains of parameters that enter z through fixed columns (`formulas.diagonal_gain`).

        Args:
            columns: (q,) numbers of their features.
            through: (m, q) where each enters z, whitened: L^T M.

        Returns:
            the gains; the lower bound is the gain itself.
        """
        metric = through.mT @ through  # M^T S M

        def gradient(statistics: ResidualStatistics) -> Tensor:
            return (through * statistics.cross[:, columns]).sum(0)

        def curvature(statistics: ResidualStatistics) -> Tensor:
            return statistics.residual[columns][:, columns] * metric

        gain = float(
            diagonal_gain(gradient(self.all), curvature(self.all), locations=self.locations)
        )
        # Newton step of these parameters on the fitting fold.
        values = self.fit.newton_step(columns, through)
        step = (through * values)[None]
        fitted_slope, held_out_slope = (
            (values @ gradient(one))[None] for one in (self.fit, self.held_out)
        )
        value, stderr = self._value(step, fitted_slope, held_out_slope, columns[None])
        return Gains(
            gain=gain,
            gain_lower_bound=gain,
            held_out_gain=float(value),
            held_out_stderr=float(stderr),
            cross_fold_gain=math.nan,
        )

    def eliminate(self, columns: Tensor, output_basis: Tensor | None = None) -> None:
        """Count columns as part of the map from now on; every gain is that of the others, conditioned on them.

        Args:
            columns: (p,) numbers of candidate columns.
            output_basis: (m, r) orthonormal basis of the outputs that can change; None for all of them.
        """
        group = columns[None]
        # Before the elimination, which makes the gain of these columns zero.
        self.eta += float(self.gain(group, output_basis)[0])
        step, fitted_slope = self.fitted_step(group, output_basis)
        flat, length = self.with_length(step, fitted_slope, group)
        self.fit, self.held_out = (
            statistics.moved(length * statistics.effect("pseudo_grad", flat, group))
            for statistics in (self.fit, self.held_out)
        )
        self.all, self.fit, self.held_out = (
            statistics.without(columns) for statistics in (self.all, self.fit, self.held_out)
        )

    def clone(self) -> LayerGains:
        """A copy to try eliminations on: tensors are replaced, never written to, so a shallow copy is enough."""
        return copy.copy(self)

    def fitted_step(self, columns: Tensor, output_basis: Tensor | None) -> tuple[Tensor, Tensor]:
        """Whitened K-FAC steps of groups (groups, p) on the fitting fold, (groups, m, p), and their slopes <g, d>."""
        cross = _by_group(self.fit.cross, columns)
        if output_basis is not None:
            # Only the part that the map can pass on is a step at all.
            cross = output_basis @ (output_basis.mT @ cross)
        step = divided(cross, _blocks(self.fit.residual, columns))
        return step, (step * cross).sum((-2, -1))

    def with_length(
        self, step: Tensor, fitted_slope: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Steps of the map itself, (m, groups * p), from whitened ones, (groups, m, p), and their lengths (groups,).

        The length is the best one along the step on the fitting fold, given what was accepted before, and at most
        K-FAC's own, 1.
        """
        groups, m, p = step.shape
        flat = step.movedim(1, 0).reshape(m, groups * p)
        flat = unwhiten_outputs(self.whitener, flat)
        curvature, crossed = self.fit.curvature(self.fit.effect("pseudo_grad", flat, columns))
        slope = (fitted_slope - crossed).clamp_min(0)
        # t = slope / curvature minimizes the quadratic; a curvature below the slope would mean t > 1
        return flat, slope / torch.maximum(curvature, slope).clamp_min(1e-30)

    def _value(
        self, step: Tensor, fitted_slope: Tensor, held_out_slope: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Held-out value 2 t <g, d> - t^2 d^T F d - 2 t d^T F d_0 of steps t d after the accepted ones, d_0.

        The last term is what K-FAC takes to be zero, since columns are residual ones: without it, units that are active
        on the same samples would each predict the same decrease. The standard error is that of the mean over the
        held-out samples.
        """
        flat, length = self.with_length(step, fitted_slope, columns)
        # a step's effect on a sample is the sum over its locations: summed before it is squared
        effect = self.held_out.effect("pseudo_grad", flat, columns)
        curvature, crossed = self.held_out.curvature(effect)
        value = quadratic_decrease(held_out_slope - crossed, curvature, length)
        slopes = self.held_out.effect("output_grad", flat, columns)
        crossed_by_sample = self.held_out.accepted_effect(effect) * effect
        by_sample = quadratic_decrease(slopes - crossed_by_sample, effect.square(), length)
        stderr = (by_sample / self.locations).std(0, correction=0) / self.n_held_out**0.5
        return self.locations * value, self.locations * stderr

    def _trace_product(
        self, moment: Tensor, columns: Tensor, output_basis: Tensor | None
    ) -> Tensor:
        """Locations * Tr(C M^-1 C^T) of each group, for the cross moment C of all samples."""
        cross = _by_group(self.all.cross, columns)
        if output_basis is not None:
            cross = output_basis.mT @ cross
        return trace_product(cross, cross, _blocks(moment, columns), locations=self.locations)


def _by_group(cross: Tensor, columns: Tensor) -> Tensor:
    """Columns of a whitened cross moment by group, (groups, m, p)."""
    return cross[:, columns].movedim(1, 0)


def _blocks(moment: Tensor, columns: Tensor) -> Tensor:
    """Diagonal blocks (groups, p, p) of the groups."""
    return moment[columns[:, :, None], columns[:, None, :]]
