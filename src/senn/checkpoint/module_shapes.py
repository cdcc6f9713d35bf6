"""A model's sizes without its numbers, for checkpoints of other libraries.

Those hold the numbers, and fit no model of another size. What `describe_shapes` returns goes into the checkpoint.
Before its numbers are loaded, `resize_like` gives a fresh model these sizes; then `rebind_optimizer` gives its
parameters to an optimizer that was made of the fresh model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from senn.checkpoint.describe import describe
from senn.checkpoint.exchange import Exchange, TensorPlace, apply_exchange, flat_weights
from senn.checkpoint.model_files import VERSION
from senn.checkpoint.resize import ModelResizer
from senn.checkpoint.schema import Description, parse
from senn.errors import SennError

_KEYS = ("model", "tied", "frozen", "transient")


def describe_shapes(model: nn.Module) -> dict[str, Any]:
    """Describe a model's modules and sizes, for `resize_like`.

    Returns:
        JSON-able entries, but for `buffers`: the tensors outside the model's state, by full name.

    Raises:
        UnsupportedError: the model keeps state that isn't plain tensors.

    >>> grown, fresh = nn.Linear(2, 7), nn.Linear(2, 3)
    >>> resize_like(fresh, describe_shapes(grown))
    >>> fresh
    Linear(in_features=2, out_features=7, bias=True)
    """
    described, buffers = describe(model, numbers=False)
    return {**described, "buffers": buffers}


def tensor_shapes(saved: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in the state of a model that `describe_shapes` described, by full name.

    Raises:
        SennError: it described none.

    >>> tensor_shapes(describe_shapes(nn.Linear(2, 3)))
    {'weight': (3, 2), 'bias': (3,)}
    """
    description = _description(saved)
    return {
        name: shape
        for name, shape in description.shapes.items()
        if name not in description.transient
    }


class ModuleSnapshot:
    """A record of which submodules a model has, to restore it after layers were inserted.

    Args:
        model: any module; nothing is copied.

    >>> model = nn.Sequential(nn.Linear(2, 3))
    >>> snapshot = ModuleSnapshot(model)
    >>> model.append(nn.ReLU())
    Sequential(
      (0): Linear(in_features=2, out_features=3, bias=True)
      (1): ReLU()
    )
    >>> snapshot.restore()
    >>> model
    Sequential(
      (0): Linear(in_features=2, out_features=3, bias=True)
    )
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._children = [(module, dict(module._modules)) for module in model.modules()]

    def restore(self) -> None:
        """Restore the recorded submodules; modules inserted since are dropped."""
        for module, children in self._children:
            # A copy, so that the snapshot can be restored again after the model has grown again.
            module._modules = dict(children)


def resize_like(
    model: nn.Module, saved: Mapping[str, Any], parts: ModuleSnapshot | None = None
) -> None:
    """Give a model other sizes, in place: all of them, or none if it raises.

    Tensors stay the same objects. The numbers of those that have the right shape already stay too; the others become
    zeros, for a state to be loaded into.

    Args:
        model: a model of the same classes, of any size.
        saved: sizes, from `describe_shapes`.
        parts: the submodules that the model had before it grew, if it has grown since: the saved sizes may be of less
            depth. None for a model that hasn't.

    Raises:
        SennError: the sizes aren't those of a model like it; the model is unchanged.
        UnsupportedError: the saved model had a module that only its owner can build; the model is unchanged.
    """
    description, now = _description(saved), ModuleSnapshot(model)
    if parts is not None:
        parts.restore()
    try:
        resizer = ModelResizer(description, model)
        resizer.run()
        exchange = _emptied(resizer.plan.places, description, saved["buffers"])
        exchange.slots[:0] = resizer.plan.slots
        exchange.slots += flat_weights([module for _, module in resizer.plan.found], exchange.slots)
        apply_exchange(exchange)
    except BaseException:  # Ctrl-C too must leave the model as it was
        now.restore()
        raise


def _description(saved: Mapping[str, Any]) -> Description:
    # Sizes carry no version: they are read as the newest format.
    head = {"version": VERSION, "weights_sha256": "", "extra": {}}
    if not isinstance(saved, Mapping) or not {*_KEYS, "buffers"} <= set(saved):
        raise SennError("these aren't the sizes of a model that senn described")
    return parse({**head, **{key: saved[key] for key in _KEYS}})


def _emptied(
    places: Sequence[TensorPlace], description: Description, buffers: Mapping[str, Tensor]
) -> Exchange:
    """Plan the numbers for every place.

    Those of a tensor that has the right shape stay; the others are a buffer's stored numbers, or zeros.
    """
    made: dict[str, Tensor] = {}
    exchange = Exchange()
    for place in places:
        first = description.tied.get(place.name, place.name)
        shape = description.shapes[place.name]
        if first not in made:
            stored = buffers.get(first)
            if stored is None:
                # The state that is loaded next brings the numbers.
                stored = torch.zeros(shape, dtype=place.old.dtype)
            fits = tuple(place.old.shape) == shape and not place.old.is_meta
            is_frozen = place.name in description.frozen
            made[first] = place.old if fits else exchange.tensor_for(place, stored, is_frozen)
        exchange.slots.append((place.holder, place.key, made[first]))
    return exchange
