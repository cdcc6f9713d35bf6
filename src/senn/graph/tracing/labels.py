"""Labels: which unit each entry of each tensor belongs to.

A label is a positive integer; 0 means that the entry belongs to no unit. Each row of a linear map's weight and
each entry of a small parameter or buffer has a label of its own, and the label tensor of an activation (a *coat*)
has the shape of the activation. Labels that turn out to name the same unit are united; a set of united labels is one
unit with all its rows, carrier entries and columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LabelOrigin:
    """A tensor of the model whose entries, or whose rows along one dimension, have labels.

    Attributes:
        module: name of the module that holds it.
        tensor: its name inside that module.
        shape: shape of the labelled entries: (rows,) where `dim` is given, else the tensor's shape.
        start: label of the first entry; the others follow in row-major order.
        produces: True if the entries are the rows of a linear map.
        shared: True if its only entry, if it has only one, serves all units instead of one unit.
        dim: the dimension whose positions have labels; None if every entry has one.
    """

    module: str
    tensor: str
    shape: tuple[int, ...]
    start: int
    produces: bool
    shared: bool
    dim: int | None = None

    @property
    def name(self) -> str:
        """Fully qualified tensor name."""
        return f"{self.module}.{self.tensor}" if self.module else self.tensor

    @property
    def count(self) -> int:
        """Number of labels."""
        return int(torch.Size(self.shape).numel())


class Labels:
    """All labels of one forward pass: who owns them, which are the same unit, which must not change."""

    def __init__(self) -> None:
        self.owners: list[LabelOrigin] = []
        self.refusals: list[tuple[Tensor, str]] = []
        self._pairs: list[Tensor] = []
        self._next = 1

    def new_labels(
        self,
        module: str,
        tensor: str,
        shape: tuple[int, ...],
        *,
        produces: bool = False,
        shared: bool = True,
        dim: int | None = None,
    ) -> Tensor:
        """New labels, one for each entry of `shape`."""
        owner = LabelOrigin(
            module=module, tensor=tensor, shape=shape, start=self._next, produces=produces, shared=shared, dim=dim
        )
        self.owners.append(owner)
        self._next += owner.count
        return torch.arange(owner.start, owner.start + owner.count).view(shape)

    def origin(self, label: int) -> LabelOrigin:
        """The owner of one label."""
        return next(owner for owner in self.owners if owner.start <= label < owner.start + owner.count)

    def is_made(self, labels: Tensor) -> bool:
        """Whether labels name units that a map makes, and not only entries of a parameter or buffer."""
        first = int(labels.max())
        return first > 0 and self.origin(first).produces

    def merge(self, first: Tensor, second: Tensor) -> None:
        """Say entry by entry that two label tensors of one shape name the same units."""
        both = (first != second) & (first != 0) & (second != 0)
        if bool(both.any()):
            packed = distinct((first[both] << 32) | second[both]).cpu()
            self._pairs.append(torch.stack([packed >> 32, packed & 0xFFFFFFFF], dim=1))

    def merge_along(self, labels: Tensor, dims: set[int]) -> Tensor:
        """Say that units which differ along these dimensions only come and go together; labels of size 1 there."""
        first = labels.amax(sorted(dims), keepdim=True)
        self.merge(labels, first.expand_as(labels))
        return first

    def refuse(self, labels: Tensor, reason: str) -> None:
        """Say that the units of these labels must not change; `reason` says of the space why ("its units ...")."""
        named = distinct(labels[labels != 0]).cpu()
        if named.numel():
            self.refusals.append((named, reason))

    def units(self) -> Tensor:
        """Representative of each label's unit, (labels + 1,) long: the smallest label that is united with it."""
        parent = list(range(self._next))

        def find(label: int) -> int:
            while parent[label] != label:
                parent[label] = parent[parent[label]]
                label = parent[label]
            return label

        if self._pairs:
            for first, second in torch.unique(torch.cat(self._pairs), dim=0).tolist():
                low, high = sorted((find(first), find(second)))
                parent[high] = low
        return torch.tensor([find(label) for label in range(self._next)])


def distinct(labels: Tensor) -> Tensor:
    """The different labels in ascending order."""
    return cast(Tensor, torch.unique(labels))


def varying(labels: Tensor) -> set[int]:
    """The dimensions along which labels differ."""
    return {
        dim
        for dim in range(labels.dim())
        if labels.shape[dim] > 1 and labels.stride(dim) and bool((labels != labels.narrow(dim, 0, 1)).any())
    }


def is_uniform(tensor: Tensor, dims: set[int]) -> bool:
    """Whether all entries along some dimensions are the same: zeros of a first state, a mask."""
    return all(bool((tensor == tensor.narrow(dim, 0, 1)).all()) for dim in dims)
