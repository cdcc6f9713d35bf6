"""The processes of a `torch.distributed` group."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import Tensor

from senn import errors
from senn.collectives.single_process import Communicator
from senn.errors import SennError

TIMEOUT = 45.0
"""Seconds that a rank is waited for."""

SMALL = 1 << 20
"""Bytes up to which tensors are sent together."""


class ProcessGroupCommunicator(Communicator):
    """The processes of a `torch.distributed` group.

    Args:
        group: default: all processes.
        timeout: seconds that a rank is waited for.

    Raises:
        SennError: `torch.distributed` isn't initialised.
    """

    _made = 0

    def __init__(self, group: Any = None, *, timeout: float = TIMEOUT) -> None:
        dist: Any = torch.distributed
        if not (dist.is_available() and dist.is_initialized()):
            raise SennError("there is no process group: call torch.distributed.init_process_group first")
        super().__init__(dist.get_rank(group), dist.get_world_size(group))
        self.timeout = timedelta(seconds=timeout)
        ProcessGroupCommunicator._made += 1  # alike on all ranks, as they make the same objects in the same order
        members = dist.get_process_group_ranks(group or dist.group.WORLD)
        name = f"senn/{ProcessGroupCommunicator._made}/{members[0]}-{members[-1]}x{len(members)}"
        self._store: Any = dist.PrefixStore(name, torch.distributed.distributed_c10d._get_default_store())
        self._members, self._group = members, group
        self._data: Any = None
        self._turn = self._depth = 0
        self._told = False

    # -- meeting in the store

    def all_gather_object(self, what: str, value: Any = None) -> list[Any]:  # noqa: D102
        return self._meet(what, {"at": what, "value": value})

    def _meet(self, what: str, mine: Mapping[str, Any]) -> list[Any]:
        self._turn += 1
        text = json.dumps(mine)
        self._count("meetings", len(text))
        keys = [f"{self._turn}/{rank}" for rank in range(self.size)]
        try:
            self._store.set(keys[self.rank], text)
            self._wait(keys, what, "did not come to")
            several = self._store.multi_get(keys) if self._store.has_extended_api() else map(self._store.get, keys)
            said = [json.loads(one) for one in several]
            if self._turn > 2:  # all have read it: they have been at the one after it
                self._store.delete_key(f"{self._turn - 2}/{self.rank}")
        except (RuntimeError, OSError) as error:
            self._told = True
            raise SennError(
                f"rank {self.rank} can't reach the store of the process group to {what}: the process that keeps it, "
                f"mostly rank 0, has ended"
            ) from error
        failed = [(rank, one) for rank, one in enumerate(said) if "error" in one]
        if failed:
            self._told = True
            rank, one = failed[0]
            kind: type[BaseException] = getattr(errors, one["error"], SennError)
            if one["error"] in ("KeyboardInterrupt", "Interrupted"):  # then this rank is interrupted too
                kind = KeyboardInterrupt
            raise kind(f"rank {rank} failed when it was to {one['at']}: {one['message']}")
        places = [one["at"] for one in said]
        if len({*places}) > 1:
            self._told = True
            other = next(rank for rank in range(self.size) if places[rank] != places[0])
            raise SennError(
                f"rank {other} was to {places[other]} when rank 0 was to {places[0]}: all ranks must do the same"
            )
        return [one["value"] for one in said]

    def _wait(self, keys: Sequence[str], what: str, verb: str, timeout: timedelta | None = None) -> None:
        """Wait for all ranks, or say who is missing."""
        timeout = timeout or self.timeout
        try:
            self._store.wait([*keys], timeout)
        except RuntimeError:
            missing = [rank for rank, key in enumerate(keys) if not self._store.check([key])]
            if missing:
                self._told = True
                raise SennError(
                    f"{_rank_names(missing)} of {self.size} {verb} {what} within {timeout.total_seconds():g} s: "
                    f"it has ended or does something else"
                ) from None

    @contextmanager
    def fail_together(self, what: str) -> Iterator[None]:  # noqa: D102
        self._depth += 1
        try:
            yield
            self.all_gather_object(what)
        except BaseException as error:
            if not self._told:
                self._tell(what, error)
            raise
        finally:
            self._depth -= 1
            if not self._depth:
                self._told = False

    def _tell(self, what: str, error: BaseException) -> None:
        """Have the others fail as well, at the next place where they meet."""
        known = isinstance(error, SennError)
        message = str(error) if known else f"{type(error).__name__}: {error}"
        with contextlib.suppress(SennError):  # its own error says more
            self._meet(what, {"at": what, "error": type(error).__name__, "message": message})

    def assert_equal(self, what: str, marks: Mapping[str, Any]) -> None:  # noqa: D102
        digest = {name: _digest(_plain(value)) for name, value in marks.items()}
        if len({*self.all_gather_object(what, _digest(digest))}) == 1:
            return
        said = self.all_gather_object(what, digest)
        for name in digest:
            found = [one.get(name) for one in said]
            if len({*found}) == 1:
                continue
            usual = max(found, key=lambda one: (found.count(one), one == found[0]))
            others = [rank for rank in range(self.size) if found[rank] != usual]
            self._told = True
            raise SennError(f"{_rank_names(others)} of {self.size} differs from the others in {name}, when they {what}")

    # -- sending tensors

    def all_gather(self, what: str, groups: Sequence[tuple[Tensor, Sequence[Tensor]]]) -> list[list[Tensor]]:  # noqa: D102
        if not groups:
            return []
        shapes = [[[str(x.dtype), *x.shape[1:]] for x in tensors] for _, tensors in groups]
        said = self.all_gather_object(what, [[len(positions) for positions, _ in groups], shapes])
        self._same(what, [one[1] for one in said])
        found = []
        for number, (positions, tensors) in enumerate(groups):
            counts = [one[0][number] for one in said]
            packed = self._sendable(_packed([positions, *tensors]))
            room = packed.new_zeros(max(counts), packed.shape[1])
            room[: len(packed)] = packed
            every = [torch.empty_like(room) for _ in range(self.size)]
            self._send(what, room.nbytes * (self.size - 1), partial(self._dist.all_gather, every, room))
            rows = torch.cat([one[:count] for one, count in zip(every, counts, strict=True)])
            order, *columns = _unpacked(rows, [positions, *tensors])
            place = order.argsort()
            found.append([c[place].to(x.device) for c, x in zip(columns, tensors, strict=True)])
        return found

    def all_reduce(self, what: str, tensors: Sequence[Tensor], *, meet: bool = True) -> list[Tensor]:  # noqa: D102
        if meet:
            self._same(what, self.all_gather_object(what, [[str(x.dtype), *x.shape] for x in tensors]))
        result = list(tensors)
        for bucket in _buckets(tensors):
            flat = self._sendable(torch.cat([tensors[i].detach().reshape(-1) for i in bucket]))
            share = 2 * flat.nbytes * (self.size - 1) / self.size
            self._send(what, share, partial(self._dist.all_reduce, flat))
            for i, part in zip(bucket, torch.split(flat, [tensors[i].numel() for i in bucket]), strict=True):
                result[i] = part.view(tensors[i].shape).to(tensors[i].device)
        return result

    def broadcast(self, what: str, tensors: Sequence[Tensor]) -> None:  # noqa: D102
        said = self.all_gather_object(what, [[str(x.dtype), *x.shape] for x in tensors])
        self._same(what, said)
        for bucket in _buckets(tensors):
            flat = self._sendable(torch.cat([tensors[i].detach().reshape(-1) for i in bucket]))
            self._send(
                what, flat.nbytes if self.rank == 0 else 0, partial(self._dist.broadcast, flat, self._members[0])
            )
            with torch.no_grad():
                for i, part in zip(bucket, torch.split(flat, [tensors[i].numel() for i in bucket]), strict=True):
                    tensors[i].copy_(part.view(tensors[i].shape))

    @property
    def _dist(self) -> Any:
        return torch.distributed

    def _send(self, what: str, size: float, call: Callable[..., Any]) -> None:
        """Carry out one collective operation, for which all ranks have met; `size` bytes are sent."""
        try:
            if self._data is None:  # a group of its own, since its time limit is shorter
                self._data = self._dist.new_group(
                    None if self._group is None else self._members, timeout=self.timeout,
                    use_local_synchronization=self._group is not None,
                )  # fmt: skip
            self._count(what, size)
            call(group=self._data)
        except RuntimeError as error:
            keys = [f"lost/{self._turn}/{rank}" for rank in range(self.size)]
            self._told = True
            try:
                self._store.set(keys[self.rank], "")
                self._wait(keys, what, "was lost while all ranks were to", min(self.timeout, timedelta(seconds=10)))
            except (RuntimeError, OSError):
                pass
            raise SennError(f"the ranks could not {what}: {str(error).splitlines()[0]}") from error

    def _sendable(self, flat: Tensor) -> Tensor:
        """Where the group's backend can send it from."""
        if flat.device.type == "cpu" and self._dist.get_backend(self._group) == "nccl":
            return flat.to(f"cuda:{torch.cuda.current_device()}")
        return flat

    def _same(self, what: str, said: Sequence[Any]) -> None:
        others = [rank for rank in range(self.size) if said[rank] != said[0]]
        if others:
            self._told = True
            raise SennError(
                f"{_rank_names(others)} of {self.size} has tensors of other shapes or types than rank 0, "
                f"when they {what}"
            )

    def _count(self, what: str, size: float) -> None:
        self.sent[what] = self.sent.get(what, 0.0) + size


