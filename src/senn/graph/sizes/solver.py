"""Which attributes and which other elements must change with an element: solved from the forward's own numbers.

A call of the forward that took a number (`view(batch, tokens, self.heads, width // self.heads)`) is replayed on tensors
without data, at the sizes that a grown model would have. What comes out must have the sizes that the labels say.
Where it hasn't, attributes and elements that the call depends on are changed along, the fewest that help.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from senn.graph.label_classes import LabelClasses
from senn.graph.sizes.symbolic_int import IntSource, Key, Numbers, RecordedCall, SizeAssignment, SizeGuard, TensorMeta

Symbol = int | Key
"""An element's number, or an attribute."""

MOST_CHECKS = 4000
"""Replays after which an element is given up."""


@dataclass(frozen=True, kw_only=True)
class SizeChange(SizeAssignment):
    """By how much elements and attributes change."""

    elements: LabelClasses
    by: Mapping[Symbol, int]

    def attribute(self, key: Key, value: int) -> int:
        """Its new value."""
        return value + self.by.get(key, 0)

    def size(self, tensor: TensorMeta, dim: int) -> int:
        """Its new size."""
        size = tensor.shape[dim]
        for number, count in self.elements.counts(tensor).get(dim, {}).items():
            change = self.by.get(number, 0)
            if change and not count:
                raise _IrregularError
            size += count * change
        return size

    def shape(self, tensor: TensorMeta) -> list[int]:
        """Its new shape."""
        return [self.size(tensor, dim) for dim in range(len(tensor.shape))]


class _IrregularError(Exception):
    """Only some of an element's units lie in a tensor."""


class NoSolutionError(Exception):
    """An element can't change; the message says why."""


@dataclass(kw_only=True, eq=False)
class _Item:
    """A call or a comparison, and what it depends on."""

    what: RecordedCall | SizeGuard
    keys: frozenset[Key]
    tensors: list[TensorMeta]
    touched: frozenset[int]
    cache: dict[tuple[int, ...], bool] = field(default_factory=dict)

    @property
    def symbols(self) -> list[Symbol]:
        return [*sorted(self.keys, key=str), *sorted(self.touched)]


