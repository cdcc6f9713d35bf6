"""Second moments of new entries: what an optimizer would have averaged if they had been there.

Adam and its kin divide by the root of an average of squared gradients. An average of zero where training is old lets
new entries jump, since nothing corrects any more for its start from zero, and the loss with them. So new entries get

- the mean of the old entries, at the change itself (`fill_from_existing`), and
- once there is a loss to measure it on, what goes with their own gradient (`warm_second_moments`).

The level of an average, which has an optimizer's decay, its start and the size of the loop's minibatches in it, is read
off the old entries: what they hold, against what their gradient is now.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from senn.surgery.blank_optimizer import Trial, TrialError, small_gradient
from senn.surgery.optimizer_layers import OptimizerLayers
from senn.surgery.second_moments import (
    MOST_STEPS,
    Found,
    SecondMoment,
    find_second_moments,
)
from senn.surgery.undo import Resized

FIRST_STEPS = 10
"""Steps of the trial that shows where new entries go: after ten, Adam's first moment has come to two thirds."""


JUMP = 100
"""How many times farther than old parameters new ones may go. Under Adam a few times, by zero a million times."""


@dataclass(frozen=True, eq=False, kw_only=True)
class GradientMoments:
    """Moments of a parameter's gradient over minibatches.

    Attributes:
        mean: mean gradient, of the parameter's shape.
        variance: variance from minibatch to minibatch, of the same shape; zeros if there was one only.
    """

    mean: Tensor
    variance: Tensor


Measure = Callable[[Mapping[nn.Parameter, Tensor]], Mapping[nn.Parameter, GradientMoments]]
"""Measures the gradients of some parameters where these have the given values, and all others their own."""


def new_entries(change: Resized) -> Tensor:
    """Return a mask of the entries of a resized tensor that weren't there before.

    Args:
        change: of the tensor.
    """
    values = change.new.values
    mask = torch.zeros(values.shape, dtype=torch.bool, device=values.device)
    for dim, layout in change.layouts.items():
        shape = [1] * values.dim()
        shape[dim] = -1
        mask |= (layout.order >= layout.size).to(mask.device).view(shape)
    return mask


def fill_from_existing(layers: OptimizerLayers, masks: Mapping[nn.Parameter, Tensor]) -> None:
    """Give second moments of new entries the mean of the old ones along each dimension that has grown.

    Args:
        layers: the optimizers, whose state has been carried: tensors with new entries are new, and are written to.
        masks: by resized parameter, its new entries.
    """
    for moment, new in _grown(find_second_moments(layers, masks), masks):
        _write(moment, new, _existing_mean(moment, new))


def start_denominators(
    layers: OptimizerLayers, joined: Mapping[nn.Parameter, nn.Parameter]
) -> None:
    """Start the state of new layers' parameters where an optimizer would divide by an average of zero.

    The first gradient of a new layer's weight is zero where what reads it is zero. Most optimizers add a gradient's
    square to its average before they divide by the root. ADOPT (Taniguchi et al. 2024, arXiv 2411.02853) and AdaShift
    divide by an average of former gradients alone, and a trial shows how far they would go.

    Args:
        layers: the optimizers, which hold the new parameters.
        joined: by new parameter, one that was there before, whose mean average it gets.
    """
    both = [*joined, *joined.values()]
    try:
        trial = Trial(layers, {one: one.detach() for one in both}, keep_state=True)
        trial.step()
        started = [_state_of(trial, number, [*joined]) for number in range(len(layers.states))]
        for _ in range(MOST_STEPS):
            trial.step(small_gradient)
    except TrialError:
        return  # said elsewhere, if no gradient suits it

    def moved(one: nn.Parameter) -> float:
        # the median: an old weight behind an input that is always zero jumps as far as new ones
        return float((trial.stand_ins[one].detach() - one.detach()).abs().median())

    # Written so that NaN jumps: it compares as False.
    jumping = {one: old for one, old in joined.items() if not moved(one) <= JUMP * moved(old)}
    if not jumping:
        return
    for (_, state), its in zip(layers.states, started, strict=True):
        state |= {one: its[one] for one in jumping if its[one] and not state.get(one)}
    found = find_second_moments(layers, [*jumping, *jumping.values()])
    for one, old in jumping.items():
        for mine, other in zip(found.get(one, []), found.get(old, []), strict=True):
            mine.values.fill_(float(other.values.double().mean()))


def _state_of(
    trial: Trial, number: int, parameters: Sequence[nn.Parameter]
) -> dict[nn.Parameter, Any]:
    """Return copies of the state that a trial's stand-ins have by now."""
    memo = {id(stand_in): one for one, stand_in in trial.stand_ins.items()}
    return {one: copy.deepcopy(trial.state(number, one), {**memo}) for one in parameters}


