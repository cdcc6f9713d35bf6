"""GoRA's rule: ranks by the mean of |W * G|, and a second factor that makes of the first one the gradient's best image.

He, Ye, Jiang et al. 2025, *GoRA: Gradient-driven Adaptive Low Rank Adaptation*, arXiv 2502.12171, written anew. With n
inputs and m outputs, a map's share of the budget sum r_ref sqrt(m + n) is that of its importance, and its rank that
share over sqrt(m + n), at least half of r_ref and at most four times it. A stays as it was drawn, and B = -scale G A^+.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def ranks(
    weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], reference: int
) -> dict[str, int]:
    """Rank of each map, with no more parameters in all than at the reference rank everywhere.

    Args:
        weights: by map, (m, n).
        gradients: mean gradients of the loss, of the same shapes.
        reference: the rank that sets the budget.
    """
    importance = {name: float((weights[name] * gradients[name]).abs().mean()) for name in weights}
    total = sum(importance.values())
    size = {name: sum(weight.shape) for name, weight in weights.items()}
    budget = reference * sum(math.sqrt(one) for one in size.values())
    least, most = max(1, reference // 2), 4 * reference
    found = {
        name: min(
            most, max(least, round(budget * importance[name] / total / math.sqrt(size[name])))
        )
        for name in weights
    }
    # rounding and limits may go beyond the budget: the least important maps give way
    limit = reference * sum(size.values())
    while sum(found[name] * size[name] for name in found) > limit:
        name = min(
            (one for one in found if found[one] > 1), key=lambda one: importance[one] / found[one]
        )
        found[name] -= 1
    return found


def second_factor(down: Tensor, gradient: Tensor, scale: float) -> Tensor:
    """B = -scale G A^+, with which B A is minus the gradient's projection on A's rows.

    Args:
        down: A, (rank, n).
        gradient: G, (m, n).
        scale: what it is multiplied by.
    """
    return -scale * gradient @ torch.linalg.pinv(down)
