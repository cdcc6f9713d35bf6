"""Replacing children, attributes and numbers of a model: a plan of everything first, then all at once.

Tensors of the caller's model stay the same objects, whoever else holds them: they get the stored numbers in place where
the shape stays, and other data where it doesn't.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from senn.checkpoint.model_files import WEIGHTS
from senn.checkpoint.schema import Description, is_plain
from senn.errors import SennError, UnsupportedError
from senn.surgery.tensor_data import Data, outdate_graphs

TensorSlot = tuple[MutableMapping[str, Any], str, Any]
"""An entry of one of a module's dictionaries, as (dictionary, key, value that it will have)."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TensorPlace:
    """Where a described tensor goes.

    Attributes:
        holder: the dictionary of a module that has it.
        key: its key there.
        name: its full name in the description.
        old: the tensor that stands there now.
        device: where the new one goes.
        fresh: True if it belongs to the caller's model; False if to a module that is new.
    """

    holder: MutableMapping[str, Any]
    key: str
    name: str
    old: Tensor
    device: torch.device
    fresh: bool


@dataclass(eq=False, kw_only=True)
class Exchange:
    """What is exchanged in a model, all at once.

    Attributes:
        slots: entries of modules' dictionaries.
        values: new numbers of the caller's own tensors, by tensor.
        names: of these tensors.
    """

    slots: list[TensorSlot] = field(default_factory=list)
    values: dict[Tensor, Tensor] = field(default_factory=dict)
    names: dict[Tensor, str] = field(default_factory=dict)

    def tensor_for(self, place: TensorPlace, stored: Tensor, frozen: bool) -> Tensor:
        """Plan the numbers of a place, and return the tensor that stands there then.

        Args:
            place: the place.
            stored: its numbers, of any shape.
            frozen: True if a new module's parameter isn't trained; the caller's model keeps its own choice.

        Raises:
            SennError: the stored numbers are of another kind, or the device can't take them.
            UnsupportedError: the old tensor is of an owner's class.
        """
        values = _stored_values(place, stored)
        old = place.old
        # A tensor without numbers (on the meta device) can't get any.
        if place.fresh and not old.is_meta:
            self.values[old], self.names[old] = values, place.name
            return old
        if not isinstance(old, nn.Parameter):
            new = values
        else:
            new = nn.Parameter(
                values, requires_grad=old.requires_grad if place.fresh else not frozen
            )
        # Owners mark parameters by attributes (`no_weight_decay`), which their optimizers read.
        new.__dict__.update(old.__dict__)
        return new


@dataclass(eq=False, kw_only=True)
class ResizePlan:
    """Everything that will be replaced, and which module was found at which path.

    Attributes:
        slots: children and attributes.
        places: tensors.
        found: (path in the description, module).
        shared: (path, path of the module that stands there too, the module that does so in the caller's model).
        counts: numbers in a module's configuration that may count layers, with their saved values.
        longer: (number of children now, number of children then) of each container that gets more of them.
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
        """Return a point to which `roll_back` can return: the lengths of all lists."""
        return [len(entries) for entries in self._lists]

    def roll_back(self, savepoint: list[int]) -> None:
        """Drop everything that was planned since: that way of reading the description has failed."""
        for entries, length in zip(self._lists, savepoint, strict=True):
            del entries[length:]


def fill_places(
    places: Sequence[TensorPlace], description: Description, tensors: Mapping[str, Tensor]
) -> Exchange:
    """Plan the numbers of each place; tied names get the same tensor.

    Args:
        places: of all tensors.
        description: of the saved model.
        tensors: stored tensors by full name.

    Returns:
        What to put where.

    Raises:
        SennError: a stored tensor doesn't fit its place, or the caller's model ties what the saved one doesn't.
        UnsupportedError: a place holds a tensor of an owner's class.
    """
    # Tied tensors must come out as one object, or the optimizer would train them apart from each other.
    made: dict[str, Tensor] = {}
    first_names: dict[int, str] = {}
    exchange = Exchange()
    # Transient buffers last: one that is tied to a parameter needs the parameter.
    for place in sorted(places, key=lambda place: place.name in description.transient):
        first = description.tied.get(place.name, place.name)
        is_transient = place.name in description.transient
        if is_transient and first not in made and not _is_needed(place, tensors[first]):
            continue
        if first_names.setdefault(id(place.old), first) != first:
            other = first_names[id(place.old)]
            raise SennError(
                f"{place.name!r} and {other!r} are one tensor in the given model, two in the saved one"
            )
        if first not in made:
            is_frozen = place.name in description.frozen
            made[first] = exchange.tensor_for(place, tensors[first], is_frozen)
        elif isinstance(made[first], nn.Parameter) != isinstance(place.old, nn.Parameter):
            raise SennError(
                f"{place.name!r} and {first!r} are one tensor in the saved model, but of two kinds here"
            )
        exchange.slots.append((place.holder, place.key, made[first]))
    return exchange


def _is_needed(place: TensorPlace, stored: Tensor) -> bool:
    """Return True if a buffer outside the state must be replaced: growth resized it, or it has no numbers yet.

    Otherwise it stays as its owner's code computed it.
    """
    return place.old.shape != stored.shape or place.old.is_meta


def _stored_values(place: TensorPlace, stored: Tensor) -> Tensor:
    """Return stored numbers on a place's device, in the dtype that they were saved in."""
    if not is_plain(place.old):
        raise UnsupportedError(
            f"{place.name!r} is a {type(place.old).__name__}, whose numbers can't be read back"
        )
    _check_kind(place, stored)
    # The dtype is the stored one: a model that was saved in float64 stays so.
    try:
        return stored.to(place.device)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise SennError(f"{place.name!r} can't be put on {place.device}: {reason}") from error


