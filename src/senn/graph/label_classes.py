"""Label classes: sets of units that labels alone show, and where they lie in the model.

A label class is one hidden dimension as far as labels can tell. The solver finds which of them only change together
(all blocks' heads with the residual stream, for instance); those become one `ChannelGroup`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from senn.graph.sizes.symbolic_int import TensorMeta
from senn.graph.tracing.labels import LabelOrigin, Labels, distinct, varying
from senn.graph.tracing.trace_recorder import TraceRecorder
from senn.graph.tracing.weight_view import WeightView
from senn.graph.types import Role
from senn.graph.unit_positions import unit_axis, unit_index

_ORDER: tuple[Role, ...] = ("producer", "elementwise", "consumer")

Counts = dict[int, dict[int, int]]
"""Positions per unit, by dimension of a tensor and number of the label class."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelClassDim:
    """One dimension of one tensor in which units own positions.

    Attributes:
        role: what the tensor is to the units.
        tensor: its full name.
        dim: the dimension.
        index: (width, k) long; positions of each unit, ascending along k.
        normed: True for a consumer whose inputs all come straight from a normalization of whole units.
    """

    role: Role
    tensor: str
    dim: int
    index: Tensor
    normed: bool = False


@dataclass(kw_only=True, eq=False)
class LabelClass:
    """Units that one or more linear maps make.

    Attributes:
        name: name of the first producer.
        width: number of units.
        dims: where they lie; producers first.
        reason: why they can't change; None if nothing speaks against it.
        line: line of the forward's code that is why; empty if it isn't known.
        is_output: True if they are outputs that may grow, which nothing in the model has to read.
    """

    name: str
    width: int
    is_output: bool = False
    dims: list[LabelClassDim] = field(default_factory=list)
    reason: str | None = None
    line: str = ""


class _RefusedError(Exception):
    """The units can't change in number; the message says why.

    Args:
        reason: the message.
        tensor: full name of the tensor in which they lie in a way that is why; empty if that isn't it.
    """

    def __init__(self, reason: str, tensor: str = "") -> None:
        super().__init__(reason)
        self.tensor = tensor


