"""`save` and `load`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from senn.errors import SennError, UnsupportedError
from senn.persistence.description import Description, describe, is_plain, parse
from senn.persistence.files import WEIGHTS, read_description, read_weights, write
from senn.persistence.regrow import Fitting, Place, Slot


def save(folder: str | Path, model: nn.Module, extra: dict[str, Any] | None = None) -> None:
    """Write a model to a folder (made if need be), replacing the one that is there.

    Both files are complete before either takes its name.

    Args:
        folder: where `model.safetensors` and `model.json` go.
        model: any module; its parameters must be finite.
        extra: JSON-able, kept in `model.json`; read back with `load_extra`.

    Raises:
        SennError: if a tensor isn't finite, `extra` isn't JSON-able, or the folder can't be written.
        UnsupportedError: if the model keeps state that isn't plain tensors.
    """
    described, tensors = describe(model)
    write(Path(folder), tensors, {**described, "extra": extra or {}})


def load(folder: str | Path, into: nn.Module | None = None) -> nn.Module:
    """Read a model back.

    Args:
        folder: where it was saved.
        into: a freshly built model of the same classes, of any size, that is regrown in place and returned: widths,
            inserted layers and repeated blocks. Its device, mode and settings stay, and what is trained; it takes the
            saved type of numbers. None to rebuild the model (on the CPU, in eval mode) from layers of torch.nn and
            senn.nn alone.

    Raises:
        SennError: if the folder holds no intact model of a known version, or not one like `into`, which then is
            unchanged.
        UnsupportedError: if the model, or something that was added to it, is of a class that only its owner can build.
    """
    try:
        description = parse(read_description(Path(folder)))
        tensors = read_weights(Path(folder), description.weights_sha256)
        description.check(tensors)
        fitting = Fitting(description, into)
        model = fitting.run()
        slots = [*fitting.plan.slots, *_filled(fitting.plan.places, description, tensors)]
        slots += _flat_weights([module for _, module in fitting.plan.found], slots)
    except RecursionError as error:
        raise SennError(f"the model in {str(folder)!r} is nested too deeply to be read") from error
    _exchange(slots)
    return model.eval() if into is None else model


def load_extra(folder: str | Path) -> dict[str, Any]:
    """What was saved beside a model.

    Raises:
        SennError: if the folder's description isn't intact.
    """
    return parse(read_description(Path(folder))).extra


def _filled(places: list[Place], description: Description, tensors: Mapping[str, Tensor]) -> list[Slot]:
    """New Parameters and buffers for all places; tied names get the same one."""
    made: dict[str, Tensor] = {}
    firsts: dict[int, str] = {}
    slots: list[Slot] = []
    for place in sorted(places, key=lambda one: one.name in description.transient):
        first = description.tied.get(place.name, place.name)
        if place.name in description.transient and first not in made and not _needed(place, tensors[first]):
            continue
        if firsts.setdefault(id(place.old), first) != first:
            raise SennError(
                f"{place.name!r} and {firsts[id(place.old)]!r} are one tensor in the given model, two in the saved one"
            )
        if first not in made:
            made[first] = _successor(place, tensors[first], place.name in description.frozen)
        elif isinstance(made[first], nn.Parameter) != isinstance(place.old, nn.Parameter):
            raise SennError(f"{place.name!r} and {first!r} are one tensor in the saved model, but of two kinds here")
        slots.append((place.holder, place.key, made[first]))
    return slots


def _needed(place: Place, stored: Tensor) -> bool:
    """Whether a buffer that isn't in the state must be replaced: growth resized it, or it has no numbers yet.

    Otherwise it is what its owner's code computes.
    """
    return place.old.shape != stored.shape or place.old.is_meta


def _successor(place: Place, stored: Tensor, frozen: bool) -> Tensor:
    """A tensor of the old one's kind with the stored numbers."""
    old = place.old
    if not is_plain(old):
        raise UnsupportedError(f"{place.name!r} is a {type(old).__name__}, whose numbers can't be read back")
    kinds = [(one.is_floating_point(), one.is_complex()) for one in (old, stored)]
    if kinds[0] != kinds[1] or (not any(kinds[0]) and old.dtype != stored.dtype):
        raise SennError(f"{WEIGHTS} holds {place.name!r} as {stored.dtype}, but it is {old.dtype}")
    try:
        new = stored.to(place.device)
    except RuntimeError as error:
        raise SennError(f"{place.name!r} can't be put on {place.device}: {' '.join(str(error).split())}") from error
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad if place.fresh else not frozen)
    new.__dict__.update(old.__dict__)
    return new


def _flat_weights(modules: list[nn.Module], slots: list[Slot]) -> list[Slot]:
    """Recurrent layers keep a list of their parameters besides."""
    news = {(id(holder), key): new for holder, key, new in slots}
    found: list[Slot] = []
    for module in modules:
        if isinstance(module, nn.RNNBase):
            held = module._parameters
            flat = [news.get((id(held), name), held.get(name)) for name in module._flat_weights_names]
            found.append((vars(module), "_flat_weights", flat))
    return found


def _exchange(slots: list[Slot]) -> None:
    """Put everything in its place; all or nothing."""
    olds = [(holder, key, holder[key]) for holder, key, _ in slots]
    try:
        for holder, key, new in slots:
            holder[key] = new
    except BaseException:
        for holder, key, old in reversed(olds):
            holder[key] = old
        raise
