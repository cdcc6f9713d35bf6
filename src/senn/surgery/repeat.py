"""Putting a copy of a block after it: which entries of which dictionaries change. The proof and the surgery share it.

Where the block lies in a list of layers that the forward pass goes through, the copy goes into that list: later layers
move up by one, and numbers that say where a layer stands or how many there are follow. Else the block's place is
taken by `Sequential(block, copy)`.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import nn

from senn.graph.types import ResidualBlock, SizeAttribute, get_tensor

Swap = tuple[MutableMapping[str, Any], str, Any, Any]
"""A dictionary, a key of it, the entry before, the entry after."""

Addition = tuple[ResidualBlock, nn.Module]
"""A block, and what is to stand after it."""

COUNTS = frozenset(
    [
        *("num_hidden_layers", "num_layers", "n_layers", "n_layer", "num_blocks", "n_blocks", "depth"),
        *("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers"),
    ]
)
"""Attributes that say how many layers there are."""

_TABLES = frozenset(["layer_types"])
"""Lists, beside such an attribute, with one entry for each layer."""

_POSITIONS = frozenset(["layer_idx", "layer_index", "layer_id", "layer_number", "block_idx", "block_index"])
"""Attributes that say where a layer stands."""


def function_preserving_copy(model: nn.Module, block: ResidualBlock) -> nn.Module:
    """A copy of a block of the model that gives back what it is given, and learns.

    All its tensors are copies of the block's, running statistics included, except `Block.silent`, which are zero:
    those move at the first training step, what stands before them from the second on.
    """
    twin = copy.deepcopy(model.get_submodule(block.module))
    with torch.no_grad():
        for name in block.output_params:
            get_tensor(twin, name.removeprefix(f"{block.module}.")).zero_()
    return twin


def insert_copy_after(model: nn.Module, additions: Sequence[Addition], pending: Sequence[Swap] = ()) -> list[Swap]:
    """The changes that put modules after blocks; numbers of positions inside the new modules are set at once.

    Args:
        model: isn't changed.
        additions: at most one for each block.
        pending: changes that will be made before these.
    """
    swaps: list[Swap] = []
    lists: dict[str, dict[str, nn.Module]] = defaultdict(dict)
    for block, added in additions:
        path, _, key = block.module.rpartition(".")
        if block.in_module_list:
            lists[path][key] = added
        else:
            held = model.get_submodule(path)._modules
            stack = nn.Sequential(model.get_submodule(block.module), added)
            stack.training = added.training
            swaps.append((held, key, held[key], stack))
    for path, several in lists.items():
        parent = model.get_submodule(path)
        swaps += _longer(parent, several, [*pending, *swaps])
        counted = dict.fromkeys(
            one for block, _ in additions if block.module[len(path) + 1 :] in several for one in block.depth_attributes
        )
        swaps += _longer_tables([_holder(model, one)[0] for one in counted], list(parent._modules), several)
    counts = Counter(attribute for block, _ in additions for attribute in block.depth_attributes)
    for attribute, number in counts.items():
        holder, key = _holder(model, attribute)
        swaps.append((holder, key, holder[key], holder[key] + number * attribute.per_unit))
    return swaps


def _longer(parent: nn.Module, additions: Mapping[str, nn.Module], pending: Sequence[Swap]) -> list[Swap]:
    """A list of layers with some more in it, as one change of all its entries."""
    children = dict(parent._modules)
    for held, key, _, new in pending:
        if held is parent._modules:
            children[key] = new
    counters = _counters([child for child in children.values() if child is not None])
    numbered = [*children] == [str(place) for place in range(len(children))]
    swaps: list[Swap] = []
    names: list[str] = []
    modules: list[nn.Module | None] = []
    shift = 0
    for name, child in children.items():
        names.append(name)
        modules.append(child)
        if child is not None and shift:
            swaps += [(held, key, held[key], held[key] + shift) for held, key in _positions(child, counters)]
        if name in additions:
            shift += 1
            for held, key in _positions(additions[name], counters):
                held[key] += shift
            names.append(_unused(name, {*children, *names}))
            modules.append(additions[name])
    if numbered:
        names = [str(place) for place in range(len(modules))]
    longer = type(parent._modules)(zip(names, modules, strict=True))
    return [*swaps, (vars(parent), "_modules", parent._modules, longer)]


def _longer_tables(holders: Sequence[dict[str, Any]], names: Sequence[str], additions: Collection[str]) -> list[Swap]:
    """What a configuration says of each layer, said again of those that are added."""
    swaps: list[Swap] = []
    for held in holders:
        for key in _TABLES & held.keys():
            old = held[key]
            if isinstance(old, list) and len(old) == len(names):
                new = [entry for name, entry in zip(names, old, strict=True) for _ in range(1 + (name in additions))]
                swaps.append((held, key, old, new))
    return swaps


def _unused(name: str, taken: set[str]) -> str:
    number = 2
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"


def _positions(layer: nn.Module, names: frozenset[str] = _POSITIONS) -> Iterator[tuple[dict[str, Any], str]]:
    """Numbers in a layer that say where it stands, by the dictionary that holds them."""
    for module in layer.modules():
        for key in names & vars(module).keys():
            if type(vars(module)[key]) is int:
                yield vars(module), key


def _counters(layers: Sequence[nn.Module]) -> frozenset[str]:
    """Names of the numbers that go up by one from each layer to the next."""
    starts: dict[str, set[int]] = defaultdict(set)
    for place, layer in enumerate(layers):
        for held, key in _positions(layer):
            starts[key].add(held[key] - place)
    return frozenset(key for key, found in starts.items() if len(found) == 1)


def have_positions(model: nn.Module, path: str) -> bool:
    """Whether the layers of a list know where they stand."""
    return bool(_counters([*model.get_submodule(path).children()]))


def counts_of(model: nn.Module, path: str) -> tuple[list[SizeAttribute], list[SizeAttribute]]:
    """Numbers that may say how many layers a list has: those of the nearest configuration, and those of modules."""
    length = len(model.get_submodule(path)._modules)
    configured: list[SizeAttribute] = []
    own: list[SizeAttribute] = []
    while path:
        path = path.rpartition(".")[0]
        for key, value in vars(model.get_submodule(path)).items():
            if key in COUNTS and type(value) is int and value == length:
                own.append(SizeAttribute(module=path, name=key, per_unit=1))
            if (
                configured
                or key.startswith("_")
                or isinstance(value, type | nn.Module)
                or not hasattr(value, "__dict__")
            ):
                continue
            inner = [name for name, count in vars(value).items() if name in COUNTS and type(count) is int]
            configured = [
                SizeAttribute(module=path, name=f"{key}.{name}", per_unit=1)
                for name in inner
                if vars(value)[name] == length
            ]
    return configured, own


def _holder(model: nn.Module, attribute: SizeAttribute) -> tuple[dict[str, Any], str]:
    """The dictionary that holds a number, and its key there."""
    holder: Any = model.get_submodule(attribute.module)
    *path, key = attribute.name.split(".")
    for name in path:
        holder = getattr(holder, name)
    return vars(holder), key
