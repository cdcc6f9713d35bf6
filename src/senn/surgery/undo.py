"""The record of what was done to one copy of a model, from which it can be taken back."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from senn.surgery.index_maps import IndexMap


@dataclass(frozen=True, eq=False)
class Resized:
    """The Parameter that took another's place, and where the entries went."""

    new: nn.Parameter
    layouts: Mapping[int, IndexMap]


@dataclass(frozen=True, eq=False, kw_only=True)
class Inserted:
    """A layer that was put before a linear map, or after a block.

    Attributes:
        insertion_point: the map's or block's name.
        modules: the new modules.
        beside: the layer's parameters in order, each once, and the one that each belongs beside: the map's weight, or
            of a block the one of the same name.
        after: whether they stand after those of the group, or before.
    """

    insertion_point: str
    modules: tuple[nn.Module, ...]
    beside: Mapping[nn.Parameter, nn.Parameter]
    after: bool

    @property
    def what(self) -> str:
        """For sentences."""
        return f"put after '{self.insertion_point}'" if self.after else f"inserted before '{self.insertion_point}'"


@dataclass(eq=False)
class UndoLog:
    """What was done to one copy of a model, and how to take it back.

    Attributes:
        swaps: (container, key, old, new) for every entry of a module's dictionaries that was exchanged; the old one
            twice where the module itself exchanges it.
        resized: by old Parameter.
        inserted: in the order of the moves.
        uncalibrated: normalisations with new channels whose running statistics are still neutral, and where.
    """

    swaps: list[tuple[MutableMapping[str, Any], str, Any, Any]] = field(default_factory=list)
    resized: dict[nn.Parameter, Resized] = field(default_factory=dict)
    inserted: list[Inserted] = field(default_factory=list)
    uncalibrated: list[tuple[nn.Module, Tensor]] = field(default_factory=list)

    def now(self, parameter: nn.Parameter) -> nn.Parameter:
        """The parameter that takes another's place, or that one itself."""
        return self.resized[parameter].new if parameter in self.resized else parameter

    def commit(self) -> None:
        """Put every new object in its place."""
        for container, key, _, new in self.swaps:
            container[key] = new

    def undo(self) -> None:
        """Put every old object back in its place."""
        for container, key, old, _ in reversed(self.swaps):
            container[key] = old

    def in_place(self) -> bool:
        """Whether every new object still stands where it was put."""
        return all(old is new or _stands(container.get(key), new) for container, key, old, new in self.swaps)


def _stands(held: Any, new: Any) -> bool:
    """Whether what is held is what was put there: numbers are equal, lists hold the same, anything else is the same."""
    if isinstance(new, list):
        return isinstance(held, list) and len(held) == len(new) and all(map(_stands, held, new))
    return bool(held == new) if isinstance(new, int | float | tuple) else held is new
