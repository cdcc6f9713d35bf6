"""Before anything grows: would the state of these optimizers follow?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from senn.errors import UnsupportedError, in_one_line
from senn.surgery.blank_optimizer import Trial, TrialError, small_gradient
from senn.surgery.contents_log import ContentsLog
from senn.surgery.index_maps import IndexMap, corner
from senn.surgery.nested_state import NestedState
from senn.surgery.optimizer_layers import OptimizerLayers, is_plain, takes_data
from senn.surgery.optimizer_state import step_error
from senn.surgery.starts import Starts
from senn.surgery.tensor_data import Data
from senn.surgery.undo import Resized


def has_state(optimizer: Any) -> bool:
    """Tell whether any optimizer has taken a step.

    Args:
        optimizer: what the loop calls its optimizer.
    """
    return any(any(state.values()) for _, state in OptimizerLayers(optimizer).states)


def check_state_follows(optimizer: Any, model: nn.Module, *, restart: bool = False) -> str | None:
    """Resize every parameter in copies of optimizers, so that what can't be carried is said before training.

    Torch's own classes aren't tried: their state is known to follow. An optimizer that can't take a step by itself, on
    copies, is left to be tried at the first change.

    Args:
        optimizer: what the loop calls its optimizer; it isn't touched. Its state is tried as one more step from
            random gradients makes it.
        model: its model.
        restart: True if the state of a parameter may be started anew.

    Returns:
        Why nothing can be removed (bases that mix units are carried by additions alone); None if it can.

    Raises:
        UnsupportedError: some state can't be carried over additions.
    """
    layers = OptimizerLayers(optimizer)
    if is_plain(layers):
        return None
    names = {parameter: name for name, parameter in model.named_parameters()}
    _try(layers, names, _longer, restart)
    try:
        _try(layers, names, _shorter, restart)
    except UnsupportedError as error:
        return str(error)
    return None


def _try(
    layers: OptimizerLayers,
    names: dict[nn.Parameter, str],
    layout: Callable[[int], IndexMap],
    restart: bool,
) -> None:
    """Resize the parameters of a copy along their first two dimensions."""
    values = {one: one.detach() for one in layers.parameters}
    kept = any(any(state.values()) for _, state in layers.states)
    if takes_data(layers) and not kept:
        return
    try:
        trial = Trial(layers, values, keep_state=kept)
    except TrialError:
        return
    if not takes_data(layers):
        try:
            # Of a state that is there already, too: some is made by the constructor, and the rest by the first step.
            trial.step(small_gradient)
        except TrialError:
            if not kept:
                return
            trial = Trial(layers, values, keep_state=True)
    copies = trial.layers
    stepped = not takes_data(copies) and step_error(copies) is None
    its_names = {other: names.get(one, "?") for one, other in trial.stand_ins.items()}
    changes = {one: _resized(one, its_names[one], layout) for one in copies.parameters}
    for one, change in changes.items():
        change.new.put_into(one)
    starts = Starts(copies, changes, {})
    NestedState(
        copies, changes, its_names, starts=starts, log=ContentsLog(), restart=restart
    ).carry()
    error = step_error(copies) if stepped else None
    if error is not None:
        kinds = " and ".join(dict.fromkeys(type(one).__name__ for one in layers.given))
        raise UnsupportedError(f"{kinds} can't train a changed model: {in_one_line(error)}")


def _longer(size: int) -> IndexMap:
    # Twice the size, since state in blocks doesn't change with every unit.
    return IndexMap(size=size, added=size, order=torch.arange(2 * size))


def _shorter(size: int) -> IndexMap:
    return IndexMap(size=size, added=0, order=torch.arange(1 if size > 1 else 0, size))


def _resized(parameter: nn.Parameter, name: str, layout: Callable[[int], IndexMap]) -> Resized:
    old: Tensor = parameter.detach()
    layouts = {dim: layout(size) for dim, size in enumerate(old.shape[:2])}
    shape = list(old.shape)
    for dim, one in layouts.items():
        shape[dim] = len(one.order)
    new = old.new_zeros(shape)
    smaller = [min(mine, its) for mine, its in zip(shape, old.shape, strict=True)]
    corner(new, smaller).copy_(corner(old, smaller))
    return Resized(
        name=name,
        layouts=layouts,
        old=Data(values=old, gradient=None),
        new=Data(values=new, gradient=None),
    )
