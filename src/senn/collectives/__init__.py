"""Several processes as one: sums, samples of a joint batch, one decision, comparison, and a clear end.

A joint batch is the batches of all ranks, one after the other in the order of ranks, under one permutation that every
rank draws from the same generator. Each rank holds the samples of that order that are its own.

Before tensors are sent, all ranks meet in the store of the process group, with a time limit: a rank that is missing,
that failed, or that is somewhere else ends all of them with one sentence that names it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from senn import _deprecated
from senn.collectives.process_group import ProcessGroupCommunicator
from senn.collectives.single_process import BatchShare, Communicator

__all__ = [
    "BatchShare",
    "Communicator",
    "ProcessGroupCommunicator",
    "default_communicator",
]

if not TYPE_CHECKING:
    __getattr__ = _deprecated.old_names(__name__)


_default: tuple[Any, Communicator] | None = None


def default_communicator() -> Communicator:
    """All processes of `torch.distributed` where it is initialised with several; else this process alone."""
    global _default
    dist = torch.distributed
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return Communicator()
    group = dist.group.WORLD
    if _default is None or _default[0] is not group:
        _default = group, ProcessGroupCommunicator()
    return _default[1]
