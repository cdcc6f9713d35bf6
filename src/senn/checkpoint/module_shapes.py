"""A model's sizes without its numbers: for checkpoints of others, which hold the numbers and fit no other size.

`sizes` goes into the checkpoint. Before its numbers are loaded, `resize_like` gives a fresh model the sizes; then
`optimizers.hold` gives an optimizer that was made of the fresh model its parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from senn.checkpoint.describe import describe
from senn.checkpoint.exchange import TensorPlace, TensorSlot, exchange, flat_weights, successor
from senn.checkpoint.model_files import VERSION
from senn.checkpoint.resize import ModelResizer
from senn.checkpoint.schema import Description, parse
from senn.errors import SennError

_KEYS = ("model", "tied", "frozen", "transient")


def describe_shapes(model: nn.Module) -> dict[str, Any]:
    """What `resize_like` needs: JSON-able, but for `buffers`, the tensors that aren't in the model's state, by name.

    Raises:
        UnsupportedError: the model keeps state that isn't plain tensors.
    """
    described, buffers = describe(model, numbers=False)
    return {**described, "buffers": buffers}


def tensor_shapes(saved: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in the state of a model of these sizes, by full name."""
    description = _description(saved)
    return {name: shape for name, shape in description.shapes.items() if name not in description.transient}


class ModuleSnapshot:
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


def resize_like(model: nn.Module, saved: Mapping[str, Any], parts: ModuleSnapshot | None = None) -> None:
    """Give a model other sizes, in place: all or nothing.

    Tensors whose shape is the same stay the same objects; the others are replaced by zeros, for a state to be loaded.

    Args:
        model: of the same classes, of any size.
        saved: what `sizes` gave.
        parts: that it had before it grew, if it has grown since: the saved sizes may be of less depth.

    Raises:
        SennError: it isn't like that model; it is unchanged.
    """
    description, now = _description(saved), ModuleSnapshot(model)
    if parts is not None:
        parts.restore()
    try:
        fitting = ModelResizer(description, model)
        fitting.run()
        slots = [*fitting.plan.slots, *_emptied(fitting.plan.places, description, saved["buffers"])]
        exchange([*slots, *flat_weights([module for _, module in fitting.plan.found], slots)])
    except BaseException:
        now.restore()
        raise


def _description(saved: Mapping[str, Any]) -> Description:
    head = {"version": VERSION, "weights_sha256": "", "extra": {}}
    if not isinstance(saved, Mapping) or not {*_KEYS, "buffers"} <= set(saved):
        raise SennError("these aren't the sizes of a model that senn described")
    return parse({**head, **{key: saved[key] for key in _KEYS}})


def _emptied(
    places: Sequence[TensorPlace], description: Description, buffers: Mapping[str, Tensor]
) -> list[TensorSlot]:
    """What stands in every place: what did, if it has the right shape."""
    made: dict[str, Tensor] = {}
    slots: list[TensorSlot] = []
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