class LabelClasses:
    """All label classes of one forward pass.

    Args:
        trace: the recorder of the pass.
        fixed: weights whose shape must not change, by full name, and why (a verb phrase that follows the name).

    Attributes:
        all: the label classes in order of use.
        units: representative of each label's unit.
        class_of: number of each label's class, -1 for none.
    """

    def __init__(self, trace: TraceRecorder, fixed: Mapping[str, str]) -> None:
        self.trace, self.fixed = trace, fixed
        self.units = _units(trace.record)
        self.class_of = torch.full_like(self.units, -1)
        self.all: list[LabelClass] = []
        self._counts_of_tensor: dict[int, Counts] = {}
        for number, producers in enumerate(self._producers()):
            self._add(number, producers)
        self.class_of = self.class_of[self.units]  # so far known for representatives only
        self._counts_of_parameter: dict[str, Counts] = {}
        for number, one in enumerate(self.all):
            for place in one.dims:
                counts = self._counts_of_parameter.setdefault(place.tensor, {})
                counts.setdefault(place.dim, {})[number] = place.index.shape[1]

    def _producers(self) -> list[list[LabelOrigin]]:
        """Producers that have units in common, in order of use."""
        groups: list[tuple[list[LabelOrigin], set[int]]] = []
        for origin in self.trace.record.origins:
            if not origin.produces:
                continue
            # Outputs that are added (a residual stream) have units in common: one class with several producers. A new
            # producer may join several classes that were apart so far.
            members, units = [origin], set(self._units_of(origin).flatten().tolist())
            rest = []
            for group in groups:
                if group[1] & units:
                    members = group[0] + members
                    units |= group[1]
                else:
                    rest.append(group)
            groups = [*rest, (members, units)]
        ordered = [sorted(members, key=lambda origin: origin.start) for members, _ in groups]
        return sorted(ordered, key=lambda members: members[0].start)

    def _units_of(self, origin: LabelOrigin) -> Tensor:
        """Unit of each entry of an origin, by representative label."""
        return self.units[origin.start : origin.end].view(origin.shape)

    def _add(self, number: int, producers: list[LabelOrigin]) -> None:
        """Add the class of units that some producers make, in the order of the first one's rows."""
        name = producers[0].map_name
        if any(
            other.name == name for other in self.all
        ):  # one tensor may make units along two dimensions
            name = f"{producers[0].name}:{producers[0].dim}"
        order = list(dict.fromkeys(self._units_of(producers[0]).flatten().tolist()))
        one = LabelClass(name=name, width=len(order))
        self.all.append(one)
        for producer in producers:
            self.class_of[self._units_of(producer)] = number
        unit_number = torch.full_like(self.units, -1)  # by representative label
        unit_number[torch.tensor(order)] = torch.arange(len(order))
        returned = [self.units[labels.cpu()] for maps in self.trace.outputs for labels in maps]
        one.is_output = any(bool((unit_number[units] >= 0).any()) for units in returned)
        try:
            self._check(one, producers, unit_number, number)
            self._locate(one, producers, unit_number)
        except _RefusedError as reason:
            one.reason = str(reason)
            one.line = one.line or self.trace.used_at.get(reason.tensor, "")

    def _check(
        self, one: LabelClass, producers: list[LabelOrigin], unit_number: Tensor, number: int
    ) -> None:
        for producer in producers:
            if producer.name in self.fixed:
                raise _RefusedError(
                    f"{producer.map_name}, which makes its units, {self.fixed[producer.name]}"
                )
        # The first reason is the nearest to the cause.
        for labels, reason, source in self.trace.record.refusals:
            if bool((self.class_of[self.units[labels]] == number).any()):
                one.line = source
                raise _RefusedError(reason)
        for producer in producers:
            units = unit_number[self._units_of(producer)]
            if bool((units < 0).any()) or len(distinct(units)) < one.width:
                raise _RefusedError(
                    self._straddling(producers, number)
                    or f"its units don't correspond one to one to the rows of {producer.map_name}",
                    producer.name,
                )
            line = _line(units, producer.dim, producer.name)[1]
            if unit_index(line, one.width) is None:
                raise _RefusedError(
                    self._straddling(producers, number)
                    or f"its units own different numbers of rows of {producer.map_name}",
                    producer.name,
                )

    def _straddling(self, producers: list[LabelOrigin], number: int) -> str | None:
        """Name a normalization of groups of channels of which one has channels of two maps; None if there is none."""
        for module, channels in self.trace.groups:
            if number not in distinct(self.class_of[self.units[channels]]).tolist():
                continue
            kind = type(self.trace.model.get_submodule(module)).__name__
            units = self.units[channels]
            size = len(channels) // max(len(distinct(units)), 1)
            makers = [
                producer.map_name
                for producer in producers
                if bool(torch.isin(channels, torch.arange(producer.start, producer.end)).any())
            ]
            if len(makers) > 1:
                return (
                    f"{module} ({kind}) normalizes groups of {size} channels, and where they are joined lies "
                    f"a group with channels of {' and '.join(makers)}: give each a multiple of {size}"
                )
        return None

    def _locate(self, one: LabelClass, producers: list[LabelOrigin], unit_number: Tensor) -> None:
        """Find every tensor dimension in which the units own positions."""
        makers = {producer.module for producer in producers}
        for producer in producers:
            units = unit_number[self._units_of(producer)]
            dim, units = _line(units, producer.dim, producer.name)
            _add_dim(one, "producer", producer.name, dim, units)
        for origin in self.trace.record.origins:
            units = unit_number[self._units_of(origin)]
            if origin.produces or not bool((units >= 0).any()):
                continue
            # A bias is made with the rows: new units need new entries of it, not copies of old ones.
            is_bias = origin.module in makers and origin.tensor.startswith("bias")
            dim, units = _line(self._with_unread(units, origin), origin.dim, origin.name)
            _add_dim(one, "producer" if is_bias else "elementwise", origin.name, dim, units)
        for use in self.trace.uses:
            units = unit_number[self.units[use.columns]]
            if not bool((units >= 0).any()):
                continue
            if use.weight in self.fixed:
                name = use.weight.removesuffix(".weight")
                raise _RefusedError(f"{name}, which reads its units, {self.fixed[use.weight]}")
            in_dim, units = _line(units, use.in_dim if units.dim() == 1 else None, use.weight)
            _add_dim(one, "consumer", use.weight, in_dim, units, normed=use.normed)
        one.dims.sort(key=lambda place: _ORDER.index(place.role))
        if not one.is_output and (not one.dims or one.dims[-1].role != "consumer"):
            raise _RefusedError("no linear map reads its units")

    def _with_unread(self, units: Tensor, origin: LabelOrigin) -> Tensor:
        """Count entries that the pass didn't read to the unit beside them, as the last positions of a longer window.

        Args:
            units: the unit of each entry of a tensor, -1 for none.
            origin: the tensor.
        """
        if origin.dim is not None or unit_axis(units) is not None:
            return units
        # What is read shares its unit with what is made of it.
        is_unread = torch.bincount(self.units)[self._units_of(origin)] == 1
        for dim in range(units.dim()):
            others = [other for other in range(units.dim()) if other != dim]
            own = units.amax(others, keepdim=True)
            if bool(((own >= 0) & ((units == own) | is_unread)).all()):
                return own.expand_as(units)
        return units

    def places_of_all(self, numbers: Collection[int]) -> list[LabelClassDim]:
        """Return where all units of some classes lie, taken for one unit; empty if they can't change.

        Args:
            numbers: of the classes.
        """
        unit_number = torch.full_like(self.units, -1)
        for number in numbers:
            unit_number[self.class_of == number] = 0
        origins = self.trace.record.origins
        producers = [
            origin
            for origin in origins
            if origin.produces and bool((unit_number[self._units_of(origin)] >= 0).any())
        ]
        one = LabelClass(name="", width=1)
        try:
            self._locate(one, producers, unit_number)
        except _RefusedError:
            return []
        fixed = [place for place in one.dims if place.tensor in self.fixed]
        return [] if fixed else one.dims

    def numbers(self, labels: Tensor) -> list[int]:
        """Return the numbers of the classes that labels belong to; -1 for none."""
        found: list[int] = distinct(self.class_of[distinct(labels).cpu()]).tolist()
        return found

    def tensors(self) -> set[str]:
        """Return the full names of all tensors in which units of a class lie."""
        places = {(one.name, one.start, one.end) for one in self.trace.record.origins}
        found = {name for name, start, end in places if bool((self.class_of[start:end] >= 0).any())}
        read = [(use.weight, self.class_of[use.columns]) for use in self.trace.uses]
        return found | {name for name, classes in read if bool((classes >= 0).any())}

    def counts(self, tensor: TensorMeta) -> Counts:
        """Count the positions that each unit owns along the dimensions of a tensor.

        Args:
            tensor: a tensor of the forward pass.

        Returns:
            Positions per unit by dimension and label class; 0 where only some units of a class lie in a dimension, so
            that its new size is unknown.
        """
        if tensor.name is not None:
            return self._counts_of_parameter.get(tensor.name, {})
        if tensor.view is not None:
            return self._counts_of_view(tensor.view)
        key = id(tensor)
        if key not in self._counts_of_tensor:
            counts: Counts = {}
            for label_map in tensor.label_maps:
                self._count(label_map, counts)
            self._counts_of_tensor[key] = counts
        return self._counts_of_tensor[key]

    def _counts_of_view(self, view: WeightView) -> Counts:
        counts: Counts = {}
        for number, one in enumerate(self.all):
            for place in one.dims:
                if place.tensor != view.name:
                    continue
                for axis in view.axes_of(place.dim):
                    positions = view.positions_along(place.dim, axis).cpu()
                    own = torch.isin(positions, place.index)
                    # All units lie there if each of their positions does, the same number of times.
                    each = torch.bincount(positions[own])
                    units = int(own.sum())
                    regular = units % one.width == 0 and len(distinct(each[each > 0])) == 1
                    present = int((each > 0).sum()) == place.index.numel()
                    per_unit = units // one.width if regular and present else 0
                    counts.setdefault(axis, {})[number] = per_unit
        return counts

    def _count(self, label_map: Tensor, counts: Counts) -> None:
        for dim in range(label_map.dim()):
            if label_map.shape[dim] > 1 and label_map.stride(dim) == 0:
                label_map = label_map.narrow(dim, 0, 1)  # expanded: one position says it all
        units = self.units[label_map.cpu()]
        for dim in varying(units):
            others = [other for other in range(units.dim()) if other != dim]
            along = (
                units.amax(others) if others else units
            )  # labels at one position are one unit, or 0
            for number in distinct(self.class_of[along]).tolist():
                if number < 0:
                    continue
                own = along[self.class_of[along] == number]
                width = self.all[number].width
                all_present = len(distinct(own)) == width
                regular = all_present and len(own) % width == 0
                counts.setdefault(dim, {})[number] = len(own) // width if regular else 0


