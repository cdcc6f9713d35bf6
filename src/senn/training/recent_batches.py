"""Last batches of a training loop, kept for a round of growth."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from senn import pytree
from senn.collectives import Communicator
from senn.errors import SennError
from senn.pytree import Arguments, Inputs, Prepare, Targets
from senn.scoring.global_batch import gather_samples
from senn.training.round_records import describe_error

KeptBatch = tuple[Inputs, Targets, Tensor | None]
"""Inputs, targets and perhaps weights."""


def unpack(one: Any) -> Sequence[Any]:
    """Return a batch that is inputs, targets and perhaps weights already.

    Raises:
        SennError: the batch is something else.
    """
    if not isinstance(one, tuple | list) or len(one) not in (2, 3):
        raise SennError(
            f"a batch of this loop is a {type(one).__name__}, not inputs, targets and perhaps weights: "
            "say by prepare=... what they are"
        )
    return one


class RecentBatches:
    """Last batches that passed, no more than a round needs.

    Args:
        limit: samples that a round needs, of all processes together.
        communicator: processes that keep batches at the same time, each its own.

    Attributes:
        samples_per_batch: samples of the last batch, of all processes together; 0 before the first.
    """

    def __init__(self, limit: int, communicator: Communicator) -> None:
        self.samples_per_batch = 0
        self._limit, self._communicator = limit, communicator
        self._batches: deque[KeptBatch] = deque()
        self._samples = 0
        self._trouble: Exception | None = None

    def needed(self, steps: int) -> bool:
        """Return True if a batch that passes so many steps before a round is one of those that the round needs."""
        # The first batch of all is needed too: only it tells how many samples a batch has, hence how many batches make
        # up a round.
        return not self.samples_per_batch or steps * self.samples_per_batch < self._limit

    def read(self, one: Any, prepare: Prepare) -> KeptBatch | None:
        """Copy a batch of the loop, and note how many samples it has.

        Args:
            one: the batch.
            prepare: makes inputs, targets and perhaps weights of it.

        Returns:
            The copy; None if it can't be made, which `exchange_troubles` reports.
        """
        try:
            inputs, targets, *weights = prepare(one)
            pytree.count_samples(inputs, targets)
            # A copy: loops may write the next batch into the same memory.
            own: KeptBatch = pytree.clone((inputs, targets, weights[0] if weights else None))
        except (
            Exception
        ) as error:  # `prepare` is the user's and may raise anything; the loop goes on
            self._trouble = error
            return None
        self.samples_per_batch = self.samples_of(own)
        return own

    def exchange_troubles(self) -> tuple[list[str], bool]:
        """Collect what has prevented processes from keeping a batch since the last call.

        All processes must come to the same decision, since a round that one of them skips would leave the others
        waiting.

        Returns:
            A sentence for each trouble; True if all processes have kept a batch nevertheless.
        """
        own = None if self._trouble is None else describe_error(self._trouble)
        self._trouble = None
        answers = self._communicator.all_gather_object("keep a batch", [own, bool(self._batches)])
        texts = []
        for rank, (text, _) in enumerate(answers):
            if text:
                texts.append(text if self._communicator.is_single else f"on rank {rank}, {text}")
        return texts, all(has_batch for _, has_batch in answers)

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
        return pytree.count(one[1]) * self._communicator.size

    def take(self) -> list[tuple[Inputs, Targets] | tuple[Inputs, Targets, Tensor]]:
        """Return all batches, the oldest first, as `Grower.grow` takes them, and keep none of them any more."""
        batches: list[tuple[Inputs, Targets] | tuple[Inputs, Targets, Tensor]] = []
        for inputs, targets, weights in self._batches:
            batches.append((inputs, targets) if weights is None else (inputs, targets, weights))
        self._batches.clear()
        self._samples = 0
        return batches

    def state(self) -> list[dict[str, Any]]:
        """Return the batches as nested plain containers and tensors, each joined from the parts of all processes.

        So a run may be resumed by another number of processes. Batches of other classes (dataclasses) are left out, as
        a file can't hold them: a resumed run collects new ones.
        """
        batches = [_plain(one) for one in self._joined()]
        return [one for one in batches if _is_plain(one)]

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
        lengths = communicator.all_gather_object(
            "keep batches", [pytree.count(targets) for _, targets, _ in self._batches]
        )
        # A process may have kept fewer batches than others: all of them have the last ones.
        shared = min(map(len, lengths))
        own_batches = [*self._batches][len(self._batches) - shared :]
        joined: list[KeptBatch] = []
        for number, own in enumerate(own_batches, start=-shared):
            counts = [of_rank[number] for of_rank in lengths]
            start, count = sum(counts[: communicator.rank]), counts[communicator.rank]
            places = torch.arange(start, start + count)
            joined.append(
                gather_samples(
                    communicator, own, own=slice(0, count), count=count, positions=places
                )
            )
        return joined

    def _part(self, joint: KeptBatch) -> KeptBatch:
        total = pytree.count(joint[1])
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
        kind = "tuple" if isinstance(inputs, tuple) else "single"
        kind = "mapping" if isinstance(inputs, Mapping) else kind
    args, kwargs = pytree.arguments(inputs)
    return {"kind": kind, "args": [*args], "kwargs": kwargs, "targets": targets, "weights": weights}


def _is_plain(tree: Any) -> bool:
    """Return True if a file that can't run code holds it: containers and values of Python's own types, tensors."""
    if type(tree) in (list, tuple):
        return all(map(_is_plain, tree))
    if type(tree) is dict:
        return all(isinstance(key, str) and _is_plain(value) for key, value in tree.items())
    return tree is None or isinstance(tree, Tensor | bool | int | float | str)


def _unplain(saved: Mapping[str, Any], device: torch.device) -> KeptBatch:
    """Read the batch that `_plain` wrote, on a device."""
    on = pytree.map_leaves(lambda tensor: tensor.to(device), dict(saved))
    args, kwargs = tuple(on["args"]), dict(on["kwargs"])
    if saved["kind"] == "arguments":
        return Arguments(*args, **kwargs), on["targets"], on["weights"]
    made: dict[str, Any] = {"tuple": args, "mapping": kwargs}
    if saved["kind"] in ("tensor", "single"):
        return args[0], on["targets"], on["weights"]
    return made[saved["kind"]], on["targets"], on["weights"]
