"""Track the symbolic integers of one forward pass.

They stand in for the attributes of modules and the sizes of tensors while the forward runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from senn.graph.sizes.symbolic_int import (
    Compare,
    IntSource,
    Key,
    SizeGuard,
    SymbolicInt,
    SymbolicShape,
    TensorMeta,
)
from senn.graph.source_lines import running_line
from senn.graph.tracing.trace_recorder import TraceRecorder

# Attributes that never count units. Whatever is missing here is only followed in vain: it costs replays in the solver.
_NEVER_COUNTS = frozenset(
    (
        *(
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "output_padding",
            "dim",
            "axis",
            "start_dim",
            "end_dim",
        ),
        *(
            "padding_idx",
            "num_layers",
            "layer_idx",
            "training",
            "upscale_factor",
            "downscale_factor",
        ),
    )
)


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedCall:
    """A call of a torch function with a symbolic integer among its arguments.

    Attributes:
        function: the function.
        args: its positional arguments, tensors as `TensorMeta` and symbolic integers as `IntSource`.
        kwargs: its keyword arguments, likewise.
        results: the tensors that it returned.
        place: the module that called it, for messages.
        line: line of the forward's code that did.
    """

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[TensorMeta]
    place: str
    line: str

    @property
    def sources(self) -> list[IntSource]:
        """Symbolic integers among the arguments."""
        return [
            leaf
            for leaf in pytree.tree_leaves((self.args, self.kwargs))
            if isinstance(leaf, IntSource)
        ]

    @property
    def tensors(self) -> list[TensorMeta]:
        """Tensors among the arguments, then those returned."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return [*(leaf for leaf in leaves if isinstance(leaf, TensorMeta)), *self.results]


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
        self._alive: list[
            Tensor
        ] = []  # tensors are known by identity, which must not be used again
        self._names = {id(tensor): name for name, tensor in trace.tensors.items()}

    def _note_comparison(
        self, compare: Compare, left: IntSource, right: IntSource, outcome: bool
    ) -> None:
        """Record a comparison, unless it belongs to a function that is replayed as a whole."""
        if self.inside:
            return
        self.trace.stream.note(compare, left.key, right.key, outcome)
        if self.trace.streams_only:
            return
        guard = SizeGuard(
            compare=compare,
            left=left,
            right=right,
            outcome=outcome,
            place=self.trace.place,
            line=running_line(),
        )
        self.guards.append(guard)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Replace the integer attributes of all modules, and record the forward's calls."""
        replaced = []
        for name, module in self.trace.model.named_modules():
            for key, value in vars(module).items():
                symbolic = self._symbolic(name, key, value)
                if symbolic is not None:
                    replaced.append((vars(module), key, value, symbolic))
        try:
            # Into the dictionary and not by `setattr`: modules may have a `__setattr__` of their own.
            for attributes, key, _, symbolic in replaced:
                attributes[key] = symbolic
            with _Functions(self):
                yield
        finally:
            for attributes, key, value, _ in replaced:
                attributes[key] = value

    def _symbolic(self, module: str, name: str, value: Any) -> Any:
        """An attribute's value made symbolic; None if no integer in it could count units."""
        if name in _NEVER_COUNTS:
            return None
        # `type(...) is int`: neither bools nor members of an enumeration count units.
        lowest = 2 if name == "groups" else 1  # one group is no grouping
        if type(value) is int and value >= lowest:
            return self._attribute((module, name, None), value)
        # Sizes such as `normalized_shape`.
        if type(value) is tuple and value and all(type(item) is int and item > 0 for item in value):
            items = [
                self._attribute((module, name, place), item) for place, item in enumerate(value)
            ]
            return tuple(items)
        return None

    def _attribute(self, key: Key, value: int) -> SymbolicInt:
        source = IntSource(
            value=value,
            new=lambda sizes: sizes.attribute(key, value),
            key=hash(("attribute", key)),
            keys=frozenset([key]),
        )
        return SymbolicInt(source, self._note_comparison)

    def size(self, tensor: Tensor, dim: int) -> int:
        """Return the size of a tensor's dimension as a symbolic integer.

        Args:
            tensor: any tensor; one without units may get some later (`TraceRecorder.backfill_labels`).
            dim: the dimension.
        """
        meta, place = self.meta(tensor), dim % tensor.dim()
        source = IntSource(
            value=meta.shape[place],
            new=lambda sizes: sizes.size(meta, place),
            key=hash(("size", self.trace.stream.number(tensor), place)),
            tensors=(meta,),
        )
        return SymbolicInt(source, self._note_comparison)

    def meta(self, tensor: Tensor) -> TensorMeta:
        """Return the record of a tensor; it shares its label maps with the recorder."""
        key = id(tensor)
        if key not in self._metas:
            with self.trace.paused():
                self._metas[key] = self._new_meta(tensor)
            self._alive.append(tensor)
        return self._metas[key]

    def _new_meta(self, tensor: Tensor) -> TensorMeta:
        if self.trace.streams_only:
            shape = tuple(tensor.shape)
            return TensorMeta(shape=shape, dtype=tensor.dtype, label_maps=[], name=None)
        name, view = self._names.get(id(tensor)), self.trace.weight_of(tensor)
        # Weights have sizes by name: their entries must not get labels for being measured.
        is_weight = name is not None or view is not None
        return TensorMeta(
            shape=tuple(tensor.shape),
            dtype=tensor.dtype,
            label_maps=[] if is_weight else self.trace.labels_of(tensor),
            name=name,
            view=view,
        )

    def note_call(self, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Record a call, if there is a symbolic integer among its arguments.

        Args:
            function: the torch function.
            args: its positional arguments.
            kwargs: its keyword arguments.
            result: its return value.
        """
        if not (_holds_sizes(args) or _holds_sizes(kwargs)):
            return
        results = [
            self.meta(leaf) for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)
        ]
        if not results:  # nothing to check a replay by
            return
        self.trace.stream.note(function, self.trace.stream.key((args, kwargs)))
        if self.trace.streams_only:
            return

        def without_data(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                return self.meta(leaf)
            return leaf.source if isinstance(leaf, SymbolicInt) else leaf

        args, kwargs = pytree.tree_map(without_data, (_with_tuples(args), _with_tuples(kwargs)))
        call = RecordedCall(
            function=function,
            args=args,
            kwargs=kwargs,
            results=results,
            place=self.trace.place,
            line=running_line(),
        )
        self.calls.append(call)


def _holds_sizes(tree: Any) -> bool:
    """Return True if there is a symbolic integer among arguments, other than in a whole shape."""
    if isinstance(tree, list | tuple) and not isinstance(tree, SymbolicShape):
        return any(map(_holds_sizes, tree))
    if isinstance(tree, dict):
        return any(map(_holds_sizes, tree.values()))
    return isinstance(tree, SymbolicInt)


def _with_tuples(tree: Any) -> Any:
    """Replace shapes by tuples: a pytree takes them for leaves."""
    if isinstance(tree, SymbolicShape | torch.Size):
        return tuple(tree)
    # Named tuples need their fields one by one, and are pytrees already.
    if isinstance(tree, tuple | list) and not hasattr(tree, "_fields"):
        return type(tree)(_with_tuples(item) for item in tree)
    if type(tree) is dict:
        return {key: _with_tuples(item) for key, item in tree.items()}
    return tree


class _Functions(TorchFunctionMode):
    """Passes the forward's torch calls to a tracker, and makes shapes symbolic."""

    def __init__(self, tracker: SizeTracker) -> None:
        super().__init__()
        self.tracker = tracker

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tracker = self.tracker
        args, kwargs = _as_evaluated(func, args, kwargs or {})
        if func is Tensor.size and (len(args) > 1 or kwargs.get("dim") is not None):
            dim = args[1] if len(args) > 1 else kwargs["dim"]
            return tracker.size(args[0], int(dim))
        if func == _SHAPE or func is Tensor.size:
            return SymbolicShape(tracker.size(args[0], dim) for dim in range(args[0].dim()))
        trace = tracker.trace
        # The mode is off while `func` runs: what it calls is replayed with it, as one call.
        before = trace.function, tracker.inside
        trace.function, tracker.inside = getattr(func, "__name__", ""), True
        try:
            result = func(*args, **kwargs)
        finally:
            trace.function, tracker.inside = before
        tracker.note_call(func, args, kwargs, result)
        return result


def _as_evaluated(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Turn dropout and statistics of the batch off in a call, which change what a unit is and not whose it is.

    Entries that are zeroed at random still belong to their units. The mask itself would be a tensor without units, and
    a sum through it no longer linear.
    """
    name = getattr(func, "__name__", "")
    if name == "scaled_dot_product_attention":
        if "dropout_p" in kwargs:
            kwargs = {**kwargs, "dropout_p": 0.0}
        return (*args[:4], *(0.0 for _ in args[4:5]), *args[5:]), kwargs
    if name == "batch_norm" and all(isinstance(one, Tensor) for one in args[1:3]):
        # With statistics of its own it does the same to units in both modes; without, only those of a batch are there.
        return args, {**kwargs, "training": False} if kwargs.get("training") else kwargs
    if name not in _WITH_DROPOUT:
        return args, kwargs
    if "training" in kwargs:  # as the functions of torch.nn.functional pass it on
        return args, {**kwargs, "training": False}
    if len(args) == 3 and isinstance(args[2], bool):  # torch.dropout(input, p, train)
        return (*args[:2], False), kwargs
    return args, {**kwargs, "train": False} if "train" in kwargs else kwargs


_WITH_DROPOUT = frozenset(
    (
        *("dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"),
        *("alpha_dropout", "feature_alpha_dropout", "multi_head_attention_forward"),
    )
)


# The function that a mode sees when code reads `tensor.shape`.
_SHAPE = Tensor.shape.__get__  # type: ignore[attr-defined]
