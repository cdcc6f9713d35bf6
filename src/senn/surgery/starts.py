"""What an optimizer starts parameters with, and how its state follows their sizes: read off trials."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from senn.errors import UnsupportedError
from senn.surgery.blank_optimizer import Trial, start_trial
from senn.surgery.optimizer_layers import OptimizerLayers, contents, is_plain
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
        self._layers = layers
        new = {one: change.new.values for one, change in changes.items()}
        self._after = _States(layers, {**new, **{one: one.detach() for one in added}})
        self._before: list[_States] = []
        for one in added:
            error = self._after.errors.get(one)
            if error is not None:
                raise UnsupportedError(
                    f"{error[0]} can't train the new parameters: {error[1]}"
                ) from error[1]
        if any(_is_shaped(layers, one, change) for one, change in changes.items()):
            old = {one: change.old.values for one, change in changes.items()}
            most = max(one.dim() for one in old.values())
            self._before = [_States(layers, old)]
            for dim in range(most):
                larger = {one: _longer(value, dim) for one, value in old.items()}
                self._before.append(_States(layers, larger))

    def views(self, state: int, parameter: nn.Parameter) -> Views:
        """Return what a parameter's state looks like in the trials.

        Args:
            state: number in `OptimizerLayers.states`.
            parameter: the parameter.
        """
        every = [self._after, *self._before[: 1 + parameter.dim()]]
        return tuple(one.get(state, parameter) for one in every)


class _States:
    """State of every optimizer after one step from nothing."""

    def __init__(self, layers: OptimizerLayers, values: Mapping[nn.Parameter, Tensor]) -> None:
        self.errors: dict[nn.Parameter, tuple[str, BaseException]] = {}
        self._trials: dict[int, tuple[Trial, int]] = {}
        if not values:
            return
        trial, _ = start_trial(layers, values)
        for number, (one, _) in enumerate(layers.states):
            if trial is not None:
                self._trials[number] = trial, number
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
        trial, failed = start_trial(alone, own)
        if trial is not None:
            self._trials[number] = trial, 0
        elif failed is not None:
            self.errors |= dict.fromkeys(own, (type(optimizer).__name__, failed))

    def get(self, number: int, parameter: nn.Parameter) -> Any:
        if number not in self._trials:
            return MISSING
        trial, own = self._trials[number]
        return trial.state(own, parameter) if parameter in trial.stand_ins else MISSING


def leaves_in(value: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """Yield all tensors and plain values inside a state, in any nesting.

    Args:
        value: of any kind.
        seen: identities of what was entered before, for cycles.
    """
    seen = set() if seen is None else seen
    inside = contents(value)
    if not inside:
        yield value
    elif id(value) not in seen:
        seen.add(id(value))
        for one in inside.values():
            yield from leaves_in(one, seen)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield all tensors inside a state, in any nesting.

    Args:
        value: of any kind.
    """
    return (one for one in leaves_in(value) if isinstance(one, Tensor))


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
