"""Solve for the attributes and label classes that must change with a label class.

A call that took a symbolic integer, such as `view(batch, tokens, self.heads, width // self.heads)`, is replayed at the
sizes that a grown model would have, mostly on tensors without data. The results must have the sizes that labels say.
Where they don't, attributes and label classes that the call depends on are changed as well: the fewest that help.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from senn.graph.label_classes import LabelClasses
from senn.graph.sizes.size_tracker import RecordedCall, SizeTracker
from senn.graph.sizes.symbolic_int import IntSource, Key, SizeAssignment, SizeGuard, TensorMeta

Symbol = int | Key
"""The number of a label class, or an attribute."""

MOST_CHECKS = 4000
"""Replays after which a label class is given up: a bound for searches that find no end. The models of the tests need at
most 36."""


@dataclass(frozen=True, kw_only=True)
class SizeChange(SizeAssignment):
    """Sizes after some label classes and attributes have changed.

    Attributes:
        classes: the label classes.
        by: by how much each symbol grows.
    """

    classes: LabelClasses
    by: Mapping[Symbol, int]

    def attribute(self, key: Key, value: int) -> int:
        """Return the new value of an attribute; see `SizeAssignment.attribute`.

        Args:
            key: the attribute.
            value: its value now.
        """
        return value + self.by.get(key, 0)

    def size(self, tensor: TensorMeta, dim: int) -> int:
        """Return the new size of one dimension of a tensor; see `SizeAssignment.size`.

        Args:
            tensor: the tensor as it was recorded.
            dim: the dimension.
        """
        size = tensor.shape[dim]
        for number, positions in self.classes.counts(tensor).get(dim, {}).items():
            change = self.by.get(number, 0)
            if change and not positions:  # see `LabelClasses.counts`
                raise _IrregularError
            size += positions * change
        return size

    def shape(self, tensor: TensorMeta) -> list[int]:
        """Return the new shape of a tensor."""
        return [self.size(tensor, dim) for dim in range(len(tensor.shape))]


class _IrregularError(Exception):
    """Only some units of a label class lie in a tensor, so that its new size is unknown."""


class _WrongSizesError(Exception):
    """A call doesn't take the sizes of a grown model."""


class NoSolutionError(Exception):
    """A label class can't change.

    Attributes:
        line: line of the forward's code that is why; empty if it isn't known.

    Args:
        reason: why, as the rest of a sentence about the label class.
        line: the attribute.
    """

    def __init__(self, reason: str, line: str = "") -> None:
        super().__init__(reason)
        self.line = line


@dataclass(kw_only=True, eq=False)
class _Constraint:
    """A call or a comparison that must hold at every size.

    Attributes:
        what: the call or comparison.
        keys: attributes that it depends on.
        tensors: tensors whose sizes it depends on.
        classes: numbers of the label classes that lie in these tensors.
        cache: whether it holds, by the changes of its symbols.
    """

    what: RecordedCall | SizeGuard
    keys: frozenset[Key]
    tensors: list[TensorMeta]
    classes: frozenset[int]
    cache: dict[tuple[int, ...], bool] = field(default_factory=dict)

    @property
    def symbols(self) -> list[Symbol]:
        return [*sorted(self.keys, key=str), *sorted(self.classes)]

    @property
    def name(self) -> str:
        if isinstance(self.what, SizeGuard):
            return "a comparison of sizes"
        return getattr(self.what.function, "__name__", "a call")


