"""Averages of a model: where the copy is in an object that keeps one, and names that such an object has kept."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from senn.errors import SennError
from senn.surgery.undo import Swap


def find_copy(model: nn.Module, average: Any) -> nn.Module:
    """Return the copy of a model that an average keeps: the average itself, or a module inside.

    `AveragedModel` keeps it as `.module`, others as `.ema_model`; it is known by its parameters' names.

    Args:
        model: the model.
        average: what averages it.

    Raises:
        SennError: there is no copy in it, or more than one, or it has other shapes.
    """
    shapes = _shapes(model)
    found = {path: one for path, one in _copies(average, shapes.keys()) if one is not model}
    if len(found) == 1:
        (copy,) = found.values()
        for name, shape in _shapes(copy).items():
            if shape != shapes[name]:
                raise SennError(
                    f"'{name}' has shape {shape} in one copy of the model, {shapes[name]} in another"
                )
        return copy
    kind, paths = type(average).__name__, ", ".join(repr(path) for path in found)
    if found:
        raise SennError(
            f"the {kind} in averaged holds several copies of the model ({paths}): give the one that is the average"
        )
    raise SennError(
        f"the {kind} in averaged holds no copy of the model: give a module whose parameters have the same names"
    )


def _copies(average: Any, names: Collection[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yield, by attribute, the outermost modules with parameters of these names."""
    if isinstance(average, nn.Module):
        roots = {"": average}
    else:
        held = getattr(average, "__dict__", {})
        roots = {key: value for key, value in held.items() if isinstance(value, nn.Module)}
    for root, outer in roots.items():
        inside: set[nn.Module] = set()
        for path, module in outer.named_modules(prefix=root):
            if module not in inside and _shapes(module).keys() == names:
                inside |= {*module.modules()}
                yield path, module


def _shapes(module: nn.Module) -> dict[str, Any]:
    # A lazy module's parameters have no shape yet.
    return {
        name: None if nn.parameter.is_lazy(parameter) else tuple(parameter.shape)
        for name, parameter in module.named_parameters(remove_duplicate=False)
    }


def names_of(copy: nn.Module) -> dict[Tensor, str]:
    """Return the names of a copy's parameters and buffers."""
    return {tensor: name for name, tensor in (*copy.named_parameters(), *copy.named_buffers())}


def follow_names(average: Any, copy: nn.Module, before: Mapping[Tensor, str]) -> list[Swap]:
    """Return the changes by which names that an average has kept follow a change of its copy.

    An average may go by names that it recorded when it was made (`EMA` of ema_pytorch does): it would pass over
    parameters that have other names since a layer was inserted, and over those of the layer.

    Args:
        average: what averages the model.
        copy: the copy in it, changed.
        before: `names_of` it before the change.

    Returns:
        Entries of the average's dictionary to exchange.
    """
    now = names_of(copy)
    renamed = {name: now[tensor] for tensor, name in before.items()}
    added = {tensor: name for tensor, name in now.items() if tensor not in before}
    if average is copy or not (added or any(old != new for old, new in renamed.items())):
        return []
    swaps: list[Swap] = []
    for key, kept in vars(average).items():
        is_names = type(kept) in (set, frozenset, list, tuple) and {*map(type, kept)} == {str}
        if not is_names or not renamed.keys() >= set(kept):
            continue
        follows = [renamed[name] for name in kept]
        for of_kind in (_averaged_parameters, _averaged_buffers):
            # Whoever has named all of a kind means those of a new layer too.
            if of_kind(before) and of_kind(before) <= set(kept):
                follows += sorted(of_kind(added))
        swaps.append((vars(average), key, kept, type(kept)(follows)))
    return swaps


def _averaged_parameters(names: Mapping[Tensor, str]) -> set[str]:
    return {name for one, name in names.items() if isinstance(one, nn.Parameter) and _is_real(one)}


def _averaged_buffers(names: Mapping[Tensor, str]) -> set[str]:
    return {
        name for one, name in names.items() if not isinstance(one, nn.Parameter) and _is_real(one)
    }


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
