"""Labels: which unit each entry of each tensor belongs to.

A label is a positive integer; 0 means that the entry belongs to no unit. Each row of a linear map's weight, and each
entry of a small parameter or buffer, gets a label of its own. The *label map* of an activation is an integer tensor of
the activation's shape. Labels that turn out to name the same unit are merged (union-find): a class of merged labels is
one unit, with all the rows that make it, the entries that go along with it and the columns that read it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from senn.graph.source_lines import running_line


@dataclass(frozen=True, kw_only=True)
class LabelOrigin:
    """A tensor of the model whose entries, or whose positions along one dimension, have labels.

    Attributes:
        module: name of the module that holds it.
        tensor: its name inside that module.
        shape: shape of the labeled entries: (positions,) if `dim` is set, else the tensor's shape.
        start: label of the first entry; the others follow in row-major order.
        produces: True if the entries are the rows of a linear map.
        shared: True if a single entry serves every unit, rather than one; matters only for tensors of one entry.
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
        """Fully qualified name of the tensor."""
        return f"{self.module}.{self.tensor}" if self.module else self.tensor

    @property
    def map_name(self) -> str:
        """Name of the linear map: the module's where the tensor is its `weight`."""
        return self.module if self.tensor == "weight" and self.module else self.name

    @property
    def end(self) -> int:
        """One past the last label."""
        return self.start + int(torch.Size(self.shape).numel())


class Labels:
    """All labels of one forward pass: their origins, merges and refusals.

    Attributes:
        origins: the labeled tensors, in order of their labels.
        refusals: (labels, reason, line of the forward's code) of units that must keep their number.
    """

    def __init__(self) -> None:
        self.origins: list[LabelOrigin] = []
        self.refusals: list[tuple[Tensor, str, str]] = []
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
        """Return new labels, one for each entry of `shape`; for the parameters see `LabelOrigin`.

        Args:
            module: name of the module that holds the tensor.
            tensor: its name inside that module.
            shape: shape of the labels.
            produces: True for the rows of a linear map.
            shared: True if a single entry serves every unit.
            dim: the dimension that the labels lie along, if they don't fill the tensor.

        Returns:
            (*shape,) long, on the CPU.
        """
        origin = LabelOrigin(
            module=module,
            tensor=tensor,
            shape=shape,
            start=self._next,
            produces=produces,
            shared=shared,
            dim=dim,
        )
        self.origins.append(origin)
        self._next = origin.end
        return torch.arange(origin.start, origin.end).view(shape)

    def origin(self, label: int) -> LabelOrigin:
        """Return the origin of one label."""
        return next(origin for origin in self.origins if origin.start <= label < origin.end)

    def is_made(self, labels: Tensor) -> bool:
        """Return True if labels name units that a linear map makes, not entries of a parameter."""
        first = int(labels.max())
        return first > 0 and self.origin(first).produces

    def has_made(self, labels: Tensor) -> bool:
        """Return True if any label names a unit that a linear map makes."""
        named = distinct(labels[labels != 0]).cpu()
        starts = torch.tensor([origin.start for origin in self.origins])
        owners = torch.bucketize(named, starts, right=True) - 1
        return any(self.origins[owner].produces for owner in distinct(owners).tolist())

    def merge(self, first: Tensor, second: Tensor) -> None:
        """Record, entry by entry, that two label maps name the same units; 0 names none.

        Args:
            first: labels of any shape.
            second: labels of the same shape.
        """
        differ = (first != second) & (first != 0) & (second != 0)
        if bool(differ.any()):
            # Two labels in one integer: `unique` of a vector is much faster than `unique` of rows.
            packed = distinct((first[differ] << 32) | second[differ]).cpu()
            self._pairs.append(torch.stack([packed >> 32, packed & 0xFFFFFFFF], dim=1))

    def merge_along(self, labels: Tensor, dims: set[int]) -> Tensor:
        """Merge units that differ only along some dimensions: they come and go together.

        Args:
            labels: a label map.
            dims: its dimensions along which all positions become one unit.

        Returns:
            The label map with size 1 along these dimensions.
        """
        first = labels.amax(sorted(dims), keepdim=True)  # any of them would do
        self.merge(labels, first.expand_as(labels))
        return first

    def refuse(self, labels: Tensor, reason: str, line: str | None = None) -> None:
        """Record that the units of these labels must not change.

        Args:
            labels: of any shape; zeros are ignored.
            reason: why, as the rest of a sentence about the group ("its units ...").
            line: line of the forward's code that is why; None for the one that runs now.
        """
        # Kept as labels and not as units: what is merged later is refused as well.
        named = distinct(labels[labels != 0]).cpu()
        if named.numel():
            self.refusals.append((named, reason, running_line() if line is None else line))

    def units(self) -> Tensor:
        """Return the representative of each label's unit: the smallest label merged with it.

        Returns:
            (labels + 1,) long, indexed by label; entry 0 is 0.
        """
        parent = list(range(self._next))

        def find(label: int) -> int:
            while parent[label] != label:
                parent[label] = parent[parent[label]]  # path halving keeps the trees flat
                label = parent[label]
            return label

        if self._pairs:
            for first, second in torch.unique(torch.cat(self._pairs), dim=0).tolist():
                # The smaller label wins, so that a unit's representative is a row of its first producer.
                low, high = sorted((find(first), find(second)))
                parent[high] = low
        return torch.tensor([find(label) for label in range(self._next)])


def distinct(labels: Tensor) -> Tensor:
    """Return the different labels in ascending order."""
    return cast(Tensor, torch.unique(labels))


def varying(labels: Tensor) -> set[int]:
    """Return the dimensions along which a label map varies."""
    dims = set()
    for dim in range(labels.dim()):
        # Stride 0 means an expanded dimension, which repeats one position: no need to compare the entries.
        if labels.shape[dim] > 1 and not labels.stride(dim):
            labels = labels.narrow(dim, 0, 1)
    for dim in range(labels.dim()):
        if labels.shape[dim] > 1 and bool((labels != labels.narrow(dim, 0, 1)).any()):
            dims.add(dim)
    return dims


def broadcast_shape(tensors: Iterable[Tensor]) -> tuple[int, ...]:
    """Return the shape to which tensors that an operation has taken broadcast.

    Args:
        tensors: at least one.
    """
    # `torch.broadcast_shapes` knows symbolic sizes, and imports a second's worth of code for them.
    shape: list[int] = []
    for tensor in tensors:
        shape = [1] * (tensor.dim() - len(shape)) + shape
        for place, size in enumerate(reversed(tensor.shape), start=1):
            if size != 1:
                shape[-place] = size
    return tuple(shape)


def is_uniform(tensor: Tensor, dims: set[int]) -> bool:
    """Return True if all entries along some dimensions are equal, as in a mask.

    Args:
        tensor: any values.
        dims: the dimensions to compare along.
    """
    return all(bool((tensor == tensor.narrow(dim, 0, 1)).all()) for dim in dims)
