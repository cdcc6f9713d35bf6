"""Undo log: every exchange that was made in one copy of a model, so that it can be taken back."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from senn.surgery.index_maps import IndexMap


@dataclass(frozen=True, eq=False)
class Resized:
    """Replacement of a Parameter.

    Attributes:
        new: the Parameter in its place.
        layouts: by dimension, where the old entries went.
    """

    new: nn.Parameter
    layouts: Mapping[int, IndexMap]


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
        swaps: (container, key, old, new) for each exchanged entry of a module's dictionaries. Where old and new are one
            object, the module itself will exchange it, and undoing puts the old one back.
        resized: replaced Parameters, by the old one.
        inserted: new layers, in the order of the moves.
        uncalibrated: normalizations with new channels whose running statistics are still 0 and 1, and the positions of
            these channels.
    """

    swaps: list[tuple[MutableMapping[str, Any], str, Any, Any]] = field(default_factory=list)
    resized: dict[nn.Parameter, Resized] = field(default_factory=dict)
    inserted: list[Inserted] = field(default_factory=list)
    uncalibrated: list[tuple[nn.Module, Tensor]] = field(default_factory=list)

    def now(self, parameter: nn.Parameter) -> nn.Parameter:
        """Return the parameter that replaces another one, or that one itself."""
        return self.resized[parameter].new if parameter in self.resized else parameter

    def commit(self) -> None:
        """Put every new object in its place."""
        # Entries of dictionaries, not `setattr`, which a module's class may intercept.
        for container, key, _, new in self.swaps:
            container[key] = new

    def undo(self) -> None:
        """Put every old object back in its place."""
        # Backwards: an entry may be exchanged twice, and then the first old object is the original.
        for container, key, old, _ in reversed(self.swaps):
            container[key] = old

    def in_place(self) -> bool:
        """Return True if every new object still stands where it was put."""
        for container, key, old, new in self.swaps:
            if old is not new and not _is_held(container.get(key), new):
                return False
        return True


def _is_held(held: Any, new: Any) -> bool:
    """Compare numbers and tuples by value, lists item by item, and everything else by identity."""
    if isinstance(new, list):
        is_list = isinstance(held, list) and len(held) == len(new)
        return is_list and all(map(_is_held, held, new))
    # Numbers may have been computed anew, to the same value.
    if isinstance(new, int | float | tuple):
        return bool(held == new)
    return held is new
