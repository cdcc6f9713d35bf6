"""Random rows whose covariance is a loss's Hessian: signs, the same for each sample on any number of ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from senn.kfac.loss_hessians import LocalLoss

Among = tuple[int, Tensor]
"""Number of samples of a larger batch, and which of them these are, (samples,)."""

JOINT_SIGNS = 1 << 26
"""Up to this many signs, a rank draws those of all ranks' samples, so that each sample gets those of a single process.

At a byte a sign that is 64 MiB for a moment, and the time to draw them.
"""


def draw_pseudo_grad(
    local: LocalLoss, generator: torch.Generator, among: Among | None = None
) -> Tensor:
    """Draw random rows v_i with E[v_i v_i^T] = H_i; see `LossMetric.pseudo_grad`.

    Args:
        local: the loss around a batch's outputs.
        generator: source of the signs.
        among: which samples of a larger batch these are; None if they are a batch of their own.

    Returns:
        (N, m).
    """
    signs = _signs(local.gradient.shape, generator, among)
    # one byte a sign up to here: with the vocabulary of a language model they are as many as anything is
    return local.curvature.root(signs.to(local.gradient))


def _signs(shape: torch.Size, generator: torch.Generator, among: Among | None) -> Tensor:
    """Draw Rademacher signs (N, m): independent, -1 or 1, int8."""
    if among is None:
        return _bits(shape, generator) * 2 - 1  # 2 r - 1 turns bits into signs
    (samples, m), (total, places) = shape, among
    if total * m <= JOINT_SIGNS:
        # The signs of the whole batch are drawn, and these samples' taken: as on a single process.
        joint = _bits((total, m), generator)
        return joint[places.to(joint.device)] * 2 - 1
    # As random, but not the signs that a single process would draw: those of all ranks don't fit in memory.
    seed = int(torch.randint(1 << 62, (), generator=generator, device=generator.device))
    own = torch.Generator(generator.device).manual_seed(seed + int(places[0]))
    return _bits((samples, m), own) * 2 - 1


def _bits(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randint(
        0, 2, tuple(shape), generator=generator, device=generator.device, dtype=torch.int8
    )
