"""Communicator of a single process, and the operations that every communicator has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from senn import _deprecated


@dataclass(frozen=True, eq=False)
class BatchShare:
    """One rank's samples of a global batch, in its global order.

    Attributes:
        counts: number of samples of each rank.
        local: indices of this rank's samples in its own batch, (own,) int64.
        positions: their positions in the global order, ascending, (own,) int64; None for a single process.
    """

    counts: tuple[int, ...]
    local: Tensor
    positions: Tensor | None = None

    @property
    def total(self) -> int:
        """Number of samples of the global batch."""
        return sum(self.counts)

    @property
    def largest(self) -> float:
        """Largest fraction of the global batch that one rank holds."""
        return max(self.counts) / self.total

    def within(self, first: int, last: int) -> slice:
        """Find this rank's samples in a range of the global order.

        Args:
            first: first position.
            last: position after the last one.

        Returns:
            Slice of this rank's samples, which are in global order.
        """
        if self.positions is None:
            return slice(first, last)
        # Positions are ascending, so a range of the order is a slice of them.
        return slice(*torch.searchsorted(self.positions, torch.tensor([first, last])).tolist())


@_deprecated.aliased
class Communicator:
    """Communicator of a single process, and the base class of others.

    In every operation, `action` says what it is for: an imperative phrase for error messages, the same on all ranks.

    Args:
        rank: number of this process.
        size: number of processes.

    Attributes:
        rank: number of this process.
        size: number of processes.
        sent: bytes that this process has sent so far, by action, counted as ring algorithms send them.

    >>> alone = Communicator()
    >>> alone.is_single, alone.all_gather_object("count samples", 32)
    (True, [32])
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.sent: dict[str, float] = defaultdict(float)

    @property
    def is_single(self) -> bool:
        """True if there is no other process."""
        return self.size == 1

    def all_gather_object(self, action: str, value: Any = None) -> list[Any]:
        """Gather a value of every rank.

        Args:
            action: what it is for.
            value: numbers, strings, lists or dictionaries of them: whatever JSON can hold.

        Returns:
            The values in the order of ranks.

        Raises:
            SennError: a rank is missing, has failed, or is at another operation; on all ranks.
        """
        return [value]

    def all_gather_result(self, action: str, compute: Callable[[], Any]) -> list[Any]:
        """Compute a value on every rank, and gather the values; if one rank fails, all do.

        Args:
            action: what it is for.
            compute: function that returns a value as of `all_gather_object`.
        """
        return [compute()]

    @contextmanager
    def fail_together(self, action: str) -> Iterator[None]:
        """Run a block whose failure on one rank raises an error on all, with the failing rank's number."""
        yield

    def interrupt_when(self, interrupted: Callable[[], bool]) -> None:
        """Let the next meeting raise KeyboardInterrupt on all ranks once this rank is asked to end.

        An exception that a signal raises in the middle of a meeting, or between a meeting and the operation that it is
        for, would leave the other ranks waiting.

        Args:
            interrupted: returns True if this rank is to end.
        """

    def broadcast_object(self, action: str, value: Any) -> Any:
        """Send rank 0's value to all ranks.

        Args:
            action: what it is for.
            value: as of `all_gather_object`; ignored on other ranks.

        Returns:
            Rank 0's value.
        """
        return self.all_gather_object(action, value if self.rank == 0 else None)[0]

    def assert_equal(self, action: str, marks: Mapping[str, Any]) -> None:
        """Raise an error on all ranks if one of them has other values.

        Args:
            action: what all ranks are about to do.
            marks: values to compare, by what they are.

        Raises:
            SennError: values differ; the message names a rank and what differs.
        """

    def batch_share(self, counts: Sequence[int], generator: torch.Generator) -> BatchShare:
        """Permute a global batch, and find this rank's samples in it.

        Args:
            counts: number of samples of each rank, whose batches follow one another in the order of ranks.
            generator: source of the permutation, in the same state on all ranks.
        """
        # One permutation of the global batch, not one per rank: folds are then those of one process with all samples.
        order = torch.randperm(sum(counts), generator=generator)
        if self.is_single:
            return BatchShare(tuple(counts), order)
        start = sum(counts[: self.rank])
        positions = torch.nonzero((order >= start) & (order < start + counts[self.rank]))[:, 0]
        return BatchShare(tuple(counts), order[positions] - start, positions)

    def all_gather(
        self, action: str, groups: Sequence[tuple[Tensor, Sequence[Tensor]]]
    ) -> list[list[Tensor]]:
        """Gather samples that are spread over the ranks.

        Args:
            action: what it is for.
            groups: for each group, the positions of this rank's samples, (own,), and tensors with an entry for each,
                (own, ...).

        Returns:
            For each group, the tensors of all ranks' samples, in the order of positions.
        """
        return [list(tensors) for _, tensors in groups]

    def all_reduce(
        self, action: str, tensors: Sequence[Tensor], *, meet: bool = True
    ) -> list[Tensor]:
        """Sum tensors over all ranks.

        Args:
            action: what it is for.
            tensors: tensors of the same shapes on all ranks; they stay as they are.
            meet: check first that all ranks are there. Without it, a missing one is noticed by the operation itself.

        Returns:
            The sums, on the devices of the tensors.
        """
        return list(tensors)

    def reduce(
        self,
        action: str,
        tensors: Sequence[Tensor],
        destinations: Sequence[int],
        *,
        dtype: torch.dtype | None = None,
    ) -> list[Tensor | None]:
        """Sum tensors over all ranks, each for one rank alone.

        Args:
            action: what it is for.
            tensors: tensors of the same shapes on all ranks; they stay as they are.
            destinations: for each tensor, the rank that gets the sum.
            dtype: floating-point type in which the ranks' numbers are sent; None for that of the tensors, in which they
                are summed in any case.

        Returns:
            For each tensor, the sum where this rank gets it, else None.
        """
        return list(tensors)

    def gather(
        self,
        action: str,
        groups: Sequence[tuple[Tensor, Sequence[Tensor]]],
        destinations: Sequence[int],
    ) -> list[list[Tensor] | None]:
        """Gather samples that are spread over the ranks, each group on one rank alone.

        Args:
            action: what it is for.
            groups: as of `all_gather`.
            destinations: for each group, the rank that gets all of its samples.

        Returns:
            For each group, as of `all_gather` where this rank gets it, else None.
        """
        return [list(tensors) for _, tensors in groups]

    def broadcast_result(
        self, action: str, source: int, compute: Callable[[], Sequence[Tensor]]
    ) -> list[Tensor]:
        """Compute tensors on one rank, and send them to all.

        Args:
            action: what it is for.
            source: the rank that computes.
            compute: function that returns the tensors; it is called on that rank alone.

        Returns:
            The tensors.
        """
        return list(compute())

    def local_slice(self, total: int) -> slice:
        """Return this rank's part of samples that every rank has."""
        # Rounded ends, not a rounded length: the parts cover everything and differ by one sample at most.
        return slice(self.rank * total // self.size, (self.rank + 1) * total // self.size)

    def broadcast(self, action: str, tensors: Sequence[Tensor], *, source: int = 0) -> None:
        """Overwrite tensors with those of one rank.

        Args:
            action: what it is for.
            tensors: tensors of the same shapes on all ranks.
            source: that rank.
        """
