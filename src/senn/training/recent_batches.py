"""The last batches of a training loop, kept for a round of growth."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from senn import pytree
from senn.collectives import Communicator
from senn.pytree import Arguments, Inputs
from senn.scoring.global_batch import everyones

KeptBatch = tuple[Inputs, Tensor, Tensor | None]
"""Inputs, targets and perhaps weights."""


class RecentBatches:
    """The last batches that passed, no more than a round needs.

    Args:
        limit: samples that a round needs, of all processes together.
        communicator: processes that keep batches at the same time, each its own.
    """

    def __init__(self, limit: int, communicator: Communicator) -> None:
        self._limit, self._communicator = limit, communicator
        self._batches: deque[KeptBatch] = deque()
        self._samples = 0

    def add(self, one: KeptBatch) -> None:
        """Keep a batch; those before it go where enough samples are left without them."""
        self._batches.append(one)
        self._samples += self.samples_of(one)
        while self._samples - self.samples_of(self._batches[0]) >= self._limit:
            self._samples -= self.samples_of(self._batches.popleft())

    def samples_of(self, one: KeptBatch) -> int:
        """Samples of a batch of all processes, on the guess that each has as many as this one."""
        return len(one[1]) * self._communicator.size

    def take(self) -> list[tuple[Inputs, Tensor] | tuple[Inputs, Tensor, Tensor]]:
        """All batches, the oldest first, as `Grower.grow` takes them; none are kept any more."""
        batches = [
            (inputs, targets) if weights is None else (inputs, targets, weights)
            for inputs, targets, weights in self._batches
        ]
        self._batches.clear()
        self._samples = 0
        return batches

    def state(self) -> list[dict[str, Any]]:
        """The batches as nested plain containers and tensors, each joined of the parts of all processes."""
        return [_plain(one) for one in self._joined()]

    def load(self, saved: Sequence[Mapping[str, Any]], device: torch.device) -> None:
        """Keep this process's parts of the batches that `state` gave, on a device."""
        self._batches.extend(self._part(_unplain(one, device)) for one in saved)
        self._samples = sum(map(self.samples_of, self._batches))

    def _joined(self) -> list[KeptBatch]:
        communicator, found = self._communicator, list[KeptBatch]()
        lengths = communicator.all_gather_object("keep batches", [len(targets) for _, targets, _ in self._batches])
        # A process may have kept fewer batches than others: the last ones are those that all have.
        fewest = min(map(len, lengths))
        for number, own in enumerate([*self._batches][len(self._batches) - fewest :], start=-fewest):
            counts = [one[number] for one in lengths]
            start, count = sum(counts[: communicator.rank]), counts[communicator.rank]
            found.append(everyones(communicator, own, slice(0, count), count, torch.arange(start, start + count)))
        return found

    def _part(self, joint: KeptBatch) -> KeptBatch:
        total = len(joint[1])
        part: KeptBatch = pytree.index_batch(joint, self._communicator.local_slice(total), total)
        return part


def _plain(one: KeptBatch) -> dict[str, Any]:
    """A batch as nested plain containers and tensors."""
    inputs, targets, weights = one
    args, kwargs = pytree.arguments(inputs)
    kind = "tensor" if isinstance(inputs, Tensor) else "tuple" if isinstance(inputs, tuple) else "mapping"
    kind = "arguments" if isinstance(inputs, Arguments) else kind
    return {"kind": kind, "args": [*args], "kwargs": kwargs, "targets": targets, "weights": weights}


def _unplain(saved: Mapping[str, Any], device: torch.device) -> KeptBatch:
    """The batch that `_plain` was given, on a device."""
    on = pytree.map_leaves(lambda tensor: tensor.to(device), dict(saved))
    args, kwargs = tuple(on["args"]), dict(on["kwargs"])
    made: dict[str, Any] = {"tensor": args[0] if args else None, "tuple": args, "mapping": kwargs}
    inputs = Arguments(*args, **kwargs) if saved["kind"] == "arguments" else made[saved["kind"]]
    return inputs, on["targets"], on["weights"]
