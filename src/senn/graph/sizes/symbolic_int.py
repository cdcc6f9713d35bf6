"""Python integers that remember where they come from: attributes of modules, and sizes of labeled tensors.

Labels follow tensors, but a forward's own code computes sizes with Python integers. While it runs, the integer
attributes of modules and the sizes of tensors are replaced by `SymbolicInt`s, which carry an expression through
arithmetic and comparison. Calls that take one are recorded (`RecordedCall`), comparisons too (`SizeGuard`); `solver`
replays both at other sizes. Operations see plain integers, and nothing of this is left after the run.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from senn.graph.tracing.trace_recorder import TraceRecorder

Key = tuple[str, str, int | None]
"""An attribute: module, name, item of a tuple (None for a plain integer)."""

# Attributes that never count units. Whatever is missing here is only followed in vain: it costs replays in the solver.
_NEVER_COUNTS = frozenset(
    (
        *("kernel_size", "stride", "padding", "dilation", "output_padding", "dim", "axis", "start_dim", "end_dim"),
        *("padding_idx", "num_layers", "layer_idx", "training", "upscale_factor", "downscale_factor"),
    )
)


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


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorMeta:
    """A tensor without its data.

    Attributes:
        shape: its shape in the traced pass.
        dtype: its dtype.
        label_maps: its label maps; none for a parameter or buffer.
        name: full name of the parameter or buffer; None if it is another tensor.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    label_maps: list[Tensor]
    name: str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class IntSource:
    """Origin of an integer.

    Attributes:
        value: its value in the traced pass.
        new: its value at other sizes.
        keys: attributes that it depends on.
        tensors: tensors whose sizes it depends on.
    """

    value: int
    new: Expression
    keys: frozenset[Key] = frozenset()
    tensors: tuple[TensorMeta, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedCall:
    """A call of a torch function with a symbolic integer among its arguments.

    Attributes:
        function: the function.
        args: its positional arguments, tensors as `TensorMeta` and symbolic integers as `IntSource`.
        kwargs: its keyword arguments, likewise.
        results: the tensors that it returned.
        place: the module that called it, for messages.
    """

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[TensorMeta]
    place: str

    @property
    def sources(self) -> list[IntSource]:
        """Symbolic integers among the arguments."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, IntSource)]

    @property
    def tensors(self) -> list[TensorMeta]:
        """Tensors among the arguments, then those returned."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return [*(leaf for leaf in leaves if isinstance(leaf, TensorMeta)), *self.results]


@dataclass(frozen=True, kw_only=True, eq=False)
class SizeGuard:
    """A comparison that the forward made; at other sizes it must come out the same.

    Attributes:
        compare: the comparison.
        left: its left operand.
        right: its right operand.
        outcome: its result in the traced pass.
        place: the module that made it, for messages.
    """

    compare: Callable[[int, int], bool]
    left: IntSource
    right: IntSource
    outcome: bool
    place: str

    @property
    def sources(self) -> list[IntSource]:
        """Both operands."""
        return [self.left, self.right]

    @property
    def tensors(self) -> list[TensorMeta]:
        """No tensors but those that the operands depend on."""
        return []


class SymbolicInt(int):
    """An integer that knows its origin. Copies and pickles of it are plain integers."""

    source: IntSource
    tracker: SizeTracker

    def __new__(cls, source: IntSource, tracker: SizeTracker) -> SymbolicInt:
        """Create an integer of the source's value."""
        number = super().__new__(cls, source.value)
        number.source, number.tracker = source, tracker
        return number

    __hash__ = int.__hash__  # Python drops it from a class that defines `__eq__`, as this one does below

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
    return IntSource(value=constant, new=lambda _: constant)


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
            keys=a.keys | b.keys,
            tensors=(*a.tensors, *b.tensors),
        )
        return SymbolicInt(source, self.tracker)

    return method


def _comparison(name: str, compare: Callable[[int, int], bool]) -> Any:
    plain = getattr(int, name)

    def method(self: SymbolicInt, other: Any) -> Any:
        right = _source_of(other)
        if right is None:
            return plain(int(self), other)
        outcome = plain(int(self), int(other))
        place = self.tracker.trace.place
        self.tracker.guard(SizeGuard(compare=compare, left=self.source, right=right, outcome=outcome, place=place))
        return outcome

    return method


for _name in ("add", "mul", "sub", "floordiv", "mod"):
    _compute = getattr(operator, _name)
    setattr(SymbolicInt, f"__{_name}__", _arithmetic(f"__{_name}__", _compute, swapped=False))
    setattr(SymbolicInt, f"__r{_name}__", _arithmetic(f"__r{_name}__", _compute, swapped=True))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(SymbolicInt, f"__{_name}__", _comparison(f"__{_name}__", getattr(operator, _name)))


class SymbolicShape(tuple):  # type: ignore[type-arg]
    """A shape with symbolic integers in it; `torch.Size` would turn them into plain ones."""

    __slots__ = ()

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


