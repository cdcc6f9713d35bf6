"""Averages of squared gradients (second moments) in the state of an optimizer, found without knowing it.

A trial tells: after steps from nothing with one made-up gradient g, such an average is a multiple of g^2, entry by
entry, or of its mean over some dimensions (the factors of Adafactor). An average that is taken in another basis (SOAP)
is neither, but has four times its entries where the gradient is twice as long.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from senn.surgery.blank_optimizer import Gradient, Trial, TrialError
from senn.surgery.optimizer_layers import OptimizerLayers, contents, is_plain, takes_data

MOST_STEPS = 12
"""Steps of the trial while averages are still empty: AdaShift squares the gradient of ten steps ago."""

TOLERANCE = 0.05
"""Largest relative departure from a multiple of the square; in bfloat16 a square is known to 1 %."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SecondMoment:
    """A tensor of an optimizer's state that averages squared gradients of one parameter.

    Attributes:
        values: the tensor.
        over: dimensions of the parameter that it is a mean over.
        keepdim: True if these dimensions are still there, with one entry.
        mixed: True if its entries are squares in another basis, so that only means of many mean anything.
    """

    values: Tensor
    over: tuple[int, ...] = ()
    keepdim: bool = False
    mixed: bool = False

    def reduced(self, squares: Tensor) -> Tensor:
        """Reduce squares of the parameter's shape to the shape of the average."""
        return squares.mean(self.over, keepdim=self.keepdim) if self.over else squares

    def new(self, mask: Tensor) -> Tensor:
        """Reduce a mask of the parameter's new entries: an average is new if all that it is taken over is."""
        return self.reduced(mask.double()) == 1


Found = dict[nn.Parameter, list[SecondMoment]]


def find_second_moments(layers: OptimizerLayers, parameters: Iterable[nn.Parameter]) -> Found:
    """Find the averages of squared gradients in the state of some parameters.

    Args:
        layers: the optimizers; they aren't touched.
        parameters: whose state is looked through.

    Returns:
        By parameter, tensors of the state itself. None where there is no state, or no step can be tried.
    """
    found: Found = {}
    rest = [one for one in parameters if any(state.get(one) for _, state in layers.states)]
    if not rest or takes_data(layers):
        return found
    try:
        trial = _blank(layers, rest)
        steps = 0
        while not steps or (steps < MOST_STEPS and _waits(layers, trial, rest)):
            trial.step(wide_gradient)
            steps += 1
            found |= {one: moments for one in rest if (moments := _moments(layers, trial, one))}
            rest = [one for one in rest if one not in found]
        if rest and not is_plain(layers):
            once, twice = (_blank(layers, rest) for _ in range(2))
            for _ in range(steps):
                once.step(wide_gradient)
                twice.step(_twice(wide_gradient))
            found |= {one: _mixed(layers, once, twice, one) for one in rest}
    except TrialError:
        return {}  # said elsewhere, if no gradient suits it
    return found


def wide_gradient(_: nn.Parameter, stand_in: Tensor) -> Tensor:
    """Return a gradient whose entries differ by up to a factor of 100, so that no constant passes for its square.

    Args:
        stand_in: of a parameter.
    """
    chance = torch.Generator().manual_seed(stand_in.numel())
    size = 10 ** (2 * torch.rand(stand_in.shape, generator=chance) - 1)
    sign = torch.randint(0, 2, stand_in.shape, generator=chance) * 2 - 1
    return (sign * size).to(stand_in)


def _twice(gradient: Gradient) -> Gradient:
    return lambda parameter, stand_in: 2 * gradient(parameter, stand_in)


def _blank(layers: OptimizerLayers, parameters: Iterable[nn.Parameter]) -> Trial:
    return Trial(layers, {one: one.detach() for one in parameters}, keep_state=False)


def _pairs(
    layers: OptimizerLayers, trial: Trial, parameter: nn.Parameter
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield tensors of a parameter's state with those at the same places in a trial."""
    for number, (_, state) in enumerate(layers.states):
        yield from _zipped(state.get(parameter), trial.state(number, parameter))


def _zipped(mine: object, its: object) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(mine, Tensor):
        is_average = mine.dim() > 0 and mine.is_floating_point()
        if is_average and isinstance(its, Tensor) and mine.shape == its.shape:
            yield mine, its
        return
    other = contents(its)
    for key, one in contents(mine).items():
        yield from _zipped(one, other.get(key))


def _waits(layers: OptimizerLayers, trial: Trial, parameters: Iterable[nn.Parameter]) -> bool:
    """Tell whether the trial still has zeros where the state hasn't."""
    return any(
        bool(mine.any()) and not its.any()
        for one in parameters
        for mine, its in _pairs(layers, trial, one)
    )


def _moments(layers: OptimizerLayers, trial: Trial, parameter: nn.Parameter) -> list[SecondMoment]:
    """Return the state tensors that are multiples of the squared gradient or of a mean of it in a trial."""
    squares = wide_gradient(parameter, trial.stand_ins[parameter]).double().square()
    pairs = _pairs(layers, trial, parameter)
    found = (_as_mean(mine, its.double(), squares) for mine, its in pairs)
    return [one for one in found if one is not None]


def _as_mean(mine: Tensor, its: Tensor, squares: Tensor) -> SecondMoment | None:
    if not its.any() or bool((its < 0).any()):
        return None
    for count in range(squares.dim()):
        for over in itertools.combinations(range(squares.dim()), count):
            for keepdim in (False, True) if over else (False,):
                one = SecondMoment(values=mine, over=over, keepdim=keepdim)
                mean = one.reduced(squares)
                if mean.shape == its.shape and _is_multiple(its, mean.to(its.device)):
                    return one
    return None


def _mixed(
    layers: OptimizerLayers, trial: Trial, twice: Trial, parameter: nn.Parameter
) -> list[SecondMoment]:
    """Return the state tensors of the parameter's shape that are quadratic in the gradient."""
    pairs = zip(_pairs(layers, trial, parameter), _pairs(layers, twice, parameter), strict=True)
    return [
        SecondMoment(values=mine, mixed=True)
        for (mine, its), (_, other) in pairs
        if its.shape == parameter.shape
        and its.any()
        and not bool((its < 0).any())
        and _is_multiple(other.double().sum(), 4 * its.double().sum())
    ]


def _is_multiple(one: Tensor, other: Tensor) -> bool:
    ratio = one / other
    return bool((ratio - ratio.mean()).abs().max() <= TOLERANCE * ratio.mean())
