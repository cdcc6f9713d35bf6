"""Undo log: every exchange that was made in one copy of a model, so that it can be taken back."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from senn.surgery.index_maps import IndexMap
from senn.surgery.tensor_data import Data, outdate_graphs

Swap = tuple[MutableMapping[str, Any], str, Any, Any]
"""(container, key, old, new): exchange of an entry of an object's dictionary."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Resized:
    """Exchange of a tensor's data.

    Attributes:
        name: full name of the tensor.
        layouts: by dimension, where the old entries went.
        old: what it held before.
        new: what it holds since.
    """

    name: str
    layouts: Mapping[int, IndexMap]
    old: Data
    new: Data


@dataclass(frozen=True, eq=False, kw_only=True)
class Inserted:
    """Layer that was put before a linear map or after a block.

    Attributes:
        insertion_point: name of the map or block.
        modules: the new modules.
        neighbors: for each of their parameters, in order, the existing one whose optimizer group it should join: the
            map's weight, or the block's parameter of the same name.
        after: True after a block; in a group, the parameters then follow the block's.
    """

    insertion_point: str
    modules: tuple[nn.Module, ...]
    neighbors: Mapping[nn.Parameter, nn.Parameter]
    after: bool

    @property
    def what(self) -> str:
        """Description of the place, to be continued in an error message."""
        return (
            f"put after '{self.insertion_point}'"
            if self.after
            else f"inserted before '{self.insertion_point}'"
        )


@dataclass(eq=False)
class UndoLog:
    """Record of what was done to one copy of a model, and the way back.

    Attributes:
        model: the copy.
        swaps: (container, key, old, new) for each exchanged entry of a module's dictionaries.
        resized: Parameters and buffers that get other data; they stay the same objects.
        inserted: new layers, in the order of the moves.
        uncalibrated: normalizations with new channels whose running statistics are still 0 and 1, and the positions of
            these channels.
        finished: True once graphs from before the change are outdated.
    """

    model: nn.Module
    swaps: list[Swap] = field(default_factory=list)
    resized: dict[Tensor, Resized] = field(default_factory=dict)
    inserted: list[Inserted] = field(default_factory=list)
    uncalibrated: list[tuple[nn.Module, Tensor]] = field(default_factory=list)
    finished: bool = False

    def commit(self) -> None:
        """Put every new object and all new data in their places."""
        for tensor, change in self.resized.items():
            change.new.put_into(tensor)
        # Entries of dictionaries, not `setattr`, which a module's class may intercept.
        for container, key, _, new in self.swaps:
            container[key] = new

    def exchange(self, swaps: Sequence[Swap]) -> None:
        """Record more exchanges of entries, and make them."""
        self.swaps += swaps
        for container, key, _, new in swaps:
            container[key] = new

    def finish(self) -> None:
        """Outdate what was made of the former tensors, once it is certain that the change stays."""
        # Not in `commit`: whoever holds a gradient accumulator (DistributedDataParallel does) loses it here, which a
        # rollback couldn't make good.
        self.finished = True
        for tensor, change in self.resized.items():
            outdate_graphs(tensor, change.name)
        for module in self.model.modules():
            # Recurrent layers on a GPU keep their weights side by side in one block of memory.
            if isinstance(module, nn.RNNBase) and not self.resized.keys().isdisjoint(
                module._parameters.values()
            ):
                module.flatten_parameters()

    def undo(self) -> None:
        """Put every old object and all old data back in their places."""
        # Backwards: an entry may be exchanged twice, and then the first old object is the original.
        for container, key, old, _ in reversed(self.swaps):
            container[key] = old
        for tensor, change in self.resized.items():
            change.old.put_into(tensor)
            if self.finished:
                outdate_graphs(tensor, change.name)

    def in_place(self) -> bool:
        """Return True if every new object still stands where it was put, and every tensor is as it was resized."""
        held = {*self.model.parameters(), *self.model.buffers()}
        return all(
            tensor in held and change.new.is_like(tensor) for tensor, change in self.resized.items()
        ) and all(_is_held(container.get(key), new) for container, key, _, new in self.swaps)


def _is_held(held: Any, new: Any) -> bool:
    """Compare numbers and tuples by value, lists item by item, and everything else by identity."""
    if isinstance(new, list):
        is_list = isinstance(held, list) and len(held) == len(new)
        return is_list and all(map(_is_held, held, new))
    # Numbers may have been computed anew, to the same value.
    if isinstance(new, int | float | tuple):
        return bool(held == new)
    return held is new
