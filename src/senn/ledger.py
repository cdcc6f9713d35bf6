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
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from senn.curvature.factors import DAMPING, Moments, cholesky, solve, whiten
from senn.scores import diagonal_gain

ROWS = 1024
"""Rows of each fold that are kept for exact curvatures along a step."""

SAMPLES = 64
"""Samples of each fold that are kept at least, however many locations each has."""

UNIT_DAMPING = 1e-3
"""Relative damping of a candidate column's own moment, so that an exact copy of an existing one gains nothing."""


@dataclass(frozen=True, eq=False)
class Fold:
    """What is known about one fold of samples.

    Attributes:
        moments: over [a_c | a_p].
        a: some of its rows [a_c | a_p], (n, c + P).
        s: the same rows' curvature-propagated signs, (n, m).
        dz: the same rows' output gradients, (n, m).
        weight: the same rows' weights, (n,), which s and dz carry already; None for ones.
    """

    moments: Moments
    a: Tensor
    s: Tensor
    dz: Tensor
    weight: Tensor | None = None

    @classmethod
    def of(cls, moments: Moments, a: Tensor, s: Tensor, dz: Tensor, weight: Tensor | None) -> Fold:
        """The moments of some samples with the rows of the first of them: whole samples, `ROWS` rows or `SAMPLES`."""
        kept = slice(0, max(ROWS // moments.locations, SAMPLES) * moments.locations)
        return cls(moments, a[kept], s[kept], dz[kept], None if weight is None else weight[kept])

    def __add__(self, other: Fold) -> Fold:
        """Both sets of samples, with the rows of the first ones."""
        total = self.moments + other.moments
        if len(self.a) + total.locations > max(ROWS, SAMPLES * total.locations):
            return replace(self, moments=total)
        a, s, dz = (torch.cat(pair) for pair in ((self.a, other.a), (self.s, other.s), (self.dz, other.dz)))
        weighted = self.weight is not None or other.weight is not None
        return Fold.of(total, a, s, dz, torch.cat([self.weights, other.weights]) if weighted else None)

    @property
    def weights(self) -> Tensor:
        """The rows' weights, (n,)."""
        return self.a.new_ones(len(self.a)) if self.weight is None else self.weight


class Ledger:
    """Scores of candidate columns of one linear map.

    Args:
        fit: the fold on which steps are fitted.
        held: the fold on which they are valued.
        existing: c, the number of existing columns.
        factor: Cholesky factor of the damped A_cc where that is known (the input moment of a map that reads the data
            itself never changes); both folds then share it, and their moments need not hold A_cc.

    Attributes:
        factor: of A_cc on all samples.
        eta: the map's expansion score now, accepted columns included.
        whitener: (m, m) lower factor L of S = L L^T; cross moments here are L^-1 times theirs.
    """

    def __init__(self, fit: Fold, held: Fold, existing: int, factor: Tensor | None = None) -> None:
        both = fit.moments + held.moments
        self.locations = both.locations
        self.held_samples = max(held.moments.rows / both.locations, 1.0)
        self.whitener = cholesky(both.S, DAMPING)
        A, G = both.A, both.G
        candidates = len(A) - existing
        self.raw = A[existing:, A.shape[1] - candidates :]
        level = self.raw.diagonal() * UNIT_DAMPING
        self.level = level + 1e-12 * level.sum() + 1e-30
        self.factor = cholesky(A[:existing, :existing], DAMPING) if factor is None else factor
        # L_S^-1 G L_A^-T: its square is eta, and one more solve on either side makes it the natural step
        white = whiten(self.whitener, G[:, :existing])
        self._white = torch.linalg.solve_triangular(self.factor.mT, white, upper=True, left=False)
        self.eta = self.locations * float(self._white.square().sum())
        if not candidates:
            return
        inputs = (A, fit.moments.A, held.moments.A)
        predictions = self._predictions(inputs, existing, shared=factor is not None)
        rows = ((fit, held) if factor is not None else (), (fit,), (held,))
        self.all, self.fit, self.held = (
            self._account(A, G, folds, predict, by_rows=factor is not None)
            for A, G, folds, predict in zip(inputs, (G, fit.moments.G, held.moments.G), rows, predictions, strict=True)
        )

    def _predictions(self, inputs: Sequence[Tensor], c: int, *, shared: bool) -> Sequence[Tensor]:
        """A^-1 A_cp for the moments of all samples and of each fold; own A_cc unless the factor is shared."""
        sides = [A[:c, A.shape[1] - len(self.level) :] for A in inputs]
        if shared:
            return solve(self.factor, torch.cat(sides, 1)).chunk(len(sides), 1)
        factors = [self.factor, *(cholesky(A[:c, :c], DAMPING) for A in inputs[1:])]
        return [solve(factor, side) for factor, side in zip(factors, sides, strict=True)]

    def _account(self, A: Tensor, G: Tensor, folds: Sequence[Fold], predict: Tensor, *, by_rows: bool) -> Account:
        """The account of the samples that A and G are means over, with the rows of these folds.

        With a factor that comes from other samples, A_pp - A_pc A^-1 A_cp need not be positive; the moment of the kept
        rows' residual activations always is (`by_rows`).
        """
        c, cut = len(predict), A.shape[1] - len(self.level)
        rows = [fold.a[:, c:] - fold.a[:, :c] @ predict.to(fold.a.dtype) for fold in folds]
        a = torch.cat(rows) if rows else predict.new_empty(0, len(self.level))
        weights = torch.cat([fold.weights for fold in folds]) if folds else predict.new_empty(0)
        if by_rows:
            residual = ((a * weights[:, None]).mT @ a).double() / float(weights.sum())
        else:
            residual = A[c:, cut:] - predict.mT @ A[:c, cut:]
        cross = whiten(self.whitener, G[:, c:] - G[:, :c] @ predict)
        s, dz = (folds[0].s, folds[0].dz) if len(folds) == 1 else (G[:0], G[:0])
        return Account(residual + torch.diag(self.level), cross, a, s, dz, max(float(weights.sum()), 1e-30))

    @property
    def step(self) -> Tensor:
        """The natural step of the existing weights, (m, c)."""
        left = torch.linalg.solve_triangular(self.whitener.mT, self._white, upper=True)
        step: Tensor = torch.linalg.solve_triangular(self.factor, left, upper=False, left=False)
        return step

    def after(self, weight: Tensor) -> Tensor:
        """L^T times the weights [W | b] (m, c) less their natural step, S = L L^T: where they are going, whitened."""
        step: Tensor = torch.linalg.solve_triangular(self.factor.mT, self._white.mT, upper=True).mT
        return self.whitener.mT @ weight.double() - step

    def gain(self, columns: Tensor, onto: Tensor | None = None) -> Tensor:
        """Exact gain D of each group of columns, (groups, p) long to (groups,), see `scores.width_gain`."""
        return self._quadratic(self.all.residual, columns, onto)

    def bound(self, columns: Tensor, onto: Tensor | None = None) -> Tensor:
        """Lower bound D' of each group (Theorem 3.2, `scores.width_gain_bound`); residuals include what is accepted."""
        return self._quadratic(self.raw + torch.diag(self.level), columns, onto)

    def heldout(self, columns: Tensor, onto: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Held-out gain of each group and its standard error: steps fitted on one fold, valued on the other."""
        cross = _projected(_gather(self.fit.cross, columns), onto)
        step = _divide(cross, _blocks(self.fit.residual, columns))
        return self._value(
            step, (step * cross).sum((-2, -1)), (step * _gather(self.held.cross, columns)).sum((-2, -1)), columns
        )

    def diagonal(self, columns: Tensor, through: Tensor) -> tuple[float, float, float]:
        """Gain, held-out gain and its standard error of parameters that enter z through fixed columns.

        See `scores.diagonal_gain`.

        Args:
            columns: (q,) their features.
            through: (m, q) where each enters, whitened: L^T M.
        """
        metric = through.mT @ through

        def gradient(account: Account) -> Tensor:
            return (through * account.cross[:, columns]).sum(0)

        def curvature(account: Account) -> Tensor:
            return account.residual[columns][:, columns] * metric

        gain = float(diagonal_gain(gradient(self.all), curvature(self.all), locations=self.locations))
        values = solve(cholesky(curvature(self.fit), DAMPING), gradient(self.fit)[:, None])[:, 0]
        step = (through * values)[None]
        fitted, held = ((values @ gradient(account))[None] for account in (self.fit, self.held))
        value, error = self._value(step, fitted, held, columns[None])
        return gain, float(value), float(error)

    def accept(self, columns: Tensor, onto: Tensor | None = None) -> None:
        """Count these columns (p,) as part of the map from now on."""
        self.eta += float(self.gain(columns[None], onto)[0])
        self.all, self.fit, self.held = (account.without(columns) for account in (self.all, self.fit, self.held))

    def clone(self) -> Ledger:
        """A ledger to try acceptances on: tensors are replaced, never written to, so a shallow copy is enough."""
        return copy.copy(self)

    def _value(self, step: Tensor, fitted: Tensor, held: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """2 t <g_held, d> - t^2 d^T F_held d, the length t (at most K-FAC's own, 1) fitted on the other fold.

        The standard error is that of the mean over the held-out samples.
        """
        groups, m, p = step.shape
        flat = step.movedim(1, 0).reshape(m, groups * p)
        flat = torch.linalg.solve_triangular(self.whitener.mT, flat, upper=True)
        # what a step does to a sample is the sum of what it does at its locations: summed before it is squared
        on_fit, on_held = (
            self._by_sample(account.along(account.s, flat, columns)).square() for account in (self.fit, self.held)
        )
        curved, curved_held = on_fit.sum(0).double() / self.fit.weight, on_held.sum(0).double() / self.held.weight
        length = fitted / torch.maximum(curved, fitted).clamp_min(1e-30)
        value = 2 * length * held - length.square() * curved_held
        slope = self._by_sample(self.held.along(self.held.dz, flat, columns))
        samples = (2 * length * slope - length.square() * on_held) / self.locations
        error = samples.std(0, correction=0) / self.held_samples**0.5
        return self.locations * value, self.locations * error

    def _by_sample(self, rows: Tensor) -> Tensor:
        """Sums over each sample's locations, (rows, groups) to (samples, groups)."""
        return rows.view(-1, self.locations, rows.shape[1]).sum(1)

    def _quadratic(self, moment: Tensor, columns: Tensor, onto: Tensor | None) -> Tensor:
        """Tr(C M^-1 C^T) of each group, C on all samples."""
        taken = _gather(self.all.cross, columns)
        if onto is not None:
            taken = onto.mT @ taken
        return self.locations * (_divide(taken, _blocks(moment, columns)) * taken).sum((-2, -1))


@dataclass(frozen=True, eq=False)
class Account:
    """Residual moments of the candidate columns on some samples.

    Attributes:
        residual: (P, P) Schur complement A_pp - A_pc A^-1 A_cp, damped.
        cross: (m, P) L^-1 E[d_r a_p^T].
        a: rows of residual activations, (n, P); none are kept for all samples together.
        s: the same rows' signs, (n, m).
        dz: the same rows' output gradients, (n, m).
        weight: sum of their weights.
    """

    residual: Tensor
    cross: Tensor
    a: Tensor
    s: Tensor
    dz: Tensor
    weight: float

    def without(self, columns: Tensor) -> Account:
        """After these columns are part of the map: one step of block elimination."""
        taken = torch.linalg.solve(self.residual[columns][:, columns], self.residual[columns]).mT
        return Account(
            self.residual - taken @ self.residual[columns],
            self.cross - self.cross[:, columns] @ taken.mT,
            self.a - self.a[:, columns] @ taken.mT.to(self.a.dtype),
            self.s,
            self.dz,
            self.weight,
        )

    def along(self, rows: Tensor, step: Tensor, columns: Tensor) -> Tensor:
        """r^T d a_p of each row r (n, m), (n, groups), for steps d (m, groups * p) of columns (groups, p)."""
        through = (rows @ step.to(rows.dtype)).view(len(rows), *columns.shape)
        return (through * self.a[:, columns]).sum(-1)


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
