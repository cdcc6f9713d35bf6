"""Communicator of the processes of a `torch.distributed` group."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import Tensor

from senn.collectives.rendezvous import Rendezvous, format_ranks
from senn.collectives.single_process import Communicator
from senn.errors import SennError

TIMEOUT = 45.0
"""Seconds that a rank is waited for.

Half of it can be too short for a rank that writes a checkpoint or compiles a kernel meanwhile; of twice of it, a user
waits 90 seconds to learn that a rank has died.
"""

BUCKET_BYTES = 1 << 20
"""Bytes up to which tensors are sent together.

Small tensors cost a latency each; beyond a megabyte bandwidth decides, and a larger bucket only needs more memory.
"""


class ProcessGroupCommunicator(Communicator):
    """Communicator of the processes of a `torch.distributed` group.

    Args:
        group: a process group; None for all processes.
        timeout: seconds that a rank is waited for.

    Raises:
        SennError: `torch.distributed` isn't initialized.
    """

    _n_created = 0

    def __init__(self, group: Any = None, *, timeout: float = TIMEOUT) -> None:
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
        self._rendezvous = Rendezvous(store, self.rank, self.size, self.timeout)
        self._members, self._group = members, group
        self._data_group: Any = None
        self._depth = 0

    # -- meeting in the store

    def all_gather_object(self, action: str, value: Any = None) -> list[Any]:
        """Gather a value of every rank through the store.

        Args:
            action: what it is for.
            value: whatever JSON can hold.
        """
        values, n_bytes = self._rendezvous.exchange(action, {"at": action, "value": value})
        self.sent["meetings"] += n_bytes
        return values

    @contextmanager
    def fail_together(self, action: str) -> Iterator[None]:  # noqa: D102
        self._depth += 1
        try:
            yield
            self.all_gather_object(action)
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
            packed = _on_backend_device(_pack([positions, *tensors]), self._group)
            # all_gather needs one shape on all ranks: padded to the most rows that one has
            padded = packed.new_zeros(max(counts), packed.shape[1])
            padded[: len(packed)] = packed
            every = [torch.empty_like(padded) for _ in range(self.size)]
            call = partial(torch.distributed.all_gather, every, padded)
            self._run(action, padded.nbytes * (self.size - 1), call)
            rows = torch.cat([one[:count] for one, count in zip(every, counts, strict=True)])
            order, *columns = _unpack(rows, [positions, *tensors])
            index = order.argsort()
            gathered.append(
                [column[index].to(x.device) for column, x in zip(columns, tensors, strict=True)]
            )
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
        for bucket in _buckets(tensors):
            flat = _flatten(tensors, bucket, self._group)
            n_bytes = 2 * flat.nbytes * (self.size - 1) / self.size  # of a ring all-reduce
            self._run(action, n_bytes, partial(torch.distributed.all_reduce, flat))
            for i, part in zip(bucket, _split(flat, tensors, bucket), strict=True):
                result[i] = part.view(tensors[i].shape).to(tensors[i].device)
        return result

    def broadcast(self, action: str, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors with those of rank 0, bucket by bucket.

        Args:
            action: what it is for.
            tensors: tensors of the same shapes on all ranks.
        """
        self._meet_with_layout(action, tensors)
        for bucket in _buckets(tensors):
            flat = _flatten(tensors, bucket, self._group)
            n_bytes = flat.nbytes if self.rank == 0 else 0
            self._run(action, n_bytes, partial(torch.distributed.broadcast, flat, self._members[0]))
            with torch.no_grad():
                for i, part in zip(bucket, _split(flat, tensors, bucket), strict=True):
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
        self._assert_same_layout(
            action, self.all_gather_object(action, [[str(x.dtype), *x.shape] for x in tensors])
        )

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


def _pack(tensors: Sequence[Tensor]) -> Tensor:
    """Pack tensors (samples, ...) of any types into rows of bytes, (samples, bytes)."""
    device = tensors[-1].device
    rows = [x.detach().to(device).reshape(len(x), x.shape[1:].numel()) for x in tensors]
    return torch.cat([x.contiguous().view(torch.uint8) for x in rows], 1)


def _unpack(rows: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Recover packed tensors, of the types and shapes of `like`, for any number of rows."""
    widths = [x.shape[1:].numel() * x.element_size() for x in like]
    parts = torch.split(rows, widths, 1)
    return [
        # A clone, since the bytes of a view needn't be aligned for the type.
        part.clone(memory_format=torch.contiguous_format)
        .view(x.dtype)
        .view(len(rows), *x.shape[1:])
        for part, x in zip(parts, like, strict=True)
    ]


def _flatten(tensors: Sequence[Tensor], bucket: Sequence[int], group: Any) -> Tensor:
    """Concatenate the tensors of a bucket on the device that the group's backend sends from."""
    return _on_backend_device(torch.cat([tensors[i].detach().reshape(-1) for i in bucket]), group)


def _on_backend_device(flat: Tensor, group: Any) -> Tensor:
    """Move a tensor to where the group's backend can send it from: NCCL sends from GPUs only."""
    if flat.device.type == "cpu" and torch.distributed.get_backend(group) == "nccl":
        return flat.to(f"cuda:{torch.cuda.current_device()}")
    return flat


def _split(flat: Tensor, tensors: Sequence[Tensor], bucket: Sequence[int]) -> Sequence[Tensor]:
    """Split what `_flatten` has joined."""
    return torch.split(flat, [tensors[i].numel() for i in bucket])


def _buckets(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Group the numbers of tensors that are sent together: small ones of one type and device."""
    buckets: list[list[int]] = []
    open_buckets: dict[Any, list[int]] = {}
    n_bytes: dict[Any, int] = {}
    for i, x in enumerate(tensors):
        if not x.numel():  # nothing to send
            continue
        key = (x.dtype, x.device)
        if key not in open_buckets or n_bytes[key] + x.nbytes > BUCKET_BYTES:
            open_buckets[key], n_bytes[key] = [], 0
            buckets.append(open_buckets[key])
        open_buckets[key].append(i)
        n_bytes[key] += x.nbytes
    return buckets
