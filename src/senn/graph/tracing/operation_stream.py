"""What a forward pass did, in order, to tell whether another one did anything else.

Training mode runs the same operations as evaluation mode in many models, once dropout is out of the way. To follow
labels through them again would show nothing new, and costs many times what the pass itself does.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from senn.graph.sizes.symbolic_int import SymbolicInt
from senn.graph.tracing.recorded import Call


class OperationStream:
    """All operations of one pass, the torch functions and comparisons of sizes of its Python code, and the modules run.

    Two passes of one model are alike if their streams are equal: every operation with the same numbers and the same
    tensors, which are parameters, results of earlier operations, or others with the same entries.

    Args:
        names: full names of parameters and buffers, by identity.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = names
        self._events: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._counters: set[int] = set()
        self._alive: list[Tensor] = []  # known by identity, which must not be used again

    def __eq__(self, other: object) -> bool:
        """Return True if both passes did the same."""
        try:
            return isinstance(other, OperationStream) and self._events == other._events
        except Exception:  # some argument that can't be compared
            return False

    __hash__ = None  # type: ignore[assignment]

    def note(self, *event: Any) -> None:
        """Add an event.

        Args:
            event: what tells it apart, without tensors.
        """
        self._events.append(event)

    def note_operation(self, call: Call, function: str | None) -> None:
        """Add an operation.

        Args:
            call: the operation, already executed.
            function: name of the torch function that it is a part of.
        """
        if self._counts_up(call):
            self._counters.add(id(call.args[0]))
            return
        given = self.key((call.args, call.kwargs))
        self.note(call.func, function, given, self._made(call.result))

    def _counts_up(self, call: Call) -> bool:
        """Return True for a buffer of one number that is written to, as `num_batches_tracked` is: it has no units."""
        if not call.func._schema.is_mutable or len(call.tensors) != 1:
            return False
        (target,) = call.tensors
        return not target.dim() and target is call.args[0] and id(target) in self._names

    def _made(self, result: Any) -> Any:
        """Number the tensors that an operation gives."""
        if isinstance(result, list | tuple):
            return tuple(self._made(item) for item in result)
        if isinstance(result, Tensor) and not self._is_known(result):
            self._number(result)
            return result.shape, result.dtype
        return self.key(result)

    def key(self, value: Any) -> Hashable:
        """Return what tells an argument apart.

        Args:
            value: a tensor, a nesting of tensors, or anything else.
        """
        if isinstance(value, Tensor):
            return self.number(value)
        if isinstance(value, list | tuple):
            return type(value).__name__, *map(self.key, value)
        if isinstance(value, dict):
            return tuple((name, self.key(item)) for name, item in value.items())
        # A size by how it is computed: that two are equal now doesn't make them one.
        return type(value), value.source.key if isinstance(value, SymbolicInt) else value

    def number(self, tensor: Tensor) -> Hashable:
        """Return what tells a tensor apart: a name, or a number in order of appearance.

        Args:
            tensor: any tensor; of one that no operation has made, the entries are kept to be compared.
        """
        key = id(tensor)
        if key in self._names:
            return self._names[key], key in self._counters
        if not self._is_known(tensor):
            self._number(tensor)
            self.note("given", _Entries(tensor))
        return self._numbers[key]

    def _is_known(self, tensor: Tensor) -> bool:
        return id(tensor) in self._numbers or id(tensor) in self._names

    def _number(self, tensor: Tensor) -> None:
        self._numbers[id(tensor)] = len(self._numbers)
        self._alive.append(tensor)


class _Entries:
    """Entries of a tensor as they are now, to be compared."""

    def __init__(self, tensor: Tensor) -> None:
        self.values = tensor.detach().clone()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Entries):
            return False
        mine, its = self.values, other.values
        alike = mine.shape == its.shape and mine.dtype == its.dtype and mine.device == its.device
        return alike and torch.equal(mine, its)

    __hash__ = None  # type: ignore[assignment]
