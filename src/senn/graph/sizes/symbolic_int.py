"""Python integers of a forward pass that remember where they come from: attributes and sizes of labelled tensors.

Labels follow tensors; the sizes that a forward's own code computes with are Python integers. While it runs, integer
attributes of modules and sizes of tensors are replaced by `Number`s, which go through arithmetic and comparison with
their *expression*. Calls that take a `Number` are kept (`Seen`), comparisons too (`Guard`): `coupling` replays both at
other sizes. Operations see plain integers; nothing of this is left after the run.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from senn.graph.tracing.recorder import TraceRecorder

Key = tuple[str, str, int | None]
"""An attribute: module, name, item (None for a plain integer)."""

# Attributes that never count units.
_NEVER = frozenset(
    (
        *("kernel_size", "stride", "padding", "dilation", "output_padding", "dim", "axis", "start_dim", "end_dim"),
        *("padding_idx", "num_layers", "layer_idx", "training", "upscale_factor", "downscale_factor"),
    )
)


class SizeAssignment:
    """Sizes of a grown model: what `coupling` solves for."""

    def attribute(self, key: Key, value: int) -> int:
        """The new value of an attribute."""
        raise NotImplementedError

    def size(self, tensor: TensorMeta, dim: int) -> int:
        """The new size of a tensor's dimension."""
        raise NotImplementedError


Expression = Callable[[SizeAssignment], int]


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorMeta:
    """A tensor as it was seen: its shape and coats, and its name if it is a parameter or buffer."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    label_maps: list[Tensor]
    name: str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class IntSource:
    """Where a number comes from.

    Attributes:
        value: as it was.
        new: its value in another world.
        keys: attributes that it depends on.
        tensors: tensors whose sizes it depends on.
    """

    value: int
    new: Expression
    keys: frozenset[Key] = frozenset()
    tensors: tuple[TensorMeta, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedCall:
    """A call with a number among its arguments; tensors are `Shaped`, numbers `Source`s."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[TensorMeta]
    place: str

    @property
    def sources(self) -> list[IntSource]:
        """The numbers among the arguments."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, IntSource)]

    @property
    def tensors(self) -> list[TensorMeta]:
        """The tensors among the arguments."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, TensorMeta)]


@dataclass(frozen=True, kw_only=True, eq=False)
class SizeGuard:
    """A comparison that the forward made, and how it came out."""

    compare: Callable[[int, int], bool]
    left: IntSource
    right: IntSource
    outcome: bool
    place: str


class SymbolicInt(int):
    """An integer that knows its source."""

    source: IntSource
    watch: Numbers

    def __new__(cls, source: IntSource, watch: Numbers) -> SymbolicInt:
        """A number with the source's value."""
        number = super().__new__(cls, source.value)
        number.source, number.watch = source, watch
        return number

    __hash__ = int.__hash__

    def __reduce__(self) -> Any:
        """Copies are plain integers."""
        return int, (int(self),)

    def __copy__(self) -> int:
        """A plain integer."""
        return int(self)

    def __deepcopy__(self, _memo: Any) -> int:
        """A plain integer."""
        return int(self)


def _source(value: Any) -> IntSource | None:
    if isinstance(value, SymbolicInt):
        return value.source
    return IntSource(value=int(value), new=lambda _, v=int(value): v) if type(value) is int else None  # type: ignore[misc]


def _joined(value: int, new: Expression, *parts: IntSource) -> IntSource:
    keys = frozenset().union(*(part.keys for part in parts))
    return IntSource(value=value, new=new, keys=keys, tensors=tuple(t for part in parts for t in part.tensors))


def _arithmetic(name: str, compute: Callable[[int, int], int], *, swapped: bool) -> Any:
    plain = getattr(int, name)

    def method(self: SymbolicInt, other: Any) -> Any:
        right = _source(other)
        result = plain(int(self), int(other) if right is not None else other)
        if right is None or type(result) is not int:
            return result
        a, b = (right, self.source) if swapped else (self.source, right)
        return SymbolicInt(_joined(result, lambda world: compute(a.new(world), b.new(world)), a, b), self.watch)

    return method


def _comparison(name: str, compare: Callable[[int, int], bool]) -> Any:
    plain = getattr(int, name)

    def method(self: SymbolicInt, other: Any) -> Any:
        right = _source(other)
        outcome = plain(int(self), int(other) if right is not None else other)
        if right is not None and isinstance(outcome, bool):
            self.watch.guard(
                SizeGuard(compare=compare, left=self.source, right=right, outcome=outcome, place=self.watch.place)
            )
        return outcome

    return method


for _name in ("add", "mul", "sub", "floordiv", "mod"):
    _compute = getattr(operator, _name)
    setattr(SymbolicInt, f"__{_name}__", _arithmetic(f"__{_name}__", _compute, swapped=False))
    setattr(SymbolicInt, f"__r{_name}__", _arithmetic(f"__r{_name}__", _compute, swapped=True))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(SymbolicInt, f"__{_name}__", _comparison(f"__{_name}__", getattr(operator, _name)))


class Sizes(tuple):  # type: ignore[type-arg]
    """A shape with numbers in it, in place of `torch.Size`, which keeps plain integers only."""

    __slots__ = ()

    def numel(self) -> int:
        """Number of entries."""
        count = 1
        for size in self:
            count = count * size
        return count

    def __getitem__(self, item: Any) -> Any:
        """Slices are shapes too."""
        found = super().__getitem__(item)
        return Sizes(found) if isinstance(item, slice) else found


