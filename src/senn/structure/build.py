"""Spaces put together from labels: which rows, carrier entries and columns are the same unit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from senn.structure.labels import Owner, distinct
from senn.structure.layout import index_of, runs_of, unit_axis
from senn.structure.spaces import Attribute, Refusal, Role, Slot, Space
from senn.structure.trace import Trace

# Python attributes that hold the size of a carrier (BatchNorm; PReLU, Rational).
_SIZES = ("num_features", "num_parameters")


class _NotASpaceError(Exception):
    """The units can't change in number; the message says why."""


class Builder:
    """Builds the spaces that a trace shows.

    Args:
        model: the model that was traced.
        trace: its trace.
        fixed: linear maps whose shape must not change, and why (a verb phrase).
        tied: full names of tensors that share their values with another, and which.
    """

    def __init__(self, model: nn.Module, trace: Trace, fixed: Mapping[str, str], tied: Mapping[str, str]) -> None:
        self.model = model
        self.trace = trace
        self.fixed = fixed
        self.tied = tied
        self.units = trace.record.units()

    def build(self) -> tuple[list[Space], list[Refusal]]:
        """All spaces in order of use, and those that can't change."""
        spaces, refused = [], []
        for producers in self._groups():
            try:
                spaces.append(self._space(producers))
            except _NotASpaceError as reason:
                refused.append(Refusal(producers[0].module, str(reason)))
        return spaces, refused

    def _groups(self) -> list[list[Owner]]:
        """Producers that have units in common, in order of use."""
        groups: list[tuple[list[Owner], set[int]]] = []
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

    def _entries(self, owner: Owner) -> Tensor:
        """The unit of each entry of an owner, by representative label."""
        return self.units[owner.start : owner.start + owner.count].view(owner.shape)

    def _space(self, producers: list[Owner]) -> Space:
        name = producers[0].module
        rows = self._entries(producers[0])
        number = torch.full((len(self.units),), -1)  # the unit's number by representative label
        number[rows] = torch.arange(len(rows))
        self._check(producers, number)
        slots = [self._slot("producer", p.module, p.tensor, 0, number[self._entries(p)], len(rows)) for p in producers]
        makers = [producer.module for producer in producers]
        carriers = [self._carrier(owner, number, len(rows), makers) for owner in self.trace.record.owners]
        slots += [slot for slot in carriers if slot is not None]
        slots.sort(key=lambda slot: makers.index(slot.module) if slot.role == "producer" else len(makers))
        consumers = self._consumers(number, len(rows))
        if not consumers:
            raise _NotASpaceError("no linear map reads its units")
        slots += consumers
        return Space(name, len(rows), tuple(slots), self._attributes(slots))

    def _check(self, producers: list[Owner], number: Tensor) -> None:
        """Refuse a space that a rule refused, or whose producers can't follow."""
        for producer in producers:
            if producer.module in self.fixed:
                raise _NotASpaceError(f"{producer.module}, which makes its units, {self.fixed[producer.module]}")
        for labels, reason in self.trace.record.refusals:
            if bool((number[self.units[labels]] >= 0).any()):
                raise _NotASpaceError(reason)
        rows = self._entries(producers[0])
        for producer in producers:
            units = distinct(self._entries(producer))
            if len(units) < producer.count:
                raise _NotASpaceError(f"one unit takes several rows of {producer.module}, which isn't understood yet")
            if not torch.equal(units, distinct(rows)):
                raise _NotASpaceError(f"its units don't correspond one to one to the rows of {producer.module}")

    def _slot(self, role: Role, module: str, tensor: str, dim: int, units: Tensor, width: int) -> Slot:
        """The slot of a tensor dimension with the given unit at each position, -1 for none."""
        name = f"{module}.{tensor}" if module else tensor
        if name in self.tied:
            raise _NotASpaceError(f"{name} shares its values with {self.tied[name]}")
        index = index_of(units, width)
        if index is None:
            raise _NotASpaceError(f"its units own different numbers of positions in {name}")
        runs = runs_of(index)
        if runs is None:
            raise _NotASpaceError(f"its units lie in {name} in an order that isn't understood")
        return Slot(role, module, tensor, dim, index, runs)

    def _carrier(self, owner: Owner, number: Tensor, width: int, makers: list[str]) -> Slot | None:
        """The slot of a bias (a producer's own counts as producer) or of a per-unit parameter or buffer."""
        units = number[self._entries(owner)]
        if owner.produces or not bool((units >= 0).any()):
            return None
        dim = unit_axis(units)
        if dim is None:
            raise _NotASpaceError(f"its units lie along more than one dimension of {owner.name}")
        along = units.movedim(dim, 0).reshape(units.shape[dim], -1)[:, 0]
        role: Role = "producer" if owner.module in makers else "carrier"
        return self._slot(role, owner.module, owner.tensor, dim, along, width)

    def _consumers(self, number: Tensor, width: int) -> list[Slot]:
        """The columns that linear maps read the units with."""
        slots = []
        for use in self.trace.uses:
            units = number[self.units[use.columns]]
            if bool((units >= 0).any()):
                if use.linear in self.fixed:
                    raise _NotASpaceError(f"{use.linear}, which reads its units, {self.fixed[use.linear]}")
                slots.append(self._slot("consumer", use.linear, "weight", 1, units, width))
        return slots

    def _attributes(self, slots: list[Slot]) -> tuple[Attribute, ...]:
        """Python attributes that hold the sizes of the slots' dimensions."""
        sizes = {}
        for slot in slots:
            module = self.model.get_submodule(slot.module)
            names = {"producer": ("out_features",), "carrier": _SIZES, "consumer": ("in_features",)}[slot.role]
            for name in names:
                if isinstance(getattr(module, name, None), int):
                    sizes[slot.module, name] = slot.index.shape[1]
        return tuple(Attribute(module, name, count) for (module, name), count in sizes.items())
