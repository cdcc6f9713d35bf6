"""Averages of squared gradients whose zeros would let new entries jump.

Most optimizers add a gradient's square to its average before they divide by the root, so that an entry whose average
is still zero takes a step of ordinary length. ADOPT (Taniguchi et al. 2024, arXiv 2411.02853) divides by the average of
former gradients: by zero, for an entry that has none.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from senn.surgery.blank_optimizer import Trial, TrialError, small_gradient
from senn.surgery.optimizer_layers import OptimizerLayers, tensors_in
from senn.surgery.undo import Resized

STEPS = 3
"""Steps of the trial, after one without a gradient: of new units, which are silent, some gradients begin at zero."""

JUMP = 100
"""How many times farther than the old entries new ones may go. Under Adam a few times, by zero a million times."""


def fill_denominators(layers: OptimizerLayers, changes: Mapping[nn.Parameter, Resized]) -> None:
    """Start averages of squares of new entries at the mean of the old ones, where a trial shows that they need it.

    Args:
        layers: the optimizers, whose state has been carried; tensors of resized parameters are new, and written to.
        changes: of the resized parameters.
    """
    masks = {one: _is_new(one, change) for one, change in changes.items()}
    masks = {one: mask for one, mask in masks.items() if mask.any() and not mask.all()}
    if not masks:
        return  # as where units are removed only
    try:
        trial = Trial(layers, {one: one.detach() for one in layers.parameters}, keep_state=True)
        trial.step()
        for _ in range(STEPS):
            trial.step(small_gradient)
    except TrialError:
        return  # said elsewhere, if no gradient suits it
    for one, mask in masks.items():
        moved = (trial.stand_ins[one].detach() - one.detach()).abs()
        # a NaN is no small move either
        if bool(moved[mask].max() <= JUMP * moved[~mask].max()):
            continue
        for _, state in layers.states:
            for value in tensors_in(state.get(one)):
                _fill(value, mask)


def _is_new(parameter: nn.Parameter, change: Resized) -> Tensor:
    """Return a mask of the entries that weren't there before."""
    mask = torch.zeros(parameter.shape, dtype=torch.bool, device=parameter.device)
    for dim, layout in change.layouts.items():
        shape = [1] * parameter.dim()
        shape[dim] = -1
        mask |= (layout.order >= layout.size).to(mask.device).view(shape)
    return mask


def _fill(value: Tensor, mask: Tensor) -> None:
    if value.shape != mask.shape or not value.is_floating_point():
        return
    old, new = value[~mask], value[mask]
    if bool((old >= 0).all()) and bool(old.any()) and not bool(new.any()):
        value[mask] = old.mean()