def _units(record: Labels) -> Tensor:
    """Return the unit of each label.

    Where each pair of positions along two dimensions of a weight came out as a unit (features of several heads, all
    read by one map), only the last dimension can change, for all positions of the other.
    """
    units = record.units()
    for origin in record.origins:
        labels = torch.arange(origin.start, origin.end).view(origin.shape)
        if origin.produces and origin.dim is None:
            dims = sorted(varying(units[labels]))
            if len(dims) > 1:
                record.merge_along(labels, set(dims[:-1]))
                return _units(record)
    return units


def _add_dim(
    one: LabelClass, role: Role, tensor: str, dim: int, units: Tensor, *, normed: bool = False
) -> None:
    """Add a dimension to a label class; `units` is the unit at each position, -1 for none."""
    index = unit_index(units, one.width)
    if index is None:
        raise _RefusedError(f"its units own different numbers of positions in {tensor}", tensor)
    for number, place in enumerate(one.dims):
        if (place.tensor, place.dim) != (tensor, dim):
            continue
        if not torch.equal(place.index, index):
            raise _RefusedError(f"{tensor} meets its units in two ways", tensor)
        if place.role == "elementwise" or role == "consumer":
            # Read several times, a consumer is behind a norm only if it is each time.
            normed = normed and (place.role != "consumer" or place.normed)
            one.dims[number] = LabelClassDim(
                role=role, tensor=tensor, dim=dim, index=index, normed=normed
            )
        return
    one.dims.append(LabelClassDim(role=role, tensor=tensor, dim=dim, index=index, normed=normed))


def _line(units: Tensor, dim: int | None, name: str) -> tuple[int, Tensor]:
    """Find the dimension of a tensor along which units lie, and the unit at each position, -1 for none.

    Args:
        units: the unit of each entry, or of each position if the dimension is known.
        dim: the dimension; None to find it.
        name: of the tensor, for the message.
    """
    if dim is not None:
        return dim, units
    dim = unit_axis(units)
    if dim is None:
        raise _RefusedError(f"its units lie along more than one dimension of {name}", name)
    # All entries at one position belong to one unit, or to none (-1).
    return dim, units.movedim(dim, 0).flatten(1).amax(1) if units.dim() > 1 else units
