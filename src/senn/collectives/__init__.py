"""Collective operations of several processes: sums, gathered samples, one decision, comparison, and clear failures.

A global batch is the batches of all ranks, one after the other in the order of ranks, under one permutation that every
rank draws from the same generator. Each rank holds its own samples of that order.

Before tensors are sent, all ranks meet in the store of the process group with a time limit: a rank that is missing, has
failed, or is at another operation ends all of them with one sentence that names it.
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
    """Return a communicator of all processes of `torch.distributed`, or of this one alone.

    >>> default_communicator().size
    1
    """
    global _default
    dist = torch.distributed
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return Communicator()
    group = dist.group.WORLD
    if _default is None or _default[0] is not group:
        _default = group, ProcessGroupCommunicator()
    return _default[1]