def _rank_names(numbers: Sequence[int]) -> str:
    return ("rank " if len(numbers) == 1 else "ranks ") + ", ".join(map(str, numbers))


def _plain(value: Any) -> str:
    """As text, without addresses in memory, which differ between processes."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _digest(value: Any) -> str:
    return hashlib.blake2b(repr(value).encode(), digest_size=8).hexdigest()


def _packed(tensors: Sequence[Tensor]) -> Tensor:
    """(samples, bytes) of tensors (samples, ...)."""
    device = tensors[-1].device
    rows = [x.detach().to(device).reshape(len(x), x.shape[1:].numel()) for x in tensors]
    return torch.cat([x.contiguous().view(torch.uint8) for x in rows], 1)


def _unpacked(rows: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that were packed."""
    widths = [x.shape[1:].numel() * x.element_size() for x in like]
    parts = torch.split(rows, widths, 1)
    return [
        part.clone(memory_format=torch.contiguous_format).view(x.dtype).view(len(rows), *x.shape[1:])
        for part, x in zip(parts, like, strict=True)
    ]


def _buckets(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Numbers of the tensors that are sent together: small ones of one type; none of those without entries."""
    buckets: list[list[int]] = []
    open_: dict[Any, list[int]] = {}
    room: dict[Any, int] = {}
    for i, x in enumerate(tensors):
        if not x.numel():
            continue
        key = (x.dtype, x.device)
        if key not in open_ or room[key] + x.nbytes > SMALL:
            open_[key], room[key] = [], 0
            buckets.append(open_[key])
        open_[key].append(i)
        room[key] += x.nbytes
    return buckets