class SizeTracker:
    """The symbolic integers of one forward pass.

    Attributes:
        trace: the recorder of the same pass.
        calls: calls that took one.
        guards: comparisons of them.
        inside: True while a torch function runs, which is replayed as a whole.
    """

    def __init__(self, trace: TraceRecorder) -> None:
        self.trace = trace
        self.calls: list[RecordedCall] = []
        self.guards: list[SizeGuard] = []
        self.inside = False
        self._metas: dict[int, TensorMeta] = {}
        self._alive: list[Tensor] = []  # tensors are known by identity, which must not be used again
        self._names = {id(tensor): name for name, tensor in trace.tensors.items()}

    def guard(self, guard: SizeGuard) -> None:
        """Record a comparison, unless it is constant or belongs to a function that is replayed as a whole."""
        depends = any(source.keys or source.tensors for source in guard.sources)
        if depends and not self.inside:
            self.guards.append(guard)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Replace the integer attributes of all modules, and record the forward's calls."""
        replaced: list[tuple[dict[str, Any], str, Any]] = []
        try:
            for name, module in self.trace.model.named_modules():
                # `vars` and not `setattr`: modules may have a `__setattr__` of their own.
                attributes = vars(module)
                for key, value in list(attributes.items()):
                    symbolic = self._symbolic(name, key, value)
                    if symbolic is None:
                        continue
                    replaced.append((attributes, key, value))
                    attributes[key] = symbolic
            with _Functions(self):
                yield
        finally:
            for attributes, key, value in replaced:
                attributes[key] = value

    def _symbolic(self, module: str, name: str, value: Any) -> Any:
        """An attribute's value with symbolic integers in it; None if it has none that could count units."""
        if name.startswith("_") or name in _NEVER_COUNTS:
            return None
        lowest = 2 if name == "groups" else 1  # one group is no grouping
        if type(value) is int and value >= lowest:
            return self._attribute((module, name, None), value)
        if type(value) is tuple and value and all(type(item) is int and item > 0 for item in value):
            return tuple(self._attribute((module, name, place), item) for place, item in enumerate(value))
        return None

    def _attribute(self, key: Key, value: int) -> SymbolicInt:
        source = IntSource(value=value, new=lambda sizes: sizes.attribute(key, value), keys=frozenset([key]))
        return SymbolicInt(source, self)

    def size(self, tensor: Tensor, dim: int) -> int:
        """Return the size of a tensor's dimension as a symbolic integer.

        Args:
            tensor: any tensor; one without units may get some later (`TraceRecorder.backfill_labels`).
            dim: the dimension.
        """
        meta, place = self.meta(tensor), dim % tensor.dim()
        source = IntSource(value=meta.shape[place], new=lambda sizes: sizes.size(meta, place), tensors=(meta,))
        return SymbolicInt(source, self)

    def meta(self, tensor: Tensor) -> TensorMeta:
        """Return the record of a tensor; its label maps are shared with the recorder, which may complete them."""
        key = id(tensor)
        if key not in self._metas:
            name = self._names.get(key)
            is_weight = name is not None or self.trace.weight_of(tensor) is not None
            label_maps = [] if is_weight else self.trace.labels_of(tensor)
            shape = tuple(tensor.shape)
            self._metas[key] = TensorMeta(shape=shape, dtype=tensor.dtype, label_maps=label_maps, name=name)
            self._alive.append(tensor)
        return self._metas[key]

    def note(self, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Record a call, if there is a symbolic integer among its arguments.

        Args:
            function: the torch function.
            args: its positional arguments.
            kwargs: its keyword arguments.
            result: its return value.
        """
        if not any(isinstance(leaf, SymbolicInt) for leaf in pytree.tree_leaves((args, kwargs))):
            return
        results = [self.meta(leaf) for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        if not results:  # nothing to check a replay by
            return

        def without_data(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                return self.meta(leaf)
            return leaf.source if isinstance(leaf, SymbolicInt) else leaf

        args, kwargs = pytree.tree_map(without_data, (_with_tuples(args), _with_tuples(kwargs)))
        self.calls.append(
            RecordedCall(function=function, args=args, kwargs=kwargs, results=results, place=self.trace.place)
        )


def _with_tuples(tree: Any) -> Any:
    """Replace shapes by tuples: a pytree takes them for leaves."""
    if isinstance(tree, SymbolicShape | torch.Size):
        return tuple(tree)
    if isinstance(tree, tuple | list) and not hasattr(tree, "_fields"):
        return type(tree)(_with_tuples(item) for item in tree)
    if type(tree) is dict:
        return {key: _with_tuples(item) for key, item in tree.items()}
    return tree


class _Functions(TorchFunctionMode):
    """Passes every torch call of the forward's own code to a tracker, and makes shapes symbolic."""

    def __init__(self, tracker: SizeTracker) -> None:
        super().__init__()
        self.tracker = tracker

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tracker, kwargs = self.tracker, kwargs or {}
        if func == _SHAPE or func is Tensor.size:
            dim = args[1] if len(args) > 1 and func is Tensor.size else kwargs.get("dim")
            if dim is not None:
                return tracker.size(args[0], int(dim))
            return SymbolicShape(tracker.size(args[0], place) for place in range(args[0].dim()))
        trace = tracker.trace
        # The mode is off while `func` runs: what it calls is replayed with it, as one call.
        before = trace.function, tracker.inside
        trace.function, tracker.inside = getattr(func, "__name__", ""), True
        try:
            result = func(*args, **kwargs)
        finally:
            trace.function, tracker.inside = before
        tracker.note(func, args, kwargs, result)
        return result


_SHAPE = Tensor.shape.__get__  # type: ignore[attr-defined]