class SizeSolver:
    """Finds what must change together.

    Args:
        sizes: symbolic integers of the forward pass.
        classes: label classes of the same pass.
        along: for each label class, attributes that are known to change with it, and by how much for each unit.
    """

    def __init__(
        self, sizes: SizeTracker, classes: LabelClasses, along: Mapping[int, Mapping[Key, int]]
    ) -> None:
        self.classes, self.along = classes, along
        self.checks = 0
        self._by_symbol: dict[Symbol, list[_Constraint]] = {}
        recorded: list[RecordedCall | SizeGuard] = [*sizes.calls, *sizes.guards]
        for what in recorded:
            constraint = self._constraint(what)
            for symbol in constraint.symbols:
                self._by_symbol.setdefault(symbol, []).append(constraint)

    def _constraint(self, what: RecordedCall | SizeGuard) -> _Constraint:
        keys: set[Key] = set()
        tensors: dict[int, TensorMeta] = {}
        for source in what.sources:
            keys |= source.keys
            tensors |= {id(tensor): tensor for tensor in source.tensors}
        tensors |= {id(tensor): tensor for tensor in what.tensors}
        numbers: set[int] = set()
        for tensor in tensors.values():
            for dim in self.classes.counts(tensor).values():
                numbers |= set(dim)
        return _Constraint(
            what=what, keys=frozenset(keys), tensors=[*tensors.values()], classes=frozenset(numbers)
        )

    def solve(self, number: int) -> dict[Symbol, int]:
        """Find the smallest change of a label class, with all that must change along.

        Args:
            number: the label class.

        Returns:
            By how much each symbol grows.

        Raises:
            NoSolutionError: there is none.
        """
        if (
            self.classes.all[number].width == 1
        ):  # a single unit shows no dimension: the widened copy will tell
            return self._with_counts({number: 1})
        failure = None
        # In ascending order: the smallest possible change wins.
        for amount in self._amounts(number):
            self.checks = 0
            found, failure = self._complete(self._with_counts({number: amount}))
            if found is not None:
                return found
        assert failure is not None  # a change by one unit is always tried
        raise failure

    def _amounts(self, number: int) -> Iterator[int]:
        """Numbers of units that a change may need: one, or the positions of another class's unit.

        A residual stream of `heads * size` grows by `size` units at a time, for instance.
        """
        yield 1
        sizes: set[int] = set()
        for constraint in self._by_symbol.get(number, ()):
            if self._holds(constraint, {}):
                sizes |= self._positions(constraint)
        # Whole units of the group must be left: the amount divides the width, and isn't all of it.
        width = self.classes.all[number].width
        yield from (size for size in sorted(sizes) if width % size == 0 and 1 < size < width)

    def _positions(self, constraint: _Constraint) -> set[int]:
        """Positions per unit of all regular label classes in a constraint's tensors."""
        sizes: set[int] = set()
        for tensor in constraint.tensors:
            for dim in self.classes.counts(tensor).values():
                sizes |= set(dim.values())
        return sizes - {0}

    def _complete(
        self, change: dict[Symbol, int]
    ) -> tuple[dict[Symbol, int] | None, NoSolutionError | None]:
        """Add what must change along.

        A depth-first search: the first constraint that fails is repaired in each possible way, until all hold.

        Returns:
            The whole change; None, and what stands against it, if nothing helps.
        """
        broken = self._broken(change)
        if broken is None:
            return change, None
        what = broken.what
        failure = NoSolutionError(f"its size is fixed by {broken.name} in {what.place}", what.line)
        for more in self._repairs(broken, change):
            # The search is exponential in the number of symbols.
            if self.checks > MOST_CHECKS:
                break
            found, inner = self._complete({**change, **more})
            if found is not None:
                return found, None
            failure = inner or failure
        return None, failure

    def _broken(self, change: Mapping[Symbol, int]) -> _Constraint | None:
        """First constraint that a change breaks."""
        seen: set[int] = set()
        # In the order of the forward pass: the first obstacle is the one that a message should name.
        for symbol in change:
            for constraint in self._by_symbol.get(symbol, ()):
                if id(constraint) in seen:
                    continue
                seen.add(id(constraint))
                if not self._holds(constraint, change):
                    return constraint
        return None

    def _repairs(
        self, constraint: _Constraint, change: Mapping[Symbol, int]
    ) -> Iterator[dict[Symbol, int]]:
        """Changes of other symbols with which a constraint holds, the fewest first."""
        free = []
        for symbol in constraint.symbols:  # attributes come first: changing one costs no parameters
            refused = isinstance(symbol, int) and self.classes.all[symbol].reason is not None
            if symbol not in change and not refused:
                free.append(symbol)
        amounts = {symbol: self._candidates(constraint, symbol, change) for symbol in free}
        for assignment in _assignments(free, amounts):
            more = self._with_counts(assignment)
            if self._holds(constraint, {**change, **more}):
                yield more

    def _with_counts(self, change: dict[Symbol, int]) -> dict[Symbol, int]:
        """A change with the attributes that are known to follow its label classes."""
        more = dict(change)
        for symbol, amount in change.items():
            if isinstance(symbol, int):
                for key, per_unit in self.along.get(symbol, {}).items():
                    more[key] = amount * per_unit
        return more

    def _candidates(
        self, constraint: _Constraint, symbol: Symbol, change: Mapping[Symbol, int]
    ) -> list[int]:
        """Amounts by which a symbol may have to change, from the sizes in the constraint."""
        sizes: set[int] = set()
        for tensor in constraint.tensors:
            for dim in self.classes.counts(tensor).values():
                size = 0
                for number, count in dim.items():
                    size += count * change.get(number, 0)
                sizes.add(size)
        for other, amount in change.items():
            if other in constraint.classes or other in constraint.keys:
                sizes.add(amount)
        sizes.discard(0)
        positions = self._positions(constraint) | {1}
        # A symbol may count units that own several positions, or positions of units.
        whole = {size // count for size in sizes for count in positions if size % count == 0}
        if not isinstance(symbol, int):
            return sorted(sizes | whole)
        whole |= {size * count for size in sizes for count in positions}
        width = self.classes.all[symbol].width
        return [amount for amount in sorted(whole) if amount and width % amount == 0]

    def _holds(self, constraint: _Constraint, change: Mapping[Symbol, int]) -> bool:
        # Many changes of the search agree in the few symbols that one constraint depends on.
        key = tuple(change.get(symbol, 0) for symbol in constraint.symbols)
        if key not in constraint.cache:
            self.checks += 1
            holds = _is_met(constraint.what, SizeChange(classes=self.classes, by=change))
            # One that fails at the sizes of now isn't replayed faithfully; the widened copy will tell.
            if not holds and any(key):
                holds = not self._holds(constraint, {})
            constraint.cache[key] = holds
        return constraint.cache[key]


def _is_met(what: RecordedCall | SizeGuard, sizes: SizeChange) -> bool:
    """True if a comparison or a call comes out right at other sizes."""
    try:
        return _compares(what, sizes) if isinstance(what, SizeGuard) else _replays(what, sizes)
    except _IrregularError:
        return False


def _assignments(
    free: list[Symbol], amounts: Mapping[Symbol, list[int]]
) -> Iterator[dict[Symbol, int]]:
    """Changes of one symbol, then two, then three; no model of the tests needs more."""
    for count in (1, 2, 3):
        for chosen in combinations(free, count):
            for values in product(*(amounts[symbol] for symbol in chosen)):
                yield dict(zip(chosen, values, strict=True))


def _compares(guard: SizeGuard, sizes: SizeChange) -> bool:
    """True if a comparison comes out the same at other sizes."""
    try:
        left, right = guard.left.new(sizes), guard.right.new(sizes)
        return guard.compare(left, right) == guard.outcome
    except ZeroDivisionError:
        return False


def _replays(call: RecordedCall, sizes: SizeChange) -> bool:
    """True if a call at other sizes returns tensors of the sizes that the labels say."""
    returned = None
    if getattr(call.function, "__name__", "") in _SLOW_WITHOUT_DATA:
        try:
            returned = _returned(call, sizes, "cpu")
        except _WrongSizesError:
            return False
    if returned is None:  # without data, even large tensors cost nothing
        with suppress(_WrongSizesError):
            returned = _returned(call, sizes, "meta")
    # Sizes along which no unit lies must come out as they were, too.
    return returned == [sizes.shape(tensor) for tensor in call.results]


_SLOW_WITHOUT_DATA = frozenset(
    (
        *("layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm"),
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
        *("multi_head_attention_forward", "scaled_dot_product_attention"),
        *("linear", "bilinear", "matmul", "mm", "bmm", "addmm", "baddbmm"),
    )
)
"""Functions that torch carries out in Python on tensors without data, which takes many times as long as on small real
ones. None of them draws random numbers (dropout is off) or depends on entries."""

_SMALL = 1 << 16


def _returned(call: RecordedCall, sizes: SizeChange, device: str) -> list[list[int]] | None:
    """Sizes of the tensors that a call returns at other sizes; None if it has too much to compute, or no code there.

    Raises:
        _WrongSizesError: it doesn't take these sizes.
    """
    entries = 0

    def resized(leaf: Any) -> Any:
        nonlocal entries
        if isinstance(leaf, TensorMeta):
            shape = sizes.shape(leaf)
            entries += math.prod(shape)
            on = device if entries <= _SMALL else "meta"
            return torch.zeros(shape, dtype=leaf.dtype, device=on)
        if isinstance(leaf, IntSource):
            return leaf.new(sizes)
        # An explicit device (`torch.zeros(..., device=x.device)`) would make real tensors among those without data.
        return torch.device(device) if isinstance(leaf, torch.device) else leaf

    try:
        args, kwargs = pytree.tree_map(resized, (call.args, call.kwargs))
        with torch.no_grad(), torch.device(device):
            result = call.function(*args, **kwargs)
    except _IrregularError:
        raise
    except Exception as error:  # whatever the function says against these sizes
        if entries > _SMALL or "not implemented" in str(
            error
        ):  # then it may say nothing about them
            return None
        raise _WrongSizesError from error
    return [list(leaf.shape) for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
