"""Copies of optimizers on stand-ins of their parameters, which take a step to show what they would do.

Nothing is known here of single optimizers. A copy without state tells what a parameter's state starts with; copies on
parameters of other sizes tell how it follows them; a copy with state tells whether the next step works.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from senn.compilation import run_eagerly
from senn.surgery.optimizer_layers import HOOKS, OptimizerLayers, takes_data

State = dict[Any, Any]

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
        chosen = {self.stand_ins[one] for one in values}
        for group in self.layers.groups:
            group["params"][:] = [one for one in group["params"] if one in chosen]
            if not keep_state:
                group.update({key: value for key, value in _BLANK.items() if key in group})

    def step(self, gradient: Callable[[Tensor], Tensor] = torch.zeros_like) -> None:
        """Take a step, in training mode, from a gradient that is a function of a stand-in.

        Raises:
            TrialError: an optimizer has raised.
        """
        held = [one for group in self.layers.groups for one in group["params"]]

        def closure() -> Tensor:
            for one in held:
                one.grad = gradient(one)
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


def start_trial(
    layers: OptimizerLayers,
    values: Mapping[nn.Parameter, Tensor],
    gradient: Callable[[Tensor], Tensor] = torch.zeros_like,
) -> tuple[Trial | None, BaseException | None]:
    """Start parameters anew and take one step: all optimizers at once.

    Args:
        layers: the optimizers.
        values: of the parameters' stand-ins.
        gradient: as a function of a stand-in.

    Returns:
        The trial after its step, or None and what the optimizer raised; twice None if there is nothing to try.
    """
    if takes_data(layers):
        return None, None
    try:
        trial = Trial(layers, values, keep_state=False)
        trial.step(gradient)
    except TrialError as error:
        return None, error.__cause__
    return trial, None
