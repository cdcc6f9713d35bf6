"""Natural steps of candidate columns, computed from the account of a linear map, on the rank that has it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from senn.candidates.new_layers import ConvolutionalLayer, IdentityLayer
from senn.candidates.sampling import BATCH_NORMS
from senn.kfac.factors import DAMPING, FactorInverse, WoodburyInverse, cholesky, solve
from senn.kfac.per_sample import PerSampleFactors
from senn.kfac.whitening import whiten_weights
from senn.scoring.gains import LayerGains
from senn.scoring.pool import CandidatePool


def joint_step(
    gains: LayerGains, columns: Tensor, output_basis: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Natural step of columns that are added together, whatever was accepted before.

    Its direction is fitted on one fold, and so is its length, by the exact curvature along what the columns add to the
    outputs; it is K-FAC's own at most.

    Args:
        gains: gains of the map's columns.
        columns: (p,) numbers of candidate columns.
        output_basis: (m, r) orthonormal basis of the outputs that can change; None for all of them.

    Returns:
        (m, p), to be subtracted from the columns' weights, which are zero, and the same whitened, L^T d.
    """
    before = gains.clone()
    before.fit = gains.first_fit
    group = columns[None]
    white, slope = before.fitted_step(group, output_basis)
    flat, length = before.with_length(white, slope, group)
    return flat * length, white[0] * length


def prediction(gains: LayerGains, columns: Tensor) -> Tensor:
    """What a map's existing columns predict of candidate columns (p,) on the fitting fold, A^-1 A_cp, (c, p)."""
    c, fit = gains.existing, gains.folds[0]
    if isinstance(gains.inverse, WoodburyInverse):
        assert isinstance(fit.samples, PerSampleFactors)
        rows = fit.samples.a.double()
        old, new = rows[:, :c], rows[:, c:][:, columns]
        return WoodburyInverse(old).solve(old.mT @ new / len(rows))
    A = fit.complete.A
    # where A_cc is known, A holds the candidates' columns alone: count from the end
    side = A[:c, A.shape[1] - len(gains.damping) :][:, columns]
    inverse = gains.inverse if gains.is_shared else FactorInverse(cholesky(A[:c, :c], DAMPING))
    return inverse.solve(side)


def unit_steps(pool: CandidatePool, name: str, columns: Tensor) -> list[Tensor]:
    """Joint step of new columns of a map, and that of its existing ones, from the map's account."""
    return unit_steps_of(pool.layer_gains[name], columns)


def unit_steps_of(gains: LayerGains, columns: Tensor) -> list[Tensor]:
    """Joint step of new columns (p,) of a map, and that of its existing ones, from its gains."""
    step, _ = joint_step(gains, columns)
    return [step, -step @ prediction(gains, columns).mT]


def layer_steps(pool: CandidatePool, point: str) -> list[Tensor]:
    """Steps of an inserted layer, from the account of the map after it; of a residual one also what is taken back."""
    number, units = pool.insertions.units[point]
    layer = pool.candidate_set.layers[point][number]
    gains, by_layer = pool.insertions.scored_columns(point)
    columns = by_layer[number]
    if isinstance(layer, IdentityLayer):
        through = pool.insertions.through(point, layer)
        return [gains.first_fit.newton_step(columns.flatten(), through)]
    own = columns[units].flatten()
    if isinstance(layer, ConvolutionalLayer):  # its outputs are the stream itself
        step, _ = joint_step(gains, own)
    else:
        _, white = joint_step(gains, own, pool.insertions.output_basis(point))
        # V reaches the outputs as W V: least squares in their metric.
        step = _least_squares(pool.insertions.whitened_weight(point), white)
    return [step, -step @ prediction(gains, own).mT]


def copy_steps(pool: CandidatePool, block: str, name: str, module: nn.Module) -> list[Tensor]:
    """Steps of the output weights of a copy of a block, and of their biases, on the rank that scores it."""
    gains = pool.stream.repeats[block][name]()
    columns = torch.arange(len(gains.damping))
    if isinstance(module, BATCH_NORMS):
        each = torch.eye(len(gains.whitener), dtype=torch.float64)
        through = whiten_weights(gains.whitener, each)
        return [gains.first_fit.newton_step(columns, through)]
    step, _ = joint_step(gains, columns)
    return [step, -step @ prediction(gains, columns)[0]]


def _least_squares(through: Tensor, white: Tensor) -> Tensor:
    """Solve W V = D for V (in, p) by the smaller of the two normal equations, damped; W (m, in), D (m, p)."""
    if len(through) <= through.shape[1]:
        return through.mT @ solve(cholesky(through @ through.mT, DAMPING), white)
    return solve(cholesky(through.mT @ through, DAMPING), through.mT @ white)
