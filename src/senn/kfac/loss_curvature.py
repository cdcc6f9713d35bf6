"""Curvature of a loss without a closed form: from autograd, exactly where that is cheap, by products elsewhere.

Samples don't mix, so one backward pass through the gradient multiplies the Hessians of all samples with a row each.
Whatever structure the loss has is found out by such products and proved by a random one:

    up to `DENSE` outputs a sample     m products with unit vectors, and the eigenvectors of each H_i
    each output for itself             one product, with ones: the diagonal
    blocks along one dimension         C products, and the eigenvectors of each (C, C) block: a loss per position
    anything else                      Lanczos iterations, `krylov`: at most `STEPS` products, no matrix at all
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from senn.errors import SennError, UnsupportedError
from senn.kfac.krylov import STEPS, ProductHessian
from senn.kfac.loss_graph import LossGraph, random_rows
from senn.kfac.loss_hessians import DenseHessian, DiagonalHessian, LossHessian
from senn.kfac.recognized_loss import is_exact

DENSE = 64
"""Outputs a sample up to which Hessians are formed whole, in as many passes.

Eigenvectors cost m^3 a sample: 0.1 ms at 64, 50 ms at 1024.
"""

NUMBERS = 1 << 28
"""Numbers that curvature without a closed form may take: 1 GiB in float32, 2 GiB in float64."""


def loss_curvature(graph: LossGraph) -> LossHessian:
    """Find the Hessians of a loss that `recognize` doesn't know, in the cheapest form that is exact.

    Args:
        graph: the loss at a batch's outputs.

    Returns:
        The Hessians.

    Raises:
        UnsupportedError: the loss has no second derivative or no curvature, isn't convex in the outputs, or its
            curvature would take too much memory.
        SennError: its curvature is NaN or infinite.
    """
    graph.check_twice()
    samples, m = graph.rows.shape
    if m <= DENSE:
        return DenseHessian(**_eigen(graph, _columns(graph)))
    _check_curved(graph)
    by_output = DiagonalHessian(graph.product(torch.ones_like(graph.rows)))
    if is_exact(graph, by_output):
        return DiagonalHessian(graph.without_rounding(by_output.h))
    by_position = _blocks(graph)
    if by_position is not None:
        return by_position
    if STEPS * samples * m > NUMBERS:
        size = STEPS * samples * m * graph.rows.element_size() / 1e9
        raise UnsupportedError(
            f"the curvature of the loss {graph.name}, which has no known closed form, over {m} outputs of each of "
            f"{samples} samples would take {size:.0f} GB and {3 * STEPS} passes through the loss: use smaller batches "
            "or metric='euclidean'"
        )
    by_products = ProductHessian(graph=graph)
    # raises where it meets a negative eigenvalue, before anything is made of the curvature
    by_products.root(random_rows(graph.rows))
    return by_products


def _check_curved(graph: LossGraph) -> None:
    # a piecewise linear loss, such as the mean absolute error
    product = graph.product(random_rows(graph.rows))
    _check_finite(graph, product)
    _check_not_flat(graph, product)


def _check_not_flat(graph: LossGraph, curvature: Tensor) -> None:
    """Refuse a loss without curvature, unless it only has none left, where every sample is fitted perfectly."""
    if not curvature.any() and not graph.rounding:
        raise UnsupportedError(
            f"the loss {graph.name} has no curvature in the outputs: use metric='euclidean'"
        )


def _check_finite(graph: LossGraph, curvature: Tensor) -> None:
    if not torch.isfinite(curvature).all():
        raise SennError(
            f"the loss {graph.name} has a curvature that is NaN or infinite on this batch"
        )


def _columns(graph: LossGraph) -> Tensor:
    """Compute every sample's Hessian, (N, m, m), column by column."""
    rows = graph.rows
    hessian = rows.new_zeros(*rows.shape, rows.shape[1])
    for column in range(rows.shape[1] if rows.requires_grad else 0):
        direction = torch.zeros_like(rows)
        # column c of all samples' Hessians at once, since samples don't mix
        direction[:, column] = 1
        hessian[:, column] = graph.product(direction)
    return hessian