def _check_kind(place: TensorPlace, stored: Tensor) -> None:
    """Check that real numbers replace real ones, complex ones complex ones, whole ones those of their dtype."""
    old = place.old
    # What a layer of the table is built with is always real, while the saved model may have made it complex.
    real = not (old.is_complex() if place.fresh else stored.is_complex())
    is_alike = stored.is_floating_point() if real else stored.is_complex()
    if not (old.is_floating_point() or old.is_complex()):
        is_alike = stored.dtype == old.dtype
    if not is_alike:
        raise SennError(f"{WEIGHTS} holds {place.name!r} as {stored.dtype}, but it is {old.dtype}")


def flat_weights(modules: Sequence[nn.Module], slots: Sequence[TensorSlot]) -> list[TensorSlot]:
    """Plan the second list of parameters that recurrent layers keep.

    Args:
        modules: all modules.
        slots: what will be replaced.

    Returns:
        `_flat_weights` of each recurrent layer, with the new parameters in it: its forward reads this list, not the
        attributes, and would go on with the old numbers.
    """
    replaced = {(id(holder), key): new for holder, key, new in slots}
    flat_slots: list[TensorSlot] = []
    for module in modules:
        if isinstance(module, nn.RNNBase):
            own = module._parameters
            names = module._flat_weights_names
            flat = [replaced.get((id(own), name), own.get(name)) for name in names]
            flat_slots.append((vars(module), "_flat_weights", flat))
    return flat_slots


@torch.no_grad()
def apply_exchange(exchange: Exchange) -> None:
    """Put every value in its place, or none of them if anything is raised in between (Ctrl-C, for one)."""
    # Each entry is one assignment to a dictionary, so nothing can be half done within it.
    olds = [(holder, key, holder[key]) for holder, key, _ in exchange.slots]
    data = {tensor: Data.of(tensor) for tensor in exchange.values}
    written: list[tuple[Tensor, Tensor]] = []
    in_place = _writable(exchange.values)
    try:
        for tensor, values in exchange.values.items():
            if tensor in in_place:
                written.append((tensor, tensor.clone()))
                tensor.copy_(values)
            else:
                Data(values=values, gradient=None).put_into(tensor)
        for holder, key, new in exchange.slots:
            holder[key] = new
    except BaseException:
        for tensor, values in written:
            tensor.copy_(values)
        for tensor, before in data.items():
            before.put_into(tensor)
        # Backwards, so that an entry that was replaced twice ends with its first value.
        for holder, key, old in reversed(olds):
            holder[key] = old
        raise
    for tensor in exchange.values.keys() - in_place:
        outdate_graphs(tensor, exchange.names[tensor])


def _writable(values: Mapping[Tensor, Tensor]) -> set[Tensor]:
    """Return the tensors that take their values in place, so that views of them follow too."""
    storages = Counter(tensor.untyped_storage().data_ptr() for tensor in values)
    return {
        tensor
        for tensor, new in values.items()
        if (tensor.shape, tensor.dtype) == (new.shape, new.dtype)
        # What shares memory with another one, or with itself, can't take values of its own.
        and storages[tensor.untyped_storage().data_ptr()] == 1
        and (0 not in tensor.stride() or tensor.numel() < 2)
    }
