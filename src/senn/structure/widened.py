"""A copy of a model in which spaces have one more unit: only for the proof, surgery proper is a room of its own."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from senn.structure.spaces import Attribute, Role, Slot, Space, tensor_of


def disturb(model: nn.Module, names: Iterable[str], generator: torch.Generator) -> None:
    """Add noise to all parameters among these tensors: what holds for fresh norms may not hold later."""
    for name in sorted(names):
        tensor = tensor_of(model, name)
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
            draw = 0.1 * torch.randn(tensor.shape, generator=generator)
            tensor.data += _noise(tensor, generator) if tensor.dim() > 1 else draw.to(tensor)


def _noise(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Random entries of the size of a fresh linear map's."""
    draw = torch.randn(weight.shape, generator=generator) / math.sqrt(max(weight[0].numel(), 1))
    return draw.to(weight.device, weight.dtype)


def widen(model: nn.Module, spaces: Sequence[Space], generator: torch.Generator) -> None:
    """Give each space one more unit: random rows, carriers like the last unit's, zero columns.

    Where a normalisation mixes the units, rows as it needs them (see `Norm`).
    """
    places: dict[str, dict[int, list[tuple[Slot, Space]]]] = defaultdict(lambda: defaultdict(list))
    for space in spaces:
        for slot in space.slots:
            places[slot.name][slot.dim].append((slot, space))
    holders = _holders(model)
    scales = _norm_scales(model, spaces)
    for name, dims in places.items():
        old = tensor_of(model, name)
        new = old.detach()
        for dim in sorted(dims, key=lambda d: dims[d][0][0].role == "consumer"):  # zero columns last
            for slot, space in sorted(dims[dim], key=lambda pair: -int(pair[0].index[-1, 0])):
                new = _extended(new, slot, space, generator)
        if name in scales:
            new = new * scales[name]
        held = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
        for container, key in holders[id(old)]:
            container[key] = held
    for space in spaces:
        for attribute in space.attributes:
            _add(model, attribute)
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]


def _extended(old: Tensor, slot: Slot, space: Space, generator: torch.Generator) -> Tensor:
    """The tensor with one more unit after the last one of each run."""
    last = slot.index[-1].view(slot.runs, -1)
    after = last[:, -1:].expand_as(last).flatten()
    repeats = 1 + torch.bincount(after, minlength=old.shape[slot.dim])
    new = old.repeat_interleave(repeats.to(old.device), slot.dim)
    is_new = torch.ones(new.shape[slot.dim], dtype=torch.bool)
    is_new[repeats.cumsum(0) - repeats] = False
    positions = is_new.nonzero().flatten().to(old.device)
    fresh = _entries(old, slot, space, new, positions, generator)
    return new.index_copy(slot.dim, positions, fresh)


def _entries(
    old: Tensor, slot: Slot, space: Space, new: Tensor, positions: Tensor, generator: torch.Generator
) -> Tensor:
    """Values of the new positions."""
    copied = new.index_select(slot.dim, positions)
    if slot.role == "consumer" and not slot.quiet:
        return torch.zeros_like(copied)
    if slot.quiet and slot.role != "consumer":
        if any(norm.module == slot.module for norm in space.norms):
            return torch.zeros_like(copied) if slot.tensor.startswith("bias") else copied
        if space.norms[0].kind == "rms":
            return torch.zeros_like(copied)
        units = old.index_select(slot.dim, slot.index.flatten().to(old.device))
        return units.mean(slot.dim, keepdim=True).expand_as(copied)
    if slot.role == "carrier" or new.dim() == 1:
        return copied
    return _noise(new, generator).index_select(slot.dim, positions)


def _norm_scales(model: nn.Module, spaces: Sequence[Space]) -> dict[str, float]:
    """Factors of the weights of normalisations that mix units; their eps is changed at once."""
    scales = {}
    for space in spaces:
        for norm in space.norms:
            role: Role = "carrier"
            slot = next(s for s in space.of(role) if s.module == norm.module and s.tensor == "weight")
            k = slot.index.shape[1]
            fraction = space.width * k / (space.width * k + k)
            scales[slot.name] = math.sqrt(fraction)
            module = model.get_submodule(norm.module)
            if norm.eps is not None:
                setattr(module, norm.eps, getattr(module, norm.eps) * fraction)
    return scales


def _holders(model: nn.Module) -> dict[int, list[tuple[dict[str, Any], str]]]:
    """Every dictionary entry under which a parameter or buffer is held, by the tensor's id."""
    holders: dict[int, list[tuple[dict[str, Any], str]]] = defaultdict(list)
    for module in model.modules():
        for container in (module._parameters, module._buffers):
            for key, tensor in container.items():
                holders[id(tensor)].append((container, key))
    return holders


def _add(model: nn.Module, attribute: Attribute) -> None:
    module = model.get_submodule(attribute.module)
    value = getattr(module, attribute.name)
    if attribute.item is None:
        setattr(module, attribute.name, value + attribute.per_unit)
    else:
        items = list(value)
        items[attribute.item] += attribute.per_unit
        setattr(module, attribute.name, tuple(items))
