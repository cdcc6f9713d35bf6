"""Adam's count of steps, when new entries join an old average.

Adam divides its averages by 1 - beta^t, since they start at zero; t is one count for all entries of a tensor. New
entries start at zero as well, but at an old t nothing is divided any more: after k steps of a gradient g they move by
lr (1 - b1^k) / sqrt(1 - b2^k), up to 6.5 lr at k = 10, where an optimizer of their own would move them by lr. A network
that has settled at a small loss is thrown out of it.

So the count goes back to t', the end of the first moment's warm-up, and the old entries' averages are multiplied by
what makes their corrected values stay the same: m by (1 - b1^t') / (1 - b1^t), and v likewise. The next step of old
entries is as long as it would have been; their averages only forget faster for a while. New entries move by at most
1.4 lr.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, NAdam

from senn.surgery.optimizer_layers import OptimizerLayers
from senn.surgery.undo import Resized

_WARM_UP = 3.0
"""Length of the first moment's warm-up, over 1 / (1 - b1): an average from zero has then come to 95 %."""


def set_clocks_back(layers: OptimizerLayers, changes: Mapping[nn.Parameter, Resized]) -> None:
    """Set the counts of steps of parameters with new entries back to the end of Adam's warm-up.

    Args:
        layers: the optimizers, whose state has been carried already; other kinds than Adam's are left alone.
        changes: of the resized parameters.
    """
    for optimizer in layers.optimizers:
        # Not subclasses with a step of their own, which may correct their averages in another way.
        if type(optimizer).step not in (Adam.step, NAdam.step):
            continue
        for group in optimizer.param_groups:
            for one in group["params"]:
                state = optimizer.state.get(one)
                if state and one in changes and _grows(changes[one]):
                    _set_back(state, group["betas"], scaled_first=type(optimizer).step is Adam.step)


def _grows(change: Resized) -> bool:
    return any(layout.added for layout in change.layouts.values())


def _set_back(state: dict[str, Any], betas: Iterable[Any], scaled_first: bool) -> None:
    first, second = (float(beta) for beta in betas)
    count, warm = float(state["step"]), round(_WARM_UP / (1 - first))
    if count <= warm:
        return
    # NAdam corrects its first moment by a product of its own, which stays.
    factors = {"exp_avg": first} if scaled_first else {}
    factors |= {"exp_avg_sq": second, "max_exp_avg_sq": second}
    for key, beta in factors.items():
        if key in state:
            state[key] = state[key] * ((1 - beta**warm) / (1 - beta**count))
    step = state["step"]
    state["step"] = torch.full_like(step, warm) if isinstance(step, Tensor) else warm
