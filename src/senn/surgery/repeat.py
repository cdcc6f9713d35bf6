"""Insertion of a copy of a block after the block: which entries of which dictionaries change.

Where the block lies in a list of layers that the forward pass goes through, the copy goes into that list: later layers
move up by one, and numbers that say where a layer stands or how many there are follow. Otherwise `Sequential(block,
copy)` takes the block's place. The search for residual blocks (`verification.residual_search`) tries the same changes.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from senn.graph.named_tensors import get_tensor
from senn.graph.types import ResidualBlock, SizeAttribute
from senn.surgery.undo import Swap

Addition = tuple[ResidualBlock, nn.Module]
"""A block, and the module that is to stand after it."""

# Names that models of timm, transformers and torch use. A name that is missing here costs depth in such a model (the
# forward pass fails with one layer more, so the block is refused); a wrong one is caught, since the copy is run.
COUNTS = frozenset(
    [
        *(
            "num_hidden_layers",
            "num_layers",
            "n_layers",
            "n_layer",
            "num_blocks",
            "n_blocks",
            "depth",
        ),
        *("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers"),
    ]
)
"""Attributes that say how many layers there are."""

_TABLES = frozenset(["layer_types"])
"""Lists, next to such an attribute, with one entry for each layer."""

_POSITIONS = frozenset(
    ["layer_idx", "layer_index", "layer_id", "layer_number", "block_idx", "block_index"]
)
"""Attributes that say where a layer stands."""


def function_preserving_copy(model: nn.Module, block: ResidualBlock) -> nn.Module:
    """Copy a residual block so that the copy gives back what it is given, and can learn.

    Args:
        model: that holds the block; it isn't changed.
        block: of its dependency graph.

    Returns:
        A copy with the block's tensors, running statistics included, except `ResidualBlock.output_params`, which are
        zero: these move at the first training step, and what stands before them from the second step on.
    """
    twin = copy.deepcopy(model.get_submodule(block.module))
    with torch.no_grad():
        for name in block.output_params:
            get_tensor(twin, name.removeprefix(f"{block.module}.")).zero_()
    return twin


def shuffle_weights(block: nn.Module, generator: torch.Generator) -> None:
    """Put the entries of each weight in random order, in place; vectors (norms, biases) stay.

    Args:
        block: the module.
        generator: source of the order, on the CPU.
    """
    for parameter in block.parameters():
        if parameter.dim() > 1:
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.data = parameter.detach().flatten()[order].view(parameter.shape)


def make_plain(original: nn.Module, block: ResidualBlock, added: nn.Module) -> Callable[[], None]:
    """Give a copy of a block the block's output parameters, in place of zeros.

    Args:
        original: the block's module.
        block: what is known of it.
        added: the copy in the model.

    Returns:
        The way back.
    """
    names = [name.removeprefix(f"{block.module}.") for name in block.output_params]
    given = [get_tensor(added, name) for name in names]
    before = [one.detach().clone() for one in given]
    for name, one in zip(names, given, strict=True):
        one.data.copy_(get_tensor(original, name).detach())

    def undo() -> None:
        for one, values in zip(given, before, strict=True):
            one.data.copy_(values)

    return undo


def insert_copy_after(
    model: nn.Module, additions: Sequence[Addition], pending: Sequence[Swap] = ()
) -> list[Swap]:
    """Return the changes that put modules after blocks.

    Args:
        model: isn't changed.
        additions: at most one for each block. Numbers of positions inside the new modules are set at once.
        pending: changes that will be made before these.

    Returns:
        Entries of modules' dictionaries to exchange, in order.
    """
    swaps: list[Swap] = []
    lists: dict[str, dict[str, nn.Module]] = defaultdict(dict)
    for block, added in additions:
        path, _, key = block.module.rpartition(".")
        if block.in_module_list:
            lists[path][key] = added
            continue
        held = model.get_submodule(path)._modules
        stack = nn.Sequential(model.get_submodule(block.module), added)
        stack.training = added.training
        swaps.append((held, key, held[key], stack))
    for path, several in lists.items():
        parent = model.get_submodule(path)
        swaps += _longer_list(parent, several, [*pending, *swaps])
        # Each table once, though several blocks of the list may name its configuration.
        counts = [
            count
            for block, _ in additions
            if _lies_in(block, path, several)
            for count in block.depth_attributes
        ]
        holders = [holder_of(model, count)[0] for count in dict.fromkeys(counts)]
        swaps += _longer_tables(holders, list(parent._modules), several)
    totals = Counter(count for block, _ in additions for count in block.depth_attributes)
    for attribute, number in totals.items():
        holder, key = holder_of(model, attribute)
        count = holder[key]
        swaps.append((holder, key, count, count + number * attribute.per_unit))
    return swaps


def _lies_in(block: ResidualBlock, path: str, names: Collection[str]) -> bool:
    return block.module[len(path) + 1 :] in names


def _longer_list(
    parent: nn.Module, additions: Mapping[str, nn.Module], pending: Sequence[Swap]
) -> list[Swap]:
    """Return a list of layers with some more in it, as one change of all its entries."""
    children = dict(parent._modules)
    for held, key, _, new in pending:
        # A layer of the list may have been exchanged by another move: the new list holds what stands there then.
        if held is parent._modules:
            children[key] = new
    counters = _counters([child for child in children.values() if child is not None])
    numbered = [*children] == [str(number) for number in range(len(children))]
    swaps: list[Swap] = []
    names: list[str] = []
    modules: list[nn.Module | None] = []
    shift = 0
    for name, child in children.items():
        names.append(name)
        modules.append(child)
        if child is not None and shift:
            for held, key in _positions(child, counters):
                swaps.append((held, key, held[key], held[key] + shift))
        if name in additions:
            shift += 1
            for held, key in _positions(additions[name], counters):
                held[key] += shift
            names.append(_unused(name, {*children, *names}))
            modules.append(additions[name])
    if numbered:
        # ModuleList and Sequential index by these names.
        names = [str(number) for number in range(len(modules))]
    # A new dictionary in place of the old one, which an undo puts back: its order is what the forward pass follows.
    longer = type(parent._modules)(zip(names, modules, strict=True))
    return [*swaps, (vars(parent), "_modules", parent._modules, longer)]


def _longer_tables(
    holders: Sequence[dict[str, Any]], names: Sequence[str], additions: Collection[str]
) -> list[Swap]:
    """Repeat what a configuration says of a layer for the one that is put after it."""
    swaps: list[Swap] = []
    for held in holders:
        for key in _TABLES & held.keys():
            old = held[key]
            # A table of another length is about something else.
            if not isinstance(old, list) or len(old) != len(names):
                continue
            new = []
            for name, entry in zip(names, old, strict=True):
                new += [entry, entry] if name in additions else [entry]
            swaps.append((held, key, old, new))
    return swaps


def _unused(name: str, taken: set[str]) -> str:
    number = 2
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"


def _positions(
    layer: nn.Module, names: frozenset[str] = _POSITIONS
) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield (dictionary, key) of each number in a layer that says where the layer stands."""
    for module in layer.modules():
        for key in names & vars(module).keys():
            if type(vars(module)[key]) is int:
                yield vars(module), key


