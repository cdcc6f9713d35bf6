"""Which output entries a loss depends on: positions whose targets are ignored or masked have no gradient, no curvature.

An entry may have neither by chance, too (a likelihood that has saturated, a margin that is kept). So a loss without a
closed form is also differentiated at other outputs: what has no gradient at any of them is ignored by the loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from senn.errors import SennError
from senn.kfac.loss_hessians import LocalLoss


class DifferentiatedLoss(Protocol):
    """What is asked of a loss; `LossMetric` is one."""

    @property
    def has_closed_form(self) -> bool:
        """True if it is known what the loss ignores."""

    def _rows(self, output: Tensor, target: Any) -> Tensor:
        """Gradient rows (N, m) at other outputs."""


def live_outputs(
    metric: DifferentiatedLoss, local: LocalLoss, output: Tensor, target: Any
) -> Tensor | None:
    """Find the outputs that a loss depends on.

    Args:
        metric: the loss.
        local: the loss around the outputs, as of `LossMetric.local`; a sample without weight doesn't count.
        output: the outputs, (N, ...).
        target: targets as the loss takes them.

    Returns:
        (N, m) Boolean, False where there is neither gradient nor curvature, since a target is ignored or masked, say;
        None for all of them.
    """
    dead = local.gradient == 0
    if not bool(dead.any()):
        return None
    # normal numbers, since products with signs can cancel
    dead &= local.curvature.product(_normal(local.gradient)) == 0
    # what a closed form ignores has no curvature, so there is nothing left to find out
    for other in () if metric.has_closed_form else _other_outputs(output.detach()):
        if not bool(dead.any()):
            return None
        # NaN where the loss isn't defined at these outputs: that says nothing
        dead &= _gradient(metric, other, target, local).nan_to_num(0.0, 0.0, 0.0) == 0
    return ~dead if bool(dead.any()) else None


def _gradient(metric: DifferentiatedLoss, output: Tensor, target: Any, local: LocalLoss) -> Tensor:
    try:
        return metric._rows(output, target)
    except (SennError, RuntimeError, ValueError):  # outputs that the loss doesn't take
        return torch.zeros_like(local.gradient)


def _other_outputs(output: Tensor) -> Iterator[Tensor]:
    """Outputs of other samples, which any loss takes, then some far away."""
    yield output.roll(1, 0)
    yield output.roll(len(output) // 2, 0)
    yield -output
    yield output + 10 * _normal(output)


def _normal(like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like)
