"""Python integers that remember which attributes and tensor sizes they come from.

Labels follow tensors, but a forward's own code computes sizes with Python integers. While it runs, the integer
attributes of modules and the sizes of tensors are replaced by `SymbolicInt`s, which carry an expression through
arithmetic and comparison. `size_tracker` puts them there, and records the calls that take one and the comparisons;
`solver` replays both at other sizes. Operations see plain integers, and nothing of this is left after the run.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from senn.graph.tracing.weight_view import WeightView

Key = tuple[str, str, int | None]
"""An attribute: module, name, item of a tuple (None for a plain integer)."""


class SizeAssignment:
    """Sizes of a grown model, which the solver proposes."""

    def attribute(self, key: Key, value: int) -> int:
        """Return the new value of an attribute.

        Args:
            key: the attribute.
            value: its value now.
        """
        raise NotImplementedError

    def size(self, tensor: TensorMeta, dim: int) -> int:
        """Return the new size of one dimension of a tensor.

        Args:
            tensor: the tensor as it was recorded.
            dim: the dimension.
        """
        raise NotImplementedError


Expression = Callable[[SizeAssignment], int]
Compare = Callable[[int, int], bool]
Note = Callable[[Compare, "IntSource", "IntSource", bool], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorMeta:
    """A tensor without its data.

    Attributes:
        shape: its shape in the traced pass.
        dtype: its dtype.
        label_maps: its label maps; none for a parameter or buffer.
        name: full name of the parameter or buffer; None if it is another tensor.
        view: which entries of a parameter it holds; None if it isn't seen as a view of one.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    label_maps: list[Tensor]
    name: str | None
    view: WeightView | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class IntSource:
    """Origin of an integer.

    Attributes:
        value: its value in the traced pass.
        new: its value at other sizes.
        key: equal where integers are computed in the same way.
        keys: attributes that it depends on.
        tensors: tensors whose sizes it depends on.
    """

    value: int
    new: Expression
    key: int
    keys: frozenset[Key] = frozenset()
    tensors: tuple[TensorMeta, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class SizeGuard:
    """A comparison that the forward made; at other sizes it must come out the same.

    Attributes:
        compare: the comparison.
        left: its left operand.
        right: its right operand.
        outcome: its result in the traced pass.
        place: the module that made it, for messages.
        line: line of the forward's code that did.
    """

    compare: Compare
    left: IntSource
    right: IntSource
    outcome: bool
    place: str
    line: str

    @property
    def sources(self) -> list[IntSource]:
        """Both operands."""
        return [self.left, self.right]

    @property
    def tensors(self) -> list[TensorMeta]:
        """No tensors but those that the operands depend on."""
        return []


class SymbolicInt(int):
    """An integer that knows its origin. Copies and pickles of it are plain integers.

    Attributes:
        source: its origin.
        note: called at each comparison: (comparison, left operand, right operand, outcome).
    """

    source: IntSource
    note: Note

    def __new__(cls, source: IntSource, note: Note) -> SymbolicInt:
        """Create an integer of the source's value."""
        number = super().__new__(cls, source.value)
        number.source, number.note = source, note
        return number

    __hash__ = (
        int.__hash__
    )  # Python drops it from a class that defines `__eq__`, as this one does below

    def __reduce__(self) -> Any:
        """Pickle as a plain integer."""
        return int, (int(self),)

    def __copy__(self) -> int:
        """Copy as a plain integer."""
        return int(self)

    def __deepcopy__(self, _memo: Any) -> int:
        """Copy as a plain integer."""
        return int(self)


def _source_of(value: Any) -> IntSource | None:
    """Origin of an operand; None if it isn't an integer."""
    if isinstance(value, SymbolicInt):
        return value.source
    if type(value) is not int:
        return None
    constant = value  # plain integers of the forward stay as they are in a grown model
    return IntSource(value=constant, new=lambda _: constant, key=hash(("constant", constant)))


def _arithmetic(name: str, compute: Callable[[int, int], int], *, swapped: bool) -> Any:
    plain = getattr(int, name)

    def method(self: SymbolicInt, other: Any) -> Any:
        right = _source_of(other)
        if right is None:
            return plain(int(self), other)
        result = plain(int(self), int(other))
        if type(result) is not int:  # NotImplemented
            return result
        a, b = (right, self.source) if swapped else (self.source, right)
        source = IntSource(
            value=result,
            new=lambda sizes: compute(a.new(sizes), b.new(sizes)),
            key=hash((name, a.key, b.key)),
            keys=a.keys | b.keys,
            tensors=(*a.tensors, *b.tensors),
        )
        return SymbolicInt(source, self.note)

    return method


def _comparison(name: str, compare: Compare) -> Any:
    plain = getattr(int, name)

    def method(self: SymbolicInt, other: Any) -> Any:
        right = _source_of(other)
        if right is None:
            return plain(int(self), other)
        outcome = plain(int(self), int(other))
        self.note(compare, self.source, right, outcome)
        return outcome

    return method


# Other operators (true division, power) give plain numbers; a size that goes through them is caught by the proof.
for _name in ("add", "mul", "sub", "floordiv", "mod"):
    _compute = getattr(operator, _name)
    setattr(SymbolicInt, f"__{_name}__", _arithmetic(f"__{_name}__", _compute, swapped=False))
    setattr(SymbolicInt, f"__r{_name}__", _arithmetic(f"__r{_name}__", _compute, swapped=True))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(SymbolicInt, f"__{_name}__", _comparison(f"__{_name}__", getattr(operator, _name)))


class SymbolicShape(tuple):  # type: ignore[type-arg]
    """A shape with symbolic integers in it; `torch.Size` would turn them into plain ones."""

    __slots__ = ()

    # A function that remembers its results by shape (as einops does) would give those of other symbolic integers, or
    # plain ones: no shape is found under another's hash.
    __hash__ = object.__hash__

    def numel(self) -> int:
        """Number of entries."""
        count = 1
        for size in self:
            count = count * size
        return count

    def __getitem__(self, item: Any) -> Any:
        """Return a size, or a shape for a slice."""
        found = super().__getitem__(item)
        return SymbolicShape(found) if isinstance(item, slice) else found