def _counters(layers: Sequence[nn.Module]) -> frozenset[str]:
    """Return the names of numbers that go up by one from each layer to the next."""
    # A number that doesn't count (the same `layer_idx` for all, every second one) stays: nobody knows what it means.
    starts: dict[str, set[int]] = defaultdict(set)
    for number, layer in enumerate(layers):
        for held, key in _positions(layer):
            starts[key].add(held[key] - number)
    return frozenset(key for key, found in starts.items() if len(found) == 1)


def have_positions(model: nn.Module, path: str) -> bool:
    """Return True if the layers of a list know where they stand.

    Args:
        model: that holds the list.
        path: name of the list.
    """
    return bool(_counters([*model.get_submodule(path).children()]))


def counts_of(model: nn.Module, path: str) -> tuple[list[SizeAttribute], list[SizeAttribute]]:
    """Find the numbers that may say how many layers a list has.

    Args:
        model: that holds the list.
        path: name of the list.

    Returns:
        Numbers of the nearest configuration object above the list, and attributes of the modules above it, nearest
        first. Each is equal to the list's length now.
    """
    length = len(model.get_submodule(path)._modules)
    configured: list[SizeAttribute] = []
    own: list[SizeAttribute] = []
    while path:
        path = path.rpartition(".")[0]
        for key, value in vars(model.get_submodule(path)).items():
            if key in COUNTS and _is_count(value, length):
                own.append(SizeAttribute(module=path, name=key, per_unit=1))
            if not configured and not key.startswith("_") and _is_configuration(value):
                counts = {name: count for name, count in vars(value).items() if name in COUNTS}
                names = [name for name, count in counts.items() if _is_count(count, length)]
                configured = [
                    SizeAttribute(module=path, name=f"{key}.{name}", per_unit=1) for name in names
                ]
    return configured, own


def _is_count(value: Any, length: int) -> bool:
    return type(value) is int and value == length  # a bool is an int, too


def _is_configuration(value: Any) -> bool:
    return not isinstance(value, type | nn.Module) and hasattr(value, "__dict__")


def holder_of(model: nn.Module, attribute: SizeAttribute) -> tuple[dict[str, Any], str]:
    """Return the dictionary that holds a number, and its key there.

    Args:
        model: the model.
        attribute: the number; its name may lead into an object that isn't a module (`config.n_layer`).
    """
    holder: Any = model.get_submodule(attribute.module)
    *path, key = attribute.name.split(".")
    for name in path:
        holder = getattr(holder, name)
    return vars(holder), key
