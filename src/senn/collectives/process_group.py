"""Communicator of the processes of a `torch.distributed` group."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from senn._validate import check, one_of
from senn.collectives.flat_operations import gather_texts, reduce_flat
from senn.collectives.packing import (
    BUCKET_BYTES,
    buckets,
    flatten,
    in_order,
    on_backend_device,
    pack,
    split,
)
from senn.collectives.rendezvous import Rendezvous, format_ranks
from senn.collectives.single_process import Communicator
from senn.errors import SennError

TIMEOUT = 45.0
"""Seconds that a rank is waited for.

Half of it can be too short for a rank that writes a checkpoint or compiles a kernel meanwhile; of twice of it, a user
waits 90 seconds to learn that a rank has died.
"""


class ProcessGroupCommunicator(Communicator):
    """Communicator of the processes of a `torch.distributed` group.

    Args:
        group: a process group; None for all processes.
        timeout: seconds that a rank is waited for.
        meets_in: where ranks meet before anything is sent: in the `store`, which names a rank that is missing or late;
            or in the `group` itself, by two of its operations at most. A store serves one rank after the other, which
            takes too long for hundreds of them. A rank that is missing is then noticed by the group's own timeout,
            and named where its backend survives that (gloo).

    Raises:
        SennError: `torch.distributed` isn't initialized.
    """

    _n_created = 0

    def __init__(
        self,
        group: Any = None,
        *,
        timeout: float = TIMEOUT,
        meets_in: Literal["store", "group"] = "store",
    ) -> None:
        check("meets_in", meets_in, one_of("store", "group"))
        dist: Any = torch.distributed
        if not (dist.is_available() and dist.is_initialized()):
            raise SennError(
                "there is no process group: call torch.distributed.init_process_group first"
            )
        super().__init__(dist.get_rank(group), dist.get_world_size(group))
        self.timeout = timedelta(seconds=timeout)
        # The same number on all ranks, which create the same communicators in the same order: keys don't collide.
        ProcessGroupCommunicator._n_created += 1
        members = dist.get_process_group_ranks(group or dist.group.WORLD)
        name = (
            f"senn/{ProcessGroupCommunicator._n_created}/{members[0]}-{members[-1]}x{len(members)}"
        )
        store = dist.PrefixStore(name, dist.distributed_c10d._get_default_store())
        gather = self._gather_texts if meets_in == "group" else None
        self._rendezvous = Rendezvous(store, self.rank, self.size, self.timeout, gather)
        self._members, self._group = members, group
        self._data_group: Any = None
        self._depth = 0

    # -- meeting in the store

    def all_gather_object(self, action: str, value: Any = None) -> list[Any]:  # noqa: D102
        values, n_bytes = self._rendezvous.exchange(action, {"at": action, "value": value})
        self.sent["meetings"] += n_bytes
        return values

    def all_gather_result(self, action: str, compute: Callable[[], Any]) -> list[Any]:  # noqa: D102
        with self._reporting(action):
            return self.all_gather_object(action, compute())

    @contextmanager
    def fail_together(self, action: str) -> Iterator[None]:  # noqa: D102
        with self._reporting(action):
            yield
            self.all_gather_object(action)

    def interrupt_when(self, interrupted: Callable[[], bool]) -> None:  # noqa: D102
        self._rendezvous.interrupted = interrupted

    @contextmanager
    def _reporting(self, action: str) -> Iterator[None]:
        """Report a failure of this rank, so that the others fail at their next meeting."""
        self._depth += 1
        try:
            yield
        except BaseException as error:
            if not self._rendezvous.reported:
                self._rendezvous.report(action, error)
            raise
        finally:
            self._depth -= 1
            if not self._depth:  # the outermost block: the next failure is another one
                self._rendezvous.reported = False

    def assert_equal(self, action: str, marks: Mapping[str, Any]) -> None:
        """Compare values by digests of their representations.

        Args:
            action: what all ranks are about to do.
            marks: values to compare, by what they are.
        """
        digests = {name: _digest(_without_addresses(value)) for name, value in marks.items()}
        # One digest of all digests first: only where it differs are the single ones sent.
        if len({*self.all_gather_object(action, _digest(digests))}) == 1:
            return
        answers = self.all_gather_object(action, digests)
        for name in digests:
            found = [answer.get(name) for answer in answers]
            if len({*found}) == 1:
                continue
            # The majority is taken to be right; in a tie, as between two ranks, rank 0 is.
            usual = max(found, key=lambda digest: (found.count(digest), digest == found[0]))
            others = [rank for rank in range(self.size) if found[rank] != usual]
            self._fail(
                f"{format_ranks(others)} of {self.size} differs from the others in {name}, about to {action}"
            )

    def _gather_texts(self, action: str, text: str) -> list[str]:
        """Gather a text of every rank by operations of the group."""

        def gather(own: Tensor) -> list[Tensor]:
            own = on_backend_device(own, self._group)
            every = [torch.empty_like(own) for _ in range(self.size)]
            self._run(action, 0.0, partial(torch.distributed.all_gather, every, own))
            return every

        return gather_texts(text, gather)

    # -- sending tensors

    def all_gather(
        self, action: str, groups: Sequence[tuple[Tensor, Sequence[Tensor]]]
    ) -> list[list[Tensor]]:
        """Gather samples as rows of bytes, so that tensors of different types go together.

        Args:
            action: what it is for.
            groups: as of `Communicator.all_gather`.
        """
        if not groups:
            return []
        layouts = [[[str(x.dtype), *x.shape[1:]] for x in tensors] for _, tensors in groups]
        answers = self.all_gather_object(
            action, [[len(positions) for positions, _ in groups], layouts]
        )
        self._assert_same_layout(action, [layout for _, layout in answers])
        gathered = []
        for number, (positions, tensors) in enumerate(groups):
            counts = [of_groups[number] for of_groups, _ in answers]
            packed = on_backend_device(pack([positions, *tensors]), self._group)
            # all_gather needs one shape on all ranks: padded to the most rows that one has
            padded = packed.new_zeros(max(counts), packed.shape[1])
            padded[: len(packed)] = packed
            every = [torch.empty_like(padded) for _ in range(self.size)]
            call = partial(torch.distributed.all_gather, every, padded)
            self._run(action, padded.nbytes * (self.size - 1), call)
            rows = torch.cat([one[:count] for one, count in zip(every, counts, strict=True)])
            gathered.append(in_order(rows, positions, tensors))
        return gathered

    def all_reduce(
        self, action: str, tensors: Sequence[Tensor], *, meet: bool = True
    ) -> list[Tensor]:
        """Sum tensors over all ranks, bucket by bucket.

        Args:
            action: what it is for.
            tensors: tensors of the same shapes on all ranks.
            meet: False where a meeting has just taken place, as in a training step.
        """
        if meet:
            self._meet_with_layout(action, tensors)
        result = list(tensors)
        for bucket in buckets(tensors, BUCKET_BYTES):
            flat = flatten(tensors, bucket, self._group)
            n_bytes = 2 * flat.nbytes * (self.size - 1) / self.size  # of a ring all-reduce
            self._run(action, n_bytes, partial(torch.distributed.all_reduce, flat))
            for i, part in zip(bucket, split(flat, tensors, bucket), strict=True):
                result[i] = part.view(tensors[i].shape).to(tensors[i].device)
        return result

    def reduce(
        self,
        action: str,
        tensors: Sequence[Tensor],
        destinations: Sequence[int],
        *,
        dtype: torch.dtype | None = None,
    ) -> list[Tensor | None]:
        """Sum tensors over all ranks, each for one rank alone: half of what `all_reduce` sends.

        Every rank sums an equal share of the numbers, in the order of ranks, and sends it on. So no rank receives more
        than it sends, whoever gets the sums, and a number that is sent in a shorter type is rounded once.

        Args:
            action: what it is for.
            tensors: tensors of the same shapes on all ranks.
            destinations: for each tensor, the rank that gets the sum.
            dtype: floating-point type to send in; None for that of the tensors.

        Returns:
            As of `Communicator.reduce`.
        """
        self._meet_with_layout(action, tensors)
        result: list[Tensor | None] = [
            x if destination == self.rank else None
            for x, destination in zip(tensors, destinations, strict=True)
        ]
        # by destination, so that what one rank gets lies side by side
        order = sorted(range(len(tensors)), key=lambda i: destinations[i])
        for numbers in buckets([tensors[i] for i in order], self.size * BUCKET_BYTES):
            bucket = [order[number] for number in numbers]
            sizes = [0] * self.size
            for i in bucket:
                sizes[destinations[i]] += tensors[i].numel()
            flat = flatten(tensors, bucket, self._group)
            sums = reduce_flat(flat, sizes, dtype, self.rank, partial(self._run, action))
            own = [i for i in bucket if destinations[i] == self.rank]
            for i, part in zip(own, split(sums, tensors, own), strict=True):
                result[i] = part.view(tensors[i].shape).to(tensors[i].device)
        return result

    def gather(
        self,
        action: str,
        groups: Sequence[tuple[Tensor, Sequence[Tensor]]],
        destinations: Sequence[int],
    ) -> list[list[Tensor] | None]:
        """Gather samples as rows of bytes, each group on one rank alone.

        Args:
            action: what it is for.
            groups: as of `Communicator.all_gather`.
            destinations: for each group, the rank that gets all of its samples.

        Returns:
            As of `Communicator.gather`.
        """
        if not groups:
            return []
        layouts = [[[str(x.dtype), *x.shape[1:]] for x in tensors] for _, tensors in groups]
        own_counts = [len(positions) for positions, _ in groups]
        answers = self.all_gather_object(action, [own_counts, _digest(layouts)])
        self._assert_same_layout(action, [layout for _, layout in answers])
        order = sorted(range(len(groups)), key=lambda i: destinations[i])
        packed = [pack([positions, *tensors]) for positions, tensors in groups]
        to, own = [0] * self.size, [i for i in order if destinations[i] == self.rank]
        for i in order:
            to[destinations[i]] += packed[i].numel()
        # bytes of each of this rank's groups on each rank
        parts = [[counts[i] * packed[i].shape[1] for i in own] for counts, _ in answers]
        of = [sum(part) for part in parts]
        flat = on_backend_device(torch.cat([packed[i].flatten() for i in order]), self._group)
        every = flat.new_empty(sum(of))
        call = partial(torch.distributed.all_to_all_single, every, flat, of, to)
        self._run(action, sum(to) - to[self.rank], call)
        pieces = torch.split(every, [size for part in parts for size in part])
        result: list[list[Tensor] | None] = [None] * len(groups)
        for number, i in enumerate(own):
            width, (positions, tensors) = packed[i].shape[1], groups[i]
            # of every rank one piece for each group
            rows = torch.cat([piece.view(-1, width) for piece in pieces[number :: len(own)]])
            result[i] = in_order(rows, positions, tensors)
        return result

    def broadcast(self, action: str, tensors: Sequence[Tensor], *, source: int = 0) -> None:
        """Overwrite tensors with those of one rank, bucket by bucket.

        Args:
            action: what it is for.
            tensors: tensors of the same shapes on all ranks.
            source: that rank.
        """
        self._meet_with_layout(action, tensors)
        self._send(action, tensors, source)

    def broadcast_result(
        self, action: str, source: int, compute: Callable[[], Sequence[Tensor]]
    ) -> list[Tensor]:
        """Compute tensors on one rank, and send them to all; if it fails, all do.

        Args:
            action: what it is for.
            source: the rank that computes.
            compute: function that returns the tensors.

        Returns:
            The tensors.
        """
        with self._reporting(action):
            own = [x.detach().contiguous() for x in compute()] if self.rank == source else []
            # the type of the device alone: each rank has a GPU of its own
            layout = [[str(x.dtype).removeprefix("torch."), x.device.type, *x.shape] for x in own]
            found = self.all_gather_object(action, layout)[source]
        if self.rank != source:
            own = [
                torch.empty(shape, dtype=getattr(torch, dtype), device=device)
                for dtype, device, *shape in found
            ]
        self._send(action, own, source)
        return own

    def _send(self, action: str, tensors: Sequence[Tensor], source: int) -> None:
        """Overwrite tensors with those of one rank, for which all have met."""
        for bucket in buckets(tensors, BUCKET_BYTES):
            flat = flatten(tensors, bucket, self._group)
            n_bytes = flat.nbytes if self.rank == source else 0
            call = partial(torch.distributed.broadcast, flat, self._members[source])
            self._run(action, n_bytes, call)
            with torch.no_grad():
                for i, part in zip(bucket, split(flat, tensors, bucket), strict=True):
                    tensors[i].copy_(part.view(tensors[i].shape))

    def _run(self, action: str, n_bytes: float, call: Callable[..., Any]) -> None:
        """Carry out one collective operation for which all ranks have met.

        Args:
            action: what it is for, an imperative phrase.
            n_bytes: bytes that this rank sends.
            call: the operation, but for its group.
        """
        dist: Any = torch.distributed
        try:
            if self._data_group is None:
                # A group of its own: the user's may wait half an hour for a rank that has died.
                self._data_group = dist.new_group(
                    None if self._group is None else self._members,
                    timeout=self.timeout,
                    use_local_synchronization=self._group is not None,
                )
            self.sent[action] += n_bytes
            call(group=self._data_group)
        except RuntimeError as error:
            self._rendezvous.name_the_lost(action)
            raise SennError(
                f"the ranks could not {action}: {str(error).splitlines()[0]}"
            ) from error

    def _meet_with_layout(self, action: str, tensors: Sequence[Tensor]) -> None:
        """Meet all ranks and check that their tensors have the same shapes and types."""
        layout = _digest([[str(x.dtype), *x.shape] for x in tensors])
        self._assert_same_layout(action, self.all_gather_object(action, layout))

    def _assert_same_layout(self, action: str, layouts: Sequence[Any]) -> None:
        others = [rank for rank in range(self.size) if layouts[rank] != layouts[0]]
        if others:
            self._fail(
                f"{format_ranks(others)} of {self.size} has tensors of other shapes or types than rank 0, about to "
                f"{action}"
            )

    def _fail(self, message: str) -> None:
        """Raise an error that all ranks raise, so that none needs to report it."""
        self._rendezvous.reported = True
        raise SennError(message)


def _without_addresses(value: Any) -> str:
    """Return the repr without addresses in memory, which differ between processes."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _digest(value: Any) -> str:
    # Eight bytes keep messages short; half would let one pair in 2^32 agree by chance.
    return hashlib.blake2b(repr(value).encode(), digest_size=8).hexdigest()
