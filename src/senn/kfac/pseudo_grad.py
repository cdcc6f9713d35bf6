"""Random rows whose covariance is a loss's Hessian: signs, the same for each sample on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from senn.kfac.loss_hessians import LocalLoss

JOINT_SIGNS = 1 << 26
"""Up to this many signs, a rank draws those of all ranks' samples, so that each sample gets those of a single process.

At a byte a sign that is 64 MiB for a moment, and the time to draw them.
"""


@dataclass(frozen=True, eq=False, kw_only=True)
class Among:
    """Which samples of a larger batch, spread over several ranks, a rank has.

    Attributes:
        total: number of samples of the batch.
        places: which of them these are, (samples,).
        joined: makes a number for each sample of the batch, (total,), of one for each of the rank's own, (samples,);
            all ranks call it.
    """

    total: int
    places: Tensor
    joined: Callable[[Tensor], Tensor]


def draw_pseudo_grad(
    local: LocalLoss,
    generator: torch.Generator,
    among: Among | None = None,
    live: Tensor | None = None,
) -> Tensor:
    """Draw random rows v_i with E[v_i v_i^T] = H_i; see `LossMetric.pseudo_grad`.

    Args:
        local: the loss around a batch's outputs.
        generator: source of the signs.
        among: which samples of a larger batch these are; None if they are a batch of their own.
        live: outputs that the loss depends on, (N, m) Boolean, as of `live_outputs`; None for all.

    Returns:
        (N, m).
    """
    signs = draw_signs(local.gradient.shape, live, generator, among)
    # one byte a sign up to here: with the vocabulary of a language model they are as many as anything is
    return local.curvature.root(signs.to(local.gradient))


def draw_signs(
    shape: torch.Size, live: Tensor | None, generator: torch.Generator, among: Among | None
) -> Tensor:
    """Draw a Rademacher sign for each live entry: independent, -1 or 1.

    None is drawn for the others, so that padding doesn't change what the rest gets.

    Args:
        shape: (N, m).
        live: (N, m) Boolean; None for all entries.
        generator: source of the signs.
        among: which samples of a larger batch these are; None if they are a batch of their own.

    Returns:
        Signs (N, m), int8, zero where an entry isn't live.
    """
    samples, m = shape
    everywhere = torch.full((samples,), m) if live is None else live.sum(1).cpu()
    counts = everywhere if among is None else among.joined(everywhere)
    total, first = int(counts.sum()), counts.cumsum(0) - counts
    if among is not None and total > JOINT_SIGNS:
        # As random, but not the signs that a single process would draw: those of all ranks don't fit in memory.
        seed = int(torch.randint(1 << 62, (), generator=generator, device=generator.device))
        generator = torch.Generator(generator.device).manual_seed(seed + int(among.places[0]))
        counts, total, among = everywhere, int(everywhere.sum()), None
        first = counts.cumsum(0) - counts
    # 2 r - 1 turns bits into signs
    flat = torch.randint(
        0, 2, (total,), generator=generator, device=generator.device, dtype=torch.int8
    )
    flat = flat * 2 - 1
    if live is None and among is None:
        return flat.view(shape)
    # The signs of the whole batch are drawn, and these samples' taken: as on a single process.
    own = first if among is None else first[among.places.cpu()]
    chosen = torch.ones(shape, dtype=torch.bool) if live is None else live.cpu()
    number = own[:, None] + chosen.cumsum(1) - 1
    signs = torch.zeros(shape, dtype=flat.dtype, device=flat.device)
    signs[chosen.to(flat.device)] = flat[number[chosen].to(flat.device)]
    return signs
