"""Copies of optimizers on stand-ins of their parameters, which take a step to show what they would do.

Nothing is known here of single optimizers. A copy without state tells what a parameter's state starts with; copies on
parameters of other sizes tell how it follows them; a copy with state tells whether the next step works.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from senn.compilation import run_eagerly
from senn.surgery.optimizer_layers import (
    HOOKS,
    OptimizerLayers,
    is_plain,
    memory_of,
    reachable,
    takes_data,
    tensors_in,
)

State = dict[Any, Any]
Gradient = Callable[[nn.Parameter, Tensor], Tensor]
"""A gradient for the stand-in of a parameter."""

# Settings by which a start would depend on more than the optimizer: decay makes a gradient of the weights.
_BLANK = {"weight_decay": 0.0, "lambd": 0.0, "differentiable": False}


class TrialError(Exception):
    """An optimizer's own code has raised in a trial; the cause is what it raised."""


@contextmanager
def _foreign_code() -> Iterator[None]:
    """Tell errors of an optimizer's own code from those of this one."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise  # says nothing about the optimizer
    except Exception as error:
        raise TrialError from error


class Trial:
    """A copy of optimizers whose parameters are others.

    Args:
        layers: the optimizers; they aren't touched.
        values: for the parameters that matter, the values of their stand-ins. The others' stand-ins have no memory and
            are in no group.
        keep_state: True for a copy with state, False for one that starts anew.

    Attributes:
        layers: the copied optimizers.
        stand_ins: by parameter.

    Raises:
        TrialError: a class can't be copied.
    """

    def __init__(
        self, layers: OptimizerLayers, values: Mapping[nn.Parameter, Tensor], keep_state: bool
    ) -> None:
        self.stand_ins = {
            one: nn.Parameter(
                values[one].detach().clone() if one in values else one.detach().to("meta"),
                requires_grad=one.requires_grad,
            )
            for one in (*layers.parameters, *values)
        }
        memo: dict[int, Any] = {id(one): other for one, other in self.stand_ins.items()}
        if not keep_state:
            memo |= {id(state): defaultdict(dict) for _, state in layers.states}
        for _, state in layers.states:
            for one, entry in state.items():
                # Of parameters that are in no group here it is of no use, and may be large.
                if isinstance(one, nn.Parameter) and one not in values and isinstance(entry, dict):
                    memo[id(entry)] = {}
        views = _Views(layers, self.stand_ins)
        memo |= views.of_stand_ins
        # Not `copy.deepcopy` of the optimizer, whose `__getstate__` leaves out what subclasses add.
        blanks = {one: object.__new__(type(one)) for one in layers.optimizers}
        memo |= {id(one): blank for one, blank in blanks.items()}
        for one, blank in blanks.items():
            # Schedulers wrap an instance's step, to count its calls.
            own = {key: value for key, value in vars(one).items() if key not in (*HOOKS, "step")}
            with _foreign_code():
                vars(blank).update(copy.deepcopy(own, memo))
            vars(blank).update({name: OrderedDict() for name in HOOKS})
        with _foreign_code():
            given = [copy.deepcopy(one, memo) for one in layers.given]
        self.layers = OptimizerLayers(given)
        views.drop_outdated(self.layers)
        chosen = {self.stand_ins[one] for one in values}
        for group in self.layers.groups:
            group["params"][:] = [one for one in group["params"] if one in chosen]
            if not keep_state:
                group.update({key: value for key, value in _BLANK.items() if key in group})

    def step(self, gradient: Gradient | None = None) -> None:
        """Take a step, in training mode.

        Args:
            gradient: as a function of a parameter and its stand-in; None for zeros.

        Raises:
            TrialError: an optimizer has raised.
        """
        held = {one for group in self.layers.groups for one in group["params"]}
        pairs = [(one, other) for one, other in self.stand_ins.items() if other in held]

        def closure() -> Tensor:
            for one, other in pairs:
                other.grad = torch.zeros_like(other) if gradient is None else gradient(one, other)
            return torch.zeros((), requires_grad=True)

        # The global random state, and code that is compiled for the sizes of now, stay as they are.
        with torch.random.fork_rng(), run_eagerly(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for one in self.layers.given:
                if callable(train := getattr(one, "train", None)):
                    with _foreign_code():
                        train()
            for one in self.layers.given:
                closure()
                _step(one, closure)

    def is_finite(self) -> bool:
        """Tell whether no number of the state is infinite or NaN."""
        every = (one for _, state in self.layers.states for one in tensors_in([*state.values()]))
        return all(bool(torch.isfinite(one).all()) for one in every if not one.is_meta)

    def state(self, number: int, parameter: nn.Parameter) -> State:
        """Return the state of a parameter's stand-in.

        Args:
            number: of the state in `OptimizerLayers.states`.
            parameter: the original.
        """
        states = self.layers.states
        return states[number][1].get(self.stand_ins[parameter], {}) if number < len(states) else {}


def _step(optimizer: Any, closure: Callable[[], Tensor]) -> None:
    if not needs_closure(optimizer):
        try:
            with _foreign_code():
                optimizer.step()
        except TrialError:
            # Optimizers that evaluate the loss themselves say so in many ways.
            closure()
        else:
            return
    with _foreign_code():
        optimizer.step(closure)


def needs_closure(optimizer: Any) -> bool:
    """Tell whether an optimizer's step takes an argument that has no default.

    Args:
        optimizer: of any kind.
    """
    own = getattr(type(optimizer), "step", None)
    if own is None:  # an object that only holds optimizers, or hands calls on to one
        return False
    step = inspect.signature(own).parameters.values()
    named = [one for one in step if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    return sum(one.default is one.empty for one in named) > 1  # the first is `self`


def small_gradient(_: nn.Parameter, stand_in: Tensor) -> Tensor:
    """Return random numbers, the same ones for the same shape.

    Args:
        stand_in: of a parameter.
    """
    chance = torch.Generator().manual_seed(stand_in.numel())
    return 1e-3 * torch.randn(stand_in.shape, generator=chance).to(stand_in)


def start_trial(
    layers: OptimizerLayers, values: Mapping[nn.Parameter, Tensor], other: Gradient
) -> tuple[Trial | None, bool, BaseException | None]:
    """Start parameters anew and take one step: all optimizers at once.

    Gradients are zeros at first, so that averages are what they start with.

    Args:
        layers: the optimizers.
        values: of the parameters' stand-ins.
        other: gradients for optimizers that raise where all are zero, or start with numbers that aren't finite.

    Returns:
        The trial after its step, or None; True if the other gradients were taken; what the optimizer raised, if it
        raised with both.
    """
    if takes_data(layers):
        return None, False, None
    first: Trial | None = None
    failed: BaseException | None = None
    for gradient in (None, other):
        try:
            trial = Trial(layers, values, keep_state=False)
            trial.step(gradient)
        except TrialError as error:
            failed = failed or error.__cause__
            continue
        if trial.is_finite():
            return trial, gradient is other, None
        first = first or trial
    return first, False, None if first else failed


class _Views:
    """What optimizers hold of the memory of their parameters, for a copy that has stand-ins in their place.

    Args:
        layers: the optimizers.
        stand_ins: by parameter.

    Attributes:
        of_stand_ins: by identity of a view of a parameter, the same view of its stand-in; an empty tensor where that
            has another shape.
    """

    def __init__(
        self, layers: OptimizerLayers, stand_ins: Mapping[nn.Parameter, nn.Parameter]
    ) -> None:
        self.of_stand_ins: dict[int, Tensor] = {}
        self._outdated: set[int] = set()
        # The views themselves can't be copied: autograd knows them as results of an operation.
        # Several parameters may be parts of one block, which is no view of any.
        count = Counter(memory_of(one) for one in stand_ins)
        owners = {memory_of(one): one for one in stand_ins if count[memory_of(one)] == 1}
        owners.pop(0, None)
        for value in [] if is_plain(layers) else reachable([*layers.optimizers, *layers.given]):
            if isinstance(value, Tensor) and value not in stand_ins:
                # A view of the memory that a parameter had before it was resized still knows it by autograd.
                base: Any = value._base
                owner = base if base in stand_ins else owners.get(memory_of(value))
                if owner is not None:
                    self._add(value, owner, stand_ins[owner].detach())

    def _add(self, value: Tensor, parameter: nn.Parameter, stand_in: Tensor) -> None:
        is_alike = value.dtype == parameter.dtype and stand_in.stride() == parameter.stride()
        is_now = memory_of(value) == memory_of(parameter)
        if is_now and is_alike and stand_in.shape == parameter.shape:
            offset = value.storage_offset() - parameter.storage_offset()
            view = stand_in.as_strided(value.shape, value.stride(), offset)
        else:
            view = stand_in.new_empty(0)
            self._outdated.add(id(view))
        self.of_stand_ins[id(value)] = view

    def drop_outdated(self, layers: OptimizerLayers) -> None:
        """Drop views of another shape's memory that are kept by parameter: an optimizer makes such anew.

        Args:
            layers: the copied optimizers.
        """
        for held in [*reachable(layers.given)] if self._outdated else []:
            for key in [*held] if isinstance(held, MutableMapping) else []:
                found = {id(one) for one in tensors_in(held[key])}
                if isinstance(key, nn.Parameter) and found and found <= self._outdated:
                    del held[key]