def warm_second_moments(
    layers: OptimizerLayers, masks: Mapping[nn.Parameter, Tensor], measure: Measure
) -> None:
    """Give new entries the second moments that go with their own gradients.

    Gradients are measured at the birth, and again where ten steps lead: the gradients of new units grow with their
    weights, and silent ones have none at first in what they read. The larger one of both counts. Entries without a
    gradient keep the mean of the old ones.

    Args:
        layers: the optimizers, whose state has been carried: tensors with new entries are new, and are written to.
        masks: by resized parameter, its new entries.
        measure: measures the gradients of these parameters; it is called twice.
    """
    found = find_second_moments(layers, masks)
    if not any(True for _ in _grown(found, masks)):
        return
    gradients = measure({one: one.detach() for one in masks})
    _fill(found, masks, gradients)
    moved = _moved(layers, masks, gradients)
    if moved:
        later = measure(moved)
        larger = {one: _larger(gradients[one], later[one], mask) for one, mask in masks.items()}
        _fill(found, masks, larger)


def _grown(
    found: Found, masks: Mapping[nn.Parameter, Tensor]
) -> Iterator[tuple[SecondMoment, Tensor]]:
    """Yield second moments that have old and new entries, with the mask of the new ones."""
    for one, moments in found.items():
        for moment in moments:
            new = moment.new(masks[one]).to(moment.values.device)
            if new.any() and not new.all():
                yield moment, new


def _fill(
    found: Found,
    masks: Mapping[nn.Parameter, Tensor],
    gradients: Mapping[nn.Parameter, GradientMoments],
) -> None:
    for one, moments in found.items():
        for moment, new in _grown({one: moments}, masks):
            signal = moment.reduced(gradients[one].mean.double().square()).to(new.device)
            noise = moment.reduced(gradients[one].variance.double()).to(new.device)
            if moment.mixed:
                signal, noise = _block_means(signal, new), _block_means(noise, new)
            level = _Level.of(moment.values[~new].double(), signal[~new], noise[~new])
            by = torch.where(
                signal + noise > 0, level.at(signal, noise), _existing_mean(moment, new)
            )
            _write(moment, new, by)


@dataclass(frozen=True, kw_only=True)
class _Level:
    """An average of squared gradients in terms of the gradient's mean and of its variance over minibatches.

    The loop's minibatches may be larger or smaller than those of the measurement, so mean and variance have a factor
    each. The mean's square counts once, or less in a young average that starts from zero and isn't corrected for it.
    What it doesn't explain of the old entries' averages is noise.
    """

    signal: float
    noise: float

    @classmethod
    def of(cls, averages: Tensor, signal: Tensor, noise: Tensor) -> _Level:
        total, signals, noises = (float(one.sum()) for one in (averages, signal, noise))
        ratio = total / signals if signals else 1.0
        if not noises:
            return cls(signal=ratio, noise=0.0)
        share = min(1.0, ratio)
        return cls(signal=share, noise=max(total - share * signals, 0.0) / noises)

    def at(self, signal: Tensor, noise: Tensor) -> Tensor:
        return self.signal * signal + self.noise * noise


def _moved(
    layers: OptimizerLayers,
    masks: Mapping[nn.Parameter, Tensor],
    gradients: Mapping[nn.Parameter, GradientMoments],
) -> dict[nn.Parameter, Tensor]:
    """Return parameters with new entries where steps along their mean gradient lead; none if no step can be tried."""
    try:
        trial = Trial(layers, {one: one.detach() for one in masks}, keep_state=True)
        for _ in range(FIRST_STEPS):
            trial.step(lambda one, like: (gradients[one].mean * masks[one]).to(like))
    except TrialError:
        return {}
    return {
        one: torch.where(mask, trial.stand_ins[one].detach(), one.detach())
        for one, mask in masks.items()
    }


def _larger(one: GradientMoments, other: GradientMoments, new: Tensor) -> GradientMoments:
    """Return the larger moments of two, in size, for new entries, and the first ones for old entries."""
    return GradientMoments(
        mean=torch.where(new, torch.maximum(one.mean.abs(), other.mean.abs()), one.mean),
        variance=torch.where(new, torch.maximum(one.variance, other.variance), one.variance),
    )


def _write(moment: SecondMoment, new: Tensor, by: Tensor) -> None:
    moment.values[new] = by.to(moment.values)[new]


def _existing_mean(moment: SecondMoment, new: Tensor) -> Tensor:
    """Return an average with new entries at the mean of old ones, along each dimension in which there are new ones."""
    filled = moment.values.double()
    if moment.mixed:
        return filled[~new].mean().expand_as(filled)
    for dim, is_new in enumerate(_new_by_dim(new)):
        if is_new.any() and not is_new.all():
            mean = filled.index_select(dim, (~is_new).nonzero().flatten()).mean(dim, keepdim=True)
            where = is_new.view([-1 if one == dim else 1 for one in range(new.dim())])
            filled = torch.where(where, mean, filled)
    return filled


def _block_means(squares: Tensor, new: Tensor) -> Tensor:
    """Return squares, each block of old or new entries along all dimensions at its mean."""
    for dim, is_new in enumerate(_new_by_dim(new)):
        for block in (is_new, ~is_new):
            if block.any():
                index = block.nonzero().flatten()
                part = squares.index_select(dim, index)
                squares = squares.index_copy(
                    dim, index, part.mean(dim, keepdim=True).expand_as(part)
                )
    return squares


def _new_by_dim(new: Tensor) -> list[Tensor]:
    """For each dimension, return which of its positions are new."""
    every = [tuple(one for one in range(new.dim()) if one != dim) for dim in range(new.dim())]
    return [new.all(others) if others else new for others in every]
