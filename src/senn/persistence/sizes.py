"""A model's sizes without its numbers: for checkpoints of others, which hold the numbers and fit no other size.

`sizes` goes into the checkpoint. Before its numbers are loaded, `regrow` gives a fresh model the sizes, and `hold` an
optimizer that was made of the fresh model its parameters, in the order in which the checkpoint has their states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from senn.errors import SennError
from senn.persistence.describe import describe
from senn.persistence.description import Description, parse
from senn.persistence.exchange import Place, Slot, exchange, flat_weights, successor
from senn.persistence.files import VERSION
from senn.persistence.regrow import Fitting

Names = list[list[str | None]]
"""Of the parameters of an optimizer's groups; None for one that isn't the model's."""

_KEYS = ("model", "tied", "frozen", "transient")


def sizes(model: nn.Module) -> dict[str, Any]:
    """What `regrow` needs: JSON-able, but for `buffers`, the tensors that aren't in the model's state, by name.

    Raises:
        UnsupportedError: the model keeps state that isn't plain tensors.
    """
    described, buffers = describe(model, numbers=False)
    return {**described, "buffers": buffers}


def shapes(saved: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in the state of a model of these sizes, by full name."""
    description = _description(saved)
    return {name: shape for name, shape in description.shapes.items() if name not in description.transient}


class Parts:
    """Which parts a model has now, so that it can be given them back when layers have come in between.

    Args:
        model: any module; nothing is copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._parts = [(module, dict(module._modules)) for module in model.modules()]

    def restore(self) -> None:
        """Give them back: what was put before or after a part, or into a list, is gone."""
        for module, parts in self._parts:
            module._modules = dict(parts)


def regrow(model: nn.Module, saved: Mapping[str, Any], parts: Parts | None = None) -> None:
    """Give a model other sizes, in place: all or nothing.

    Tensors whose shape is the same stay the same objects; the others are replaced by zeros, for a state to be loaded.

    Args:
        model: of the same classes, of any size.
        saved: what `sizes` gave.
        parts: that it had before it grew, if it has grown since: the saved sizes may be of less depth.

    Raises:
        SennError: it isn't like that model; it is unchanged.
    """
    description, now = _description(saved), Parts(model)
    if parts is not None:
        parts.restore()
    try:
        fitting = Fitting(description, model)
        fitting.run()
        slots = [*fitting.plan.slots, *_emptied(fitting.plan.places, description, saved["buffers"])]
        exchange([*slots, *flat_weights([module for _, module in fitting.plan.found], slots)])
    except BaseException:
        now.restore()
        raise


def held(optimizer: Optimizer, model: nn.Module) -> Names:
    """Names of the parameters of an optimizer's groups, in order."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [[names.get(parameter) for parameter in group["params"]] for group in optimizer.param_groups]


def hold(optimizer: Optimizer, model: nn.Module, names: Sequence[Sequence[str | None]]) -> None:
    """Have an optimizer hold the model's parameters of these names, in this order.

    Groups stay the same objects; states of parameters that it no longer holds are forgotten. An optimizer that holds
    others than the model's too is left as it is.

    Raises:
        SennError: it has another number of groups, or the model lacks one of the parameters; nothing is changed.
    """
    groups = optimizer.param_groups
    if any(name is None for group in names for name in group):
        return
    if len(groups) != len(names):
        raise SennError(f"the optimizer has {len(groups)} groups of parameters, and the saved one had {len(names)}")
    known = dict(model.named_parameters(remove_duplicate=False))
    if missing := [name for group in names for name in group if name not in known]:
        raise SennError(f"the saved optimizer held {missing[0]!r}, which the model doesn't have")
    for group, own in zip(groups, names, strict=True):
        group["params"][:] = [known[str(name)] for name in own]
        if "param_names" in group:
            group["param_names"][:] = own
    kept = {parameter for group in groups for parameter in group["params"]}
    for parameter in [parameter for parameter in optimizer.state if parameter not in kept]:
        del optimizer.state[parameter]


def _description(saved: Mapping[str, Any]) -> Description:
    head = {"version": VERSION, "weights_sha256": "", "extra": {}}
    if not isinstance(saved, Mapping) or not {*_KEYS, "buffers"} <= set(saved):
        raise SennError("these aren't the sizes of a model that senn described")
    return parse({**head, **{key: saved[key] for key in _KEYS}})


def _emptied(places: Sequence[Place], description: Description, buffers: Mapping[str, Tensor]) -> list[Slot]:
    """What stands in every place: what did, if it has the right shape."""
    made: dict[str, Tensor] = {}
    slots: list[Slot] = []
    for place in places:
        first, shape = description.tied.get(place.name, place.name), description.shapes[place.name]
        if first not in made:
            stored = buffers.get(first)
            if stored is None:
                stored = torch.zeros(shape, dtype=place.old.dtype)
            fits = tuple(place.old.shape) == shape and not place.old.is_meta
            made[first] = place.old if fits else successor(place, stored, place.name in description.frozen)
        slots.append((place.holder, place.key, made[first]))
    return slots
