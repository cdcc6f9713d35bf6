"""What an optimizer starts parameters with, and how its state follows their sizes: read off trials."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from senn.errors import UnsupportedError
from senn.surgery.blank_optimizer import Gradient, Trial, small_gradient, start_trial
from senn.surgery.optimizer_layers import OptimizerLayers, is_plain, leaves_in, tensors_in
from senn.surgery.undo import Resized

MISSING: Any = object()
"""Stands where a trial has made no state."""

Views = tuple[Any, ...]
"""One entry of a state as trials have it: at the new shape, at the old one, and with each dimension one larger."""


class Starts:
    """Trials of optimizers for a change of their parameters.

    Args:
        layers: the optimizers.
        changes: of the resized parameters.
        added: new parameters, which are in groups already.

    Raises:
        UnsupportedError: an optimizer can't train the new parameters.
    """

    def __init__(
        self,
        layers: OptimizerLayers,
        changes: Mapping[nn.Parameter, Resized],
        added: Mapping[nn.Parameter, Any],
    ) -> None:
        self._layers, self._changes = layers, changes
        new = {one: change.new.values for one, change in changes.items()}
        self._after = _States(
            layers, {**new, **{one: one.detach() for one in added}}, self._gradient
        )
        self._before: list[_States] = []
        self._opposite: _States | None = None
        if added and self._after.made_up:
            self._opposite = _States(
                layers,
                {one: one.detach() for one in added},
                lambda parameter, stand_in: -self._gradient(parameter, stand_in),
            )
        for one in added:
            error = self._after.errors.get(one)
            if error is not None:
                raise UnsupportedError(
                    f"{error[0]} can't train the new parameters: {error[1]}"
                ) from error[1]
        if any(_is_shaped(layers, one, change) for one, change in changes.items()):
            old = {one: change.old.values for one, change in changes.items()}
            most = max(one.dim() for one in old.values())
            self._before = [_States(layers, old, self._gradient)]
            for dim in range(most):
                larger = {one: _longer(value, dim) for one, value in old.items()}
                self._before.append(_States(layers, larger, self._gradient))

    def views(self, state: int, parameter: nn.Parameter) -> Views:
        """Return what a parameter's state looks like in the trials.

        Args:
            state: number in `OptimizerLayers.states`.
            parameter: the parameter.
        """
        every = [self._after, *self._before[: 1 + parameter.dim()]]
        return tuple(one.get(state, parameter) for one in every)

    def depends_on_gradients(self, state: int) -> bool:
        """Tell whether what new entries start with has the scale of gradients that were made up.

        Args:
            state: number in `OptimizerLayers.states`.
        """
        return state in self._after.made_up

    def of_new(self, state: int, parameter: nn.Parameter) -> Any:
        """Return the state of a new parameter before its first step, where the optimizer can't start it itself.

        The first gradient of a new layer's weight is zero where what reads it is zero, and some optimizers can't start
        with that. So this is what they start with at some gradient, without what depends on the gradient's sign.

        Args:
            state: number in `OptimizerLayers.states`.
            parameter: the parameter.

        Returns:
            The state; None if the optimizer takes gradients of zero.
        """
        if self._opposite is None or state not in self._after.made_up:
            return None
        started, opposite = (one.get(state, parameter) for one in (self._after, self._opposite))
        return None if MISSING in (started, opposite) else _mean(started, opposite)

    def _gradient(self, parameter: nn.Parameter, stand_in: Tensor) -> Tensor:
        """Return a gradient that is random at the positions that there were, and zero at new ones."""
        gradient = small_gradient(parameter, stand_in)
        change = self._changes.get(parameter)
        if change is not None and stand_in.shape == change.new.values.shape:
            for dim, layout in change.layouts.items():
                new = (layout.order >= layout.size).nonzero().flatten()
                gradient.index_fill_(dim, new.to(gradient.device), 0)
        return gradient


class _States:
    """State of every optimizer after one step from nothing."""

    def __init__(
        self,
        layers: OptimizerLayers,
        values: Mapping[nn.Parameter, Tensor],
        gradient: Gradient,
    ) -> None:
        self.errors: dict[nn.Parameter, tuple[str, BaseException]] = {}
        self.made_up: set[int] = set()
        self._gradient = gradient
        self._trials: dict[int, tuple[Trial, int]] = {}
        if not values:
            return
        trial, made_up, _ = start_trial(layers, values, gradient)
        for number, (one, _) in enumerate(layers.states):
            if trial is not None:
                self._trials[number] = trial, number
                self.made_up |= {number} if made_up else set()
            else:
                self._alone(number, one, values)

    def _alone(
        self,
        number: int,
        optimizer: Optimizer,
        values: Mapping[nn.Parameter, Tensor],
    ) -> None:
        """Try one optimizer by itself, where the whole can't take a step."""
        alone = OptimizerLayers(optimizer)
        own = {one: value for one, value in values.items() if one in alone.parameters}
        if len(alone.optimizers) > 1 or not own or isinstance(optimizer, LBFGS):
            return  # a wrapper: what is inside has its own turn
        trial, made_up, failed = start_trial(alone, own, self._gradient)
        if trial is not None:
            self._trials[number] = trial, 0
            self.made_up |= {number} if made_up else set()
        elif failed is not None:
            self.errors |= dict.fromkeys(own, (type(optimizer).__name__, failed))

    def get(self, number: int, parameter: nn.Parameter) -> Any:
        if number not in self._trials:
            return MISSING
        trial, own = self._trials[number]
        return trial.state(own, parameter) if parameter in trial.stand_ins else MISSING


def _mean(one: Any, other: Any) -> Any:
    """Return the mean of all tensors in two states of one structure."""
    averaged: dict[int, Tensor] = {}
    for mine, its in zip(tensors_in(one), tensors_in(other), strict=True):
        if mine.is_floating_point() and mine.shape == its.shape:
            averaged[id(mine)] = torch.lerp(mine, its.to(mine), 0.5)
    return copy.deepcopy(one, dict(averaged))


def _is_shaped(layers: OptimizerLayers, parameter: nn.Parameter, change: Resized) -> bool:
    """Tell whether some state has a shape, or a number that may be a size, that only trials can explain."""
    shape = change.old.values.shape
    sizes = {*shape, shape.numel()}
    # The preconditioner of a square matrix has its shape.
    is_unclear = len({*shape}) < len(shape) and not is_plain(layers)
    return any(
        one.dim() and (is_unclear or one.shape != shape)
        if isinstance(one, Tensor)
        else one in sizes
        for _, state in layers.states
        for one in leaves_in(state.get(parameter))
        if isinstance(one, Tensor) or type(one) is int
    )


def _longer(value: Tensor, dim: int) -> Tensor:
    """Return a tensor with one more position along a dimension, or as it is if it has no such dimension."""
    if dim >= value.dim():
        return value
    return torch.cat([value, value.narrow(dim, 0, 1)], dim) if value.shape[dim] else value