def _eigen(graph: LossGraph, hessian: Tensor) -> dict[str, Tensor]:
    """Find the eigenvectors and eigenvalues of symmetric matrices (..., n, n)."""
    _check_finite(graph, hessian)
    _check_not_flat(graph, hessian)
    values, vectors = torch.linalg.eigh((hessian + hessian.mT).double() / 2)
    values = graph.without_rounding(values)
    # Exact zeros where the loss ignores an output: rounding there would pass for curvature.
    vectors = torch.where(hessian.any(-1)[..., None] | (values == 0)[..., None, :], vectors, 0.0)
    return {"vectors": vectors.to(graph.rows), "values": values.to(graph.rows)}


# ---- blocks ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class BlockHessian:
    """Hessians that are zero between the positions of a sample.

    Attributes:
        blocks: one for each line of the outputs along `axis`, sample by sample: (N * positions, C, C).
        shape: of the outputs.
        axis: the dimension along which outputs share a block.
    """

    blocks: DenseHessian
    shape: torch.Size
    axis: int

    def _lines(self, rows: Tensor) -> Tensor:
        return rows.reshape(self.shape).movedim(self.axis, -1).flatten(0, -2)

    def _rows(self, lines: Tensor) -> Tensor:
        moved = torch.empty(self.shape, device="meta").movedim(self.axis, -1).shape
        return lines.view(moved).movedim(-1, self.axis).flatten(1)

    def root(self, r: Tensor) -> Tensor:
        """Multiply rows r (N, m) by a square root of H: R_i r_i with R_i R_i^T = H_i."""
        return self._rows(self.blocks.root(self._lines(r)))

    def product(self, u: Tensor) -> Tensor:
        """Multiply rows u (N, m) by H: H_i u_i."""
        return self._rows(self.blocks.product(self._lines(u)))

    def score_limit(self, gradient: Tensor) -> Tensor:
        """Compute g_i^T H_i^+ g_i, (N,) float64, for gradient rows g; infinite where H lacks a direction of g."""
        return self.blocks.score_limit(self._lines(gradient)).view(self.shape[0], -1).sum(1)

    def scaled(self, weight: Tensor) -> BlockHessian:
        """Weight each sample, w_i H_i, by w (N,)."""
        positions = len(self.blocks.values) // len(weight)
        scaled = self.blocks.scaled(weight.repeat_interleave(positions))
        return BlockHessian(blocks=scaled, shape=self.shape, axis=self.axis)


def _blocks(graph: LossGraph) -> BlockHessian | None:
    """Find blocks along a dimension of the outputs; None if there are none, or they are too large."""
    shape, rows = graph.leaf.shape, graph.rows
    for axis in sorted(range(1, len(shape)), key=lambda axis: shape[axis]):
        size = shape[axis]
        if size > DENSE or size * rows.numel() > NUMBERS or size == rows.shape[1]:
            continue
        # every other line is pushed, and the others must not feel it
        lines = torch.ones(shape).movedim(axis, -1).flatten(1, -2)
        lines[:, ::2] = 0
        moved = torch.empty(shape, device="meta").movedim(axis, -1).shape
        pushed = lines.view(moved).movedim(-1, axis).flatten(1).to(rows)
        answer = graph.product(random_rows(rows) * pushed)
        if ((1 - pushed) * answer).norm() > 1e-6 * answer.norm():
            continue
        block = BlockHessian(blocks=_blocks_along(graph, axis), shape=shape, axis=axis)
        if is_exact(graph, block):
            return block
    return None


def _blocks_along(graph: LossGraph, axis: int) -> DenseHessian:
    """Compute the blocks along a dimension, column by column: one product serves all positions."""
    columns = []
    for number in range(graph.leaf.shape[axis]):
        direction = torch.zeros_like(graph.leaf)
        direction.select(axis, number).fill_(1)
        product = graph.product(direction.flatten(1)).reshape(graph.leaf.shape)
        columns.append(product.movedim(axis, -1).flatten(0, -2))
    return DenseHessian(**_eigen(graph, torch.stack(columns, 2)))
