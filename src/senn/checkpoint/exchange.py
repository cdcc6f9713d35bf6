"""Exchanging parts, numbers and tensors of a model: first a plan of it all, then everything at once."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from senn.checkpoint.model_files import WEIGHTS
from senn.checkpoint.schema import Description, is_plain
from senn.errors import SennError, UnsupportedError

TensorSlot = tuple[MutableMapping[str, Any], str, Any]
"""An entry of a module's dictionaries, and what will stand there."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TensorPlace:
    """Where a tensor of the description goes.

    Attributes:
        holder: dictionary of a module that holds it.
        key: its name in there.
        name: its full name in the description.
        old: what stands there now.
        device: where the new one goes.
        fresh: whether it belongs to the given model; otherwise to a module made for the occasion.
    """

    holder: MutableMapping[str, Any]
    key: str
    name: str
    old: Tensor
    device: torch.device
    fresh: bool


@dataclass(eq=False)
class ResizePlan:
    """What is to be exchanged, and what was found where.

    Attributes:
        slots: parts and attributes.
        places: tensors.
        found: modules by their path in the description.
        shared: paths under which a module was said to stand again, and the module that does.
        counts: numbers in a module's configuration that may count layers, as they were saved.
        longer: numbers of parts of containers that get more of them, now and then.
    """

    slots: list[TensorSlot] = field(default_factory=list)
    places: list[TensorPlace] = field(default_factory=list)
    found: list[tuple[str, nn.Module]] = field(default_factory=list)
    shared: list[tuple[str, str, nn.Module]] = field(default_factory=list)
    counts: list[TensorSlot] = field(default_factory=list)
    longer: list[tuple[int, int]] = field(default_factory=list)

    @property
    def _lists(self) -> tuple[list[Any], ...]:
        return self.slots, self.places, self.found, self.shared, self.counts, self.longer

    def savepoint(self) -> list[int]:
        """How far it has come."""
        return [len(held) for held in self._lists]

    def back_to(self, mark: list[int]) -> None:
        """Forget what came after a mark."""
        for held, length in zip(self._lists, mark, strict=True):
            del held[length:]


def filled(places: list[TensorPlace], description: Description, tensors: Mapping[str, Tensor]) -> list[TensorSlot]:
    """New Parameters and buffers for all places; tied names get the same one."""
    made: dict[str, Tensor] = {}
    firsts: dict[int, str] = {}
    slots: list[TensorSlot] = []
    for place in sorted(places, key=lambda one: one.name in description.transient):
        first = description.tied.get(place.name, place.name)
        if place.name in description.transient and first not in made and not _needed(place, tensors[first]):
            continue
        if firsts.setdefault(id(place.old), first) != first:
            raise SennError(
                f"{place.name!r} and {firsts[id(place.old)]!r} are one tensor in the given model, two in the saved one"
            )
        if first not in made:
            made[first] = successor(place, tensors[first], place.name in description.frozen)
        elif isinstance(made[first], nn.Parameter) != isinstance(place.old, nn.Parameter):
            raise SennError(f"{place.name!r} and {first!r} are one tensor in the saved model, but of two kinds here")
        slots.append((place.holder, place.key, made[first]))
    return slots


def _needed(place: TensorPlace, stored: Tensor) -> bool:
    """Whether a buffer that isn't in the state must be replaced: growth resized it, or it has no numbers yet.

    Otherwise it is what its owner's code computes.
    """
    return place.old.shape != stored.shape or place.old.is_meta


def successor(place: TensorPlace, stored: Tensor, frozen: bool) -> Tensor:
    """A tensor of the old one's kind with the stored numbers."""
    old = place.old
    if not is_plain(old):
        raise UnsupportedError(f"{place.name!r} is a {type(old).__name__}, whose numbers can't be read back")
    # What a layer of the table is built with is always real; the file may have it as complex numbers.
    real = not (old.is_complex() if place.fresh else stored.is_complex())
    alike = stored.is_floating_point() if real else stored.is_complex()
    if not (alike if old.is_floating_point() or old.is_complex() else stored.dtype == old.dtype):
        raise SennError(f"{WEIGHTS} holds {place.name!r} as {stored.dtype}, but it is {old.dtype}")
    try:
        new = stored.to(place.device)
    except RuntimeError as error:
        raise SennError(f"{place.name!r} can't be put on {place.device}: {' '.join(str(error).split())}") from error
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad if place.fresh else not frozen)
    new.__dict__.update(old.__dict__)
    return new


def flat_weights(modules: list[nn.Module], slots: list[TensorSlot]) -> list[TensorSlot]:
    """Recurrent layers keep a list of their parameters besides."""
    news = {(id(holder), key): new for holder, key, new in slots}
    found: list[TensorSlot] = []
    for module in modules:
        if isinstance(module, nn.RNNBase):
            held = module._parameters
            flat = [news.get((id(held), name), held.get(name)) for name in module._flat_weights_names]
            found.append((vars(module), "_flat_weights", flat))
    return found


def exchange(slots: list[TensorSlot]) -> None:
    """Put everything in its place; all or nothing."""
    olds = [(holder, key, holder[key]) for holder, key, _ in slots]
    try:
        for holder, key, new in slots:
            holder[key] = new
    except BaseException:
        for holder, key, old in reversed(olds):
            holder[key] = old
        raise