class SizeSolver:
    """Solves for what changes together.

    Args:
        numbers: of the forward pass.
        elements: of the same pass.
        along: for each element, attributes that are known to change with it, and by how much per unit.
    """

    def __init__(self, numbers: Numbers, elements: LabelClasses, along: Mapping[int, Mapping[Key, int]]) -> None:
        self.elements, self.along = elements, along
        self.checks = 0
        self.items: list[_Item] = []
        everything: list[RecordedCall | SizeGuard] = [*numbers.calls, *numbers.guards]
        for what in everything:
            sources = what.sources if isinstance(what, RecordedCall) else [what.left, what.right]
            tensors = [tensor for source in sources for tensor in source.tensors]
            if isinstance(what, RecordedCall):
                tensors += [*what.tensors, *what.results]
            touched = frozenset(
                number for tensor in tensors for dim in elements.counts(tensor).values() for number in dim
            )
            keys = frozenset().union(*(source.keys for source in sources))
            if touched or keys:
                item = _Item(what=what, keys=keys, tensors=list({id(t): t for t in tensors}.values()), touched=touched)
                if self._holds(item, {}):  # else the replay isn't faithful: the widened copy will tell
                    self.items.append(item)
        self._by_symbol: dict[Symbol, list[_Item]] = {}
        for item in self.items:
            for symbol in item.symbols:
                self._by_symbol.setdefault(symbol, []).append(item)

    def solve(self, element: int) -> dict[Symbol, int]:
        """The smallest change of an element with all that must change along.

        Raises:
            NoSolutionError: there is none.
        """
        failure = ""
        if self.elements.all[element].width == 1:  # one label shows no dimension: the widened copy will tell
            alone: dict[Symbol, int] = {element: 1}
            return alone | dict(self.along.get(element, {}))
        for amount in self._amounts(element):
            self.checks = 0
            start: dict[Symbol, int] = {element: amount}
            start |= {key: amount * by for key, by in self.along.get(element, {}).items()}
            found, failure = self._extended(start)
            if found is not None:
                return found
        raise NoSolutionError(failure)

    def _amounts(self, element: int) -> list[int]:
        """How many units a change may need: one, or as many as a unit of another element has positions."""
        sizes = {1}
        for item in self._by_symbol.get(element, ()):
            for tensor in item.tensors:
                for dim in self.elements.counts(tensor).values():
                    sizes |= {count for count in dim.values() if count}
        width = self.elements.all[element].width
        return [size for size in sorted(sizes) if width % size == 0 and size < max(width, 2)]

    def _extended(self, change: dict[Symbol, int]) -> tuple[dict[Symbol, int] | None, str]:
        """The change with what must change along; None and what stands against it if there is nothing that helps."""
        broken = next((item for item in self._concerned(change) if not self._holds(item, change)), None)
        if broken is None:
            return change, ""
        failure = f"its size is fixed by {_name(broken.what)} in {broken.what.place}"
        for more in self._repairs(broken, change):
            if self.checks > MOST_CHECKS:
                break
            found, inner = self._extended({**change, **more})
            if found is not None:
                return found, ""
            failure = inner or failure
        return None, failure

    def _concerned(self, change: Mapping[Symbol, int]) -> Iterator[_Item]:
        seen: set[int] = set()
        for symbol in change:
            for item in self._by_symbol.get(symbol, ()):
                if id(item) not in seen:
                    seen.add(id(item))
                    yield item

    def _repairs(self, item: _Item, change: Mapping[Symbol, int]) -> Iterator[dict[Symbol, int]]:
        """Changes of the item's other symbols with which it holds, the fewest first, attributes before elements."""
        free = [symbol for symbol in item.symbols if symbol not in change]
        free = [s for s in free if not isinstance(s, int) or self.elements.all[s].reason is None]
        amounts = {symbol: self._candidates(item, symbol, change) for symbol in free}
        for count in (1, 2, 3):
            for chosen in combinations(free, count):
                for values in product(*(amounts[symbol] for symbol in chosen)):
                    more: dict[Symbol, int] = dict(zip(chosen, values, strict=True))
                    for symbol in chosen:
                        if isinstance(symbol, int):
                            along = self.along.get(symbol, {})
                            more |= {key: more[symbol] * by for key, by in along.items()}
                    if self._holds(item, {**change, **more}):
                        yield more

    def _candidates(self, item: _Item, symbol: Symbol, change: Mapping[Symbol, int]) -> list[int]:
        """Amounts by which a symbol could have to change: what sizes in the item change by, whole units of it."""
        sizes: set[int] = set()
        own: set[int] = {1}
        for tensor in item.tensors:
            for dim in self.elements.counts(tensor).values():
                size = sum(change.get(number, 0) * count for number, count in dim.items())
                sizes |= {size} if size else set()
                own |= {count for number, count in dim.items() if number == symbol and count}
        sizes |= {amount for key, amount in change.items() if not isinstance(key, int) and key in item.keys}
        sizes |= {amount for key, amount in change.items() if isinstance(key, int) and key in item.touched}
        own |= {
            count for tensor in item.tensors for dim in self.elements.counts(tensor).values() for count in dim.values()
        }
        if not isinstance(symbol, int):
            return sorted(sizes | {size // count for size in sizes for count in own if count and size % count == 0})
        whole = {size // count for size in sizes for count in own if count and size % count == 0}
        whole |= {size * count for size in sizes for count in own if count}
        width = self.elements.all[symbol].width
        return [amount for amount in sorted(whole) if amount and width % amount == 0]

    def _holds(self, item: _Item, change: Mapping[Symbol, int]) -> bool:
        key = tuple(change.get(symbol, 0) for symbol in item.symbols)
        if key not in item.cache:
            self.checks += 1
            world = SizeChange(elements=self.elements, by=change)
            try:
                item.cache[key] = (
                    _compares(item.what, world) if isinstance(item.what, SizeGuard) else _replays(item.what, world)
                )
            except _IrregularError:
                item.cache[key] = False
        return item.cache[key]


def _compares(guard: SizeGuard, world: SizeChange) -> bool:
    try:
        return guard.compare(guard.left.new(world), guard.right.new(world)) == guard.outcome
    except ZeroDivisionError:
        return False


def _replays(call: RecordedCall, world: SizeChange) -> bool:
    """Whether the call, with tensors and numbers of their new sizes, gives results of their new sizes."""

    def renewed(leaf: Any) -> Any:
        if isinstance(leaf, TensorMeta):
            return torch.empty(world.shape(leaf), dtype=leaf.dtype, device="meta")
        if isinstance(leaf, IntSource):
            return leaf.new(world)
        return torch.device("meta") if isinstance(leaf, torch.device) else leaf

    try:
        args, kwargs = pytree.tree_map(renewed, (call.args, call.kwargs))
        with torch.no_grad(), torch.device("meta"):
            result = call.function(*args, **kwargs)
    except _IrregularError:
        raise
    except Exception:  # whatever the call says against these sizes
        return False
    found = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    return [list(tensor.shape) for tensor in found] == [world.shape(tensor) for tensor in call.results]


def _name(what: RecordedCall | SizeGuard) -> str:
    return "a comparison of sizes" if isinstance(what, SizeGuard) else getattr(what.function, "__name__", "a call")
