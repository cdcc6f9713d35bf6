"""Last batches of a training loop, kept for a round of growth."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from senn import pytree
from senn.collectives import Communicator
from senn.pytree import Arguments, Inputs
from senn.scoring.global_batch import gather_samples

KeptBatch = tuple[Inputs, Tensor, Tensor | None]
"""Inputs, targets and perhaps weights."""


class RecentBatches:
    """Last batches that passed, no more than a round needs.

    Args:
        limit: samples that a round needs, of all processes together.
        communicator: processes that keep batches at the same time, each its own.
    """

    def __init__(self, limit: int, communicator: Communicator) -> None:
        self._limit, self._communicator = limit, communicator
        self._batches: deque[KeptBatch] = deque()
        self._samples = 0

    def add(self, one: KeptBatch) -> None:
        """Keep a batch, and drop the oldest ones that a round doesn't need any more."""
        self._batches.append(one)
        self._samples += self.samples_of(one)
        while self._samples - self.samples_of(self._batches[0]) >= self._limit:
            self._samples -= self.samples_of(self._batches.popleft())

    def samples_of(self, one: KeptBatch) -> int:
        """Estimate the samples of a batch over all processes, as if each had as many as this one.

        An exact number would take an exchange between processes in every step.
        """
        return len(one[1]) * self._communicator.size

    def take(self) -> list[tuple[Inputs, Tensor] | tuple[Inputs, Tensor, Tensor]]:
        """Return all batches, the oldest first, as `Grower.grow` takes them, and keep none of them any more."""
        batches: list[tuple[Inputs, Tensor] | tuple[Inputs, Tensor, Tensor]] = []
        for inputs, targets, weights in self._batches:
            batches.append((inputs, targets) if weights is None else (inputs, targets, weights))
        self._batches.clear()
        self._samples = 0
        return batches

    def state(self) -> list[dict[str, Any]]:
        """Return the batches as nested plain containers and tensors, each joined from the parts of all processes.

        So a run may be resumed by another number of processes.
        """
        return [_plain(one) for one in self._joined()]

    def load(self, saved: Sequence[Mapping[str, Any]], device: torch.device) -> None:
        """Keep this process's parts of the batches that `state` returned.

        Args:
            saved: joined batches.
            device: where the model is.
        """
        for one in saved:
            self._batches.append(self._part(_unplain(one, device)))
        self._samples = sum(map(self.samples_of, self._batches))

    def _joined(self) -> list[KeptBatch]:
        communicator = self._communicator
        lengths = communicator.all_gather_object("keep batches", [len(targets) for _, targets, _ in self._batches])
        # A process may have kept fewer batches than others: all of them have the last ones.
        shared = min(map(len, lengths))
        own_batches = [*self._batches][len(self._batches) - shared :]
        joined: list[KeptBatch] = []
        for number, own in enumerate(own_batches, start=-shared):
            counts = [of_rank[number] for of_rank in lengths]
            start, count = sum(counts[: communicator.rank]), counts[communicator.rank]
            places = torch.arange(start, start + count)
            joined.append(gather_samples(communicator, own, own=slice(0, count), count=count, positions=places))
        return joined

    def _part(self, joint: KeptBatch) -> KeptBatch:
        total = len(joint[1])
        part: KeptBatch = pytree.index_batch(joint, self._communicator.local_slice(total), total)
        return part


def _plain(one: KeptBatch) -> dict[str, Any]:
    """Write a batch as nested plain containers and tensors, which `torch.load(weights_only=True)` reads."""
    inputs, targets, weights = one
    if isinstance(inputs, Tensor):
        kind = "tensor"
    elif isinstance(inputs, Arguments):
        kind = "arguments"
    else:
        kind = "tuple" if isinstance(inputs, tuple) else "mapping"
    args, kwargs = pytree.arguments(inputs)
    return {"kind": kind, "args": [*args], "kwargs": kwargs, "targets": targets, "weights": weights}


def _unplain(saved: Mapping[str, Any], device: torch.device) -> KeptBatch:
    """Read the batch that `_plain` wrote, on a device."""
    on = pytree.map_leaves(lambda tensor: tensor.to(device), dict(saved))
    args, kwargs = tuple(on["args"]), dict(on["kwargs"])
    if saved["kind"] == "arguments":
        return Arguments(*args, **kwargs), on["targets"], on["weights"]
    made: dict[str, Any] = {"tensor": args[0] if args else None, "tuple": args, "mapping": kwargs}
    return made[saved["kind"]], on["targets"], on["weights"]