class Numbers:
    """The numbers of one forward pass.

    Attributes:
        calls: calls that took a number.
        guards: comparisons of numbers.
        attributes: values of the attributes that were replaced.
    """

    def __init__(self, trace: TraceRecorder) -> None:
        self.trace = trace
        self.calls: list[RecordedCall] = []
        self.guards: list[SizeGuard] = []
        self.attributes: dict[Key, int] = {}
        self.inside = False
        self._shaped: dict[int, TensorMeta] = {}
        self._held: list[Tensor] = []
        self._names = {id(tensor): name for name, tensor in trace.tensors.items()}

    @property
    def place(self) -> str:
        """The module that runs now, for sentences."""
        return self.trace.place

    def guard(self, guard: SizeGuard) -> None:
        """Keep a comparison, unless it depends on nothing or belongs to a function that is replayed as a whole."""
        depends = (guard.left.keys | guard.right.keys) or (guard.left.tensors or guard.right.tensors)
        if not self.inside and depends:
            self.guards.append(guard)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Replace the integer attributes of all modules and follow the forward's calls."""
        replaced: list[tuple[dict[str, Any], str, Any]] = []
        try:
            for name, module in self.trace.model.named_modules():
                for key, value in list(vars(module).items()):
                    if (new := self._numbered(name, key, value)) is not None:
                        replaced.append((vars(module), key, value))
                        vars(module)[key] = new
            with _Functions(self):
                yield
        finally:
            for held, key, value in replaced:
                held[key] = value

    def _numbered(self, module: str, name: str, value: Any) -> Any:
        """The attribute's value with numbers in place of its integers; None if it has none that count units."""
        if name.startswith("_") or name in _NEVER:
            return None
        if type(value) is int and value > (1 if name == "groups" else 0):
            return self._attribute((module, name, None), value)
        if type(value) is tuple and value and all(type(item) is int and item > 0 for item in value):
            return tuple(self._attribute((module, name, place), item) for place, item in enumerate(value))
        return None

    def _attribute(self, key: Key, value: int) -> SymbolicInt:
        self.attributes[key] = value
        return SymbolicInt(
            IntSource(value=value, new=lambda world: world.attribute(key, value), keys=frozenset([key])), self
        )

    def size(self, tensor: Tensor, dim: int) -> int:
        """The size of a tensor's dimension as a number; a tensor without units may turn out to stand for some."""
        size = int(tensor.shape[dim])
        shaped, place = self.shaped(tensor), dim % tensor.dim()
        return SymbolicInt(IntSource(value=size, new=lambda world: world.size(shaped, place), tensors=(shaped,)), self)

    def shaped(self, tensor: Tensor) -> TensorMeta:
        """A record of the tensor; its coats are kept by reference, since they may be completed later."""
        key = id(tensor)
        if key not in self._shaped:
            name = self._names.get(key)
            plain = name is not None or self.trace.weight_of(tensor) is not None
            label_maps = [] if plain else self.trace.labels_of(tensor)
            self._shaped[key] = TensorMeta(
                shape=tuple(tensor.shape), dtype=tensor.dtype, label_maps=label_maps, name=name
            )
            self._held.append(tensor)
        return self._shaped[key]

    def note(self, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Keep a call with a number among its arguments."""
        leaves = pytree.tree_leaves((args, kwargs))
        if not any(isinstance(leaf, SymbolicInt) for leaf in leaves):
            return
        results = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        if not results:
            return

        def kept(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                return self.shaped(leaf)
            return leaf.source if isinstance(leaf, SymbolicInt) else leaf

        args, kwargs = pytree.tree_map(kept, (_plain(args), _plain(kwargs)))
        self.calls.append(
            RecordedCall(
                function=function,
                args=args,
                kwargs=kwargs,
                results=[self.shaped(tensor) for tensor in results],
                place=self.place,
            )
        )


def _plain(tree: Any) -> Any:
    """Shapes as tuples, so that a pytree goes into them."""
    if isinstance(tree, Sizes | torch.Size):
        return tuple(tree)
    if isinstance(tree, tuple | list) and not hasattr(tree, "_fields"):
        return type(tree)(_plain(item) for item in tree)
    return {key: _plain(item) for key, item in tree.items()} if type(tree) is dict else tree


class _Functions(TorchFunctionMode):
    """Shows every call of the forward's own code to `Numbers`."""

    def __init__(self, numbers: Numbers) -> None:
        super().__init__()
        self.numbers = numbers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        numbers, kwargs = self.numbers, kwargs or {}
        if func == _SHAPE:
            return Sizes(numbers.size(args[0], dim) for dim in range(args[0].dim()))
        if func is Tensor.size:
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            if dim is None:
                return Sizes(numbers.size(args[0], place) for place in range(args[0].dim()))
            return numbers.size(args[0], int(dim))
        before = numbers.trace.function, numbers.inside
        numbers.trace.function, numbers.inside = getattr(func, "__name__", ""), True
        try:
            result = func(*args, **kwargs)
        finally:
            numbers.trace.function, numbers.inside = before
        numbers.note(func, args, kwargs, result)
        return result


_SHAPE = Tensor.shape.__get__  # type: ignore[attr-defined]


def hold(model: nn.Module, key: Key) -> Any:
    """The attribute's value in a model, as it is."""
    value = getattr(model.get_submodule(key[0]), key[1])
    return value if key[2] is None else value[key[2]]
