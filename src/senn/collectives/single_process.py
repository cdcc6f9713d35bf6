"""One process alone, and the questions that several are asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from senn import _deprecated


@dataclass(frozen=True, eq=False)
class BatchShare:
    """One rank's samples of a joint batch, in its joint order.

    Attributes:
        counts: number of samples of each rank.
        local: (own,) where they are in the rank's own batch.
        positions: (own,) where they are in the joint order, ascending; None for a rank that is alone.
    """

    counts: tuple[int, ...]
    local: Tensor
    positions: Tensor | None = None

    @property
    def total(self) -> int:
        """Samples of the joint batch."""
        return sum(self.counts)

    @property
    def largest(self) -> float:
        """The largest part of it that one rank holds."""
        return max(self.counts) / self.total

    def within(self, first: int, last: int) -> slice:
        """Which of the own samples stand at the positions from `first` up to `last`."""
        if self.positions is None:
            return slice(first, last)
        return slice(*torch.searchsorted(self.positions, torch.tensor([first, last])).tolist())


@_deprecated.aliased
class Communicator:
    """One process alone, for which every question is answered already; and what several can be asked.

    Attributes:
        rank: this process's number.
        size: number of processes.
        sent: bytes that this process has sent so far, by ring algorithms, by purpose.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.sent: dict[str, float] = {}

    @property
    def is_single(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    def all_gather_object(self, what: str, value: Any = None) -> list[Any]:
        """Every rank's value (numbers, strings, lists of them), in the order of ranks.

        Raises:
            SennError: a rank is missing, has failed, or is at something else; on all ranks.
        """
        return [value]

    @contextmanager
    def fail_together(self, what: str) -> Iterator[None]:
        """What fails on one rank fails on all: the others raise the same error, with the rank's number."""
        yield

    def broadcast_object(self, what: str, value: Any) -> Any:
        """The first rank's value."""
        return self.all_gather_object(what, value if self.rank == 0 else None)[0]

    def assert_equal(self, what: str, marks: Mapping[str, Any]) -> None:
        """Raise, on all ranks, if one of them has other marks than the others.

        Args:
            what: in a few words, when.
            marks: by what they are of, values to compare.
        """

    def batch_share(self, counts: Sequence[int], generator: torch.Generator) -> BatchShare:
        """The joint order of a batch of which each rank has so many samples."""
        order = torch.randperm(sum(counts), generator=generator)
        if self.is_single:
            return BatchShare(tuple(counts), order)
        start = sum(counts[: self.rank])
        positions = torch.nonzero((order >= start) & (order < start + counts[self.rank]))[:, 0]
        return BatchShare(tuple(counts), order[positions] - start, positions)

    def all_gather(self, what: str, groups: Sequence[tuple[Tensor, Sequence[Tensor]]]) -> list[list[Tensor]]:
        """Samples that are spread over the ranks, in order, on every rank.

        Args:
            what: in a few words.
            groups: of each, the positions of the own samples (own,) and tensors with an entry for each, (own, ...).
        """
        return [list(tensors) for _, tensors in groups]

    def all_reduce(self, what: str, tensors: Sequence[Tensor], *, meet: bool = True) -> list[Tensor]:
        """Sums over all ranks; the given tensors stay as they are.

        Args:
            what: in a few words.
            tensors: of the same shapes on all ranks.
            meet: check that all ranks are there first; without, one that is missing is noticed by the sending itself.
        """
        return list(tensors)

    def local_slice(self, total: int) -> slice:
        """This rank's part of so many samples that every rank has."""
        return slice(self.rank * total // self.size, (self.rank + 1) * total // self.size)

    def broadcast(self, what: str, tensors: Sequence[Tensor]) -> None:
        """Write the first rank's values into the given tensors."""
