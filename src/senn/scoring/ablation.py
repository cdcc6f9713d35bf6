"""Ablation of what a round has added: the loss without it is what it has brought.

New units are removed as pruning would remove them: the existing columns take over what they predict of the new ones
(optimal brain surgeon, OBS). Zeros alone would also take away the means that later layers count on, and the more so the
longer the network has been trained with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from senn.graph import LinearMap, get_tensor
from senn.scoring.birth_steps import ParameterEntries, like_weight
from senn.scoring.formulas import compensation
from senn.scoring.pool import CandidatePool
from senn.scoring.pruning_costs import weight_of


@contextmanager
def ablated(pool: CandidatePool, added: Sequence[ParameterEntries]) -> Iterator[None]:
    """Take what was added out of the pool's model for a while; its numbers are the same bits afterwards.

    Args:
        pool: scores of the model as it is.
        added: entries of what was added; all must fit the model.
    """
    model = pool.model
    maps = {one.weight: one for one in pool.maps.values()}
    with torch.no_grad():
        names = {one.name for one in added}
        names |= {bias for name in names if name in maps and (bias := maps[name].bias)}
        former = [(get_tensor(model, name), get_tensor(model, name).clone()) for name in names]
    try:
        for name in dict.fromkeys(one.name for one in added):
            own = [one for one in added if one.name == name]
            if name in maps and own[0].kind == "widen":
                _hand_over(pool, maps[name], torch.cat([one.index for one in own]))
            for one in own:
                one.write(model, one.silent)
        yield
    finally:
        for tensor, values in former:
            tensor.data.copy_(values)


def _hand_over(pool: CandidatePool, linear_map: LinearMap, positions: Tensor) -> None:
    """Let the other columns of a map take over what they predict of the columns at some positions of its inputs."""
    name, existing = linear_map.name, pool.columns[linear_map.name].existing
    kernel = torch.arange(linear_map.kernel_numel)
    gone = (positions[:, None] * linear_map.kernel_numel + kernel).flatten()
    is_kept = torch.ones(existing, dtype=torch.bool)
    is_kept[gone] = False
    weight = weight_of(pool.model, linear_map).double()
    change = torch.zeros_like(weight)
    (coefficients,) = pool.owners.share(
        "measure what came of it",
        name,
        lambda: [compensation(pool.layer_gains[name].inverse.dense, gone)],
    )
    change[:, is_kept] = weight[:, gone] @ coefficients
    tensor = get_tensor(pool.model, linear_map.weight)
    outputs = torch.arange(tensor.shape[linear_map.out_dim])
    size = existing - (linear_map.bias is not None)
    tensor.data.add_(like_weight(change[:, :size], linear_map, tensor.shape, outputs).to(tensor))
    if linear_map.bias is not None and not linear_map.transposed:
        bias = get_tensor(pool.model, linear_map.bias)
        bias.data.add_(change[:, -1].to(bias))
