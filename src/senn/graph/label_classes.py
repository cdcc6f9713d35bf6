"""Elements: sets of units that the labels of one forward pass show, and where they lie in the model's tensors.

An element is what labels alone say is one hidden dimension. `coupling` finds which elements only change together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from senn.graph.sizes.symbolic_int import TensorMeta
from senn.graph.tracing.labels import LabelOrigin, distinct, varying
from senn.graph.tracing.recorder import TraceRecorder
from senn.graph.types import Role


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelClassDim:
    """One dimension of one tensor in which units own positions: index is (width, k), ascending along k.

    `normed` says of a consumer that it reads what comes straight from a normalisation of whole units, and only that.
    """

    role: Role
    tensor: str
    dim: int
    index: Tensor
    normed: bool = False


@dataclass(kw_only=True, eq=False)
class LabelClass:
    """Units that one or more maps make.

    Attributes:
        name: the first producer's.
        width: number of units.
        parts: where they lie; producers first.
        reason: why they can't change; None if nothing speaks against it.
    """

    name: str
    width: int
    parts: list[LabelClassDim] = field(default_factory=list)
    reason: str | None = None


class _RefusedError(Exception):
    """The units can't change in number; the message says why."""


class LabelClasses:
    """All elements of a trace.

    Args:
        trace: of the model.
        fixed: weights whose shape must not change, by full name, and why (a verb phrase that follows the name).

    Attributes:
        all: in order of use.
        units: representative of each label's unit.
        element_of: number of each label's element, -1 for none.
    """

    def __init__(self, trace: TraceRecorder, fixed: Mapping[str, str]) -> None:
        self.trace, self.fixed = trace, fixed
        self.units = trace.record.units()
        self.element_of = torch.full_like(self.units, -1)
        self.all: list[LabelClass] = []
        self._counts: dict[int, dict[int, dict[int, int]]] = {}
        for number, producers in enumerate(self._groups()):
            rows = self._entries(producers[0])
            order = list(dict.fromkeys(rows.tolist()))
            element = LabelClass(name=self._name(producers[0]), width=len(order))
            self.all.append(element)
            unit = torch.full_like(self.units, -1)  # the unit's number by representative label
            for producer in producers:
                self.element_of[self._entries(producer)] = number
            unit[torch.tensor(order)] = torch.arange(len(order))
            try:
                self._check(element, producers, unit, number)
                self._locate(element, producers, unit)
            except _RefusedError as reason:
                element.reason = str(reason)
        self.element_of = self.element_of[self.units]
        self.along: dict[str, dict[int, dict[int, int]]] = {}  # positions per unit by tensor, dimension and element
        for number, element in enumerate(self.all):
            for part in element.parts:
                self.along.setdefault(part.tensor, {}).setdefault(part.dim, {})[number] = part.index.shape[1]

    def _groups(self) -> list[list[LabelOrigin]]:
        """Producers that have units in common, in order of use."""
        groups: list[tuple[list[LabelOrigin], set[int]]] = []
        for owner in self.trace.record.owners:
            if not owner.produces:
                continue
            members, units = [owner], set(self._entries(owner).tolist())
            for group in [group for group in groups if group[1] & units]:
                groups.remove(group)
                members = group[0] + members
                units |= group[1]
            groups.append((members, units))
        ordered = [sorted(members, key=lambda owner: owner.start) for members, _ in groups]
        return sorted(ordered, key=lambda members: members[0].start)

    def _name(self, producer: LabelOrigin) -> str:
        """The producer's; with the dimension if two elements are made by one tensor."""
        name = _short(producer)
        return f"{producer.name}:{producer.dim}" if any(other.name == name for other in self.all) else name

    def _entries(self, owner: LabelOrigin) -> Tensor:
        """The unit of each entry of an owner, by representative label."""
        return self.units[owner.start : owner.start + owner.count].view(owner.shape)

    def _check(self, element: LabelClass, producers: list[LabelOrigin], unit: Tensor, number: int) -> None:
        for producer in producers:
            if producer.name in self.fixed:
                raise _RefusedError(f"{_short(producer)}, which makes its units, {self.fixed[producer.name]}")
        for labels, reason in self.trace.record.refusals:
            if bool((self.element_of[self.units[labels]] == number).any()):
                raise _RefusedError(reason)
        for producer in producers:
            units = unit[self._entries(producer)]
            if bool((units < 0).any()) or len(distinct(units)) < element.width:
                raise _RefusedError(f"its units don't correspond one to one to the rows of {_short(producer)}")
            if unit_index(units, element.width) is None:
                raise _RefusedError(f"its units own different numbers of rows of {_short(producer)}")

    def _locate(self, element: LabelClass, producers: list[LabelOrigin], unit: Tensor) -> None:
        """Find every tensor dimension in which the units own positions."""
        makers = {producer.module for producer in producers}
        for producer in producers:
            self._part(element, "producer", producer.name, producer.dim or 0, unit[self._entries(producer)])
        for owner in self.trace.record.owners:
            units = unit[self._entries(owner)]
            if owner.produces or not bool((units >= 0).any()):
                continue
            role: Role = "producer" if owner.module in makers and owner.tensor.startswith("bias") else "elementwise"
            if owner.dim is not None:
                self._part(element, role, owner.name, owner.dim, units)
                continue
            dim = unit_axis(units)
            if dim is None:
                raise _RefusedError(f"its units lie along more than one dimension of {owner.name}")
            along = units.movedim(dim, 0).reshape(units.shape[dim], -1)
            self._part(element, role, owner.name, dim, along.amax(1))
        for use in self.trace.uses:
            units = unit[self.units[use.columns]]
            if bool((units >= 0).any()):
                if use.weight in self.fixed:
                    name = use.weight.removesuffix(".weight")
                    raise _RefusedError(f"{name}, which reads its units, {self.fixed[use.weight]}")
                self._part(element, "consumer", use.weight, use.in_dim, units, normed=use.normed)
        element.parts.sort(key=lambda part: ("producer", "elementwise", "consumer").index(part.role))
        if not any(part.role == "consumer" for part in element.parts):
            raise _RefusedError("no linear map reads its units")

    def _part(
        self, element: LabelClass, role: Role, tensor: str, dim: int, units: Tensor, *, normed: bool = False
    ) -> None:
        index = unit_index(units, element.width)
        if index is None:
            raise _RefusedError(f"its units own different numbers of positions in {tensor}")
        for part in element.parts:
            if (part.tensor, part.dim) == (tensor, dim):
                if not torch.equal(part.index, index):
                    raise _RefusedError(f"{tensor} meets its units in two ways")
                if part.role == "elementwise" or role == "consumer":
                    normed = normed and (part.role != "consumer" or part.normed)
                    element.parts[element.parts.index(part)] = LabelClassDim(
                        role=role, tensor=tensor, dim=dim, index=index, normed=normed
                    )
                return
        element.parts.append(LabelClassDim(role=role, tensor=tensor, dim=dim, index=index, normed=normed))

    # -- sizes

    def counts(self, tensor: TensorMeta) -> dict[int, dict[int, int]]:
        """Positions per unit of a tensor as it was seen, by dimension and element.

        A count of 0 says that only some of the element's units lie there, so that its size can't be told.
        """
        if tensor.name is not None:
            return self.along.get(tensor.name, {})
        key = id(tensor)
        if key not in self._counts:
            found: dict[int, dict[int, int]] = {}
            for label_map in tensor.label_maps:
                self._count(label_map, found)
            self._counts[key] = found
        return self._counts[key]

    def _count(self, label_map: Tensor, found: dict[int, dict[int, int]]) -> None:
        for dim in range(label_map.dim()):  # one position of what doesn't vary is enough
            if label_map.shape[dim] > 1 and label_map.stride(dim) == 0:
                label_map = label_map.narrow(dim, 0, 1)
        units = self.units[label_map.cpu()]
        for dim in varying(units):
            others = [other for other in range(units.dim()) if other != dim]
            along = units.amax(others) if others else units
            for number in distinct(self.element_of[along]).tolist():
                if number >= 0:
                    here = along[self.element_of[along] == number]
                    width, present = self.all[number].width, len(distinct(here))
                    regular = present == width and len(here) % width == 0
                    found.setdefault(dim, {})[number] = len(here) // width if regular else 0


def _short(owner: LabelOrigin) -> str:
    """A map's name: the module's where the tensor is its weight."""
    return owner.module if owner.tensor == "weight" and owner.module else owner.name


def unit_axis(units: Tensor) -> int | None:
    """The one dimension of a tensor along which its units lie.

    Args:
        units: the unit of each entry, -1 for none.

    Returns:
        The dimension; the last one if all entries belong to a single unit; None if there are several.
    """
    along = [dim for dim in range(units.dim()) if bool((units != units.narrow(dim, 0, 1)).any())]
    if not along:
        return units.dim() - 1
    return along[0] if len(along) == 1 else None


def unit_index(units: Tensor, width: int) -> Tensor | None:
    """Positions of each unit.

    Args:
        units: (positions,) the unit at each position, -1 for none.
        width: number of units.

    Returns:
        (width, k) positions in ascending order, or None if the units own different numbers of positions.
    """
    positions = (units >= 0).nonzero().flatten()
    owners = units[positions]
    counts = torch.bincount(owners, minlength=width)
    if not len(positions) or bool((counts != counts[0]).any()):
        return None
    return positions[torch.argsort(owners, stable=True)].view(width, -1)
