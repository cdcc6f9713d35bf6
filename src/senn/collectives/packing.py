"""Tensors packed into one that is sent, and unpacked again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BUCKET_BYTES = 1 << 20
"""Bytes up to which tensors are sent together.

Small tensors cost a latency each; beyond a megabyte bandwidth decides, and a larger bucket only needs more memory.
"""


def pack(tensors: Sequence[Tensor]) -> Tensor:
    """Pack tensors (samples, ...) of any types into rows of bytes, (samples, bytes)."""
    device = tensors[-1].device
    rows = [x.detach().to(device).reshape(len(x), x.shape[1:].numel()) for x in tensors]
    return torch.cat([x.contiguous().view(torch.uint8) for x in rows], 1)


def unpack(rows: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
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


def flatten(tensors: Sequence[Tensor], bucket: Sequence[int], group: Any) -> Tensor:
    """Concatenate the tensors of a bucket on the device that the group's backend sends from."""
    return on_backend_device(torch.cat([tensors[i].detach().reshape(-1) for i in bucket]), group)


def on_backend_device(flat: Tensor, group: Any) -> Tensor:
    """Move a tensor to where the group's backend can send it from: NCCL sends from GPUs only."""
    if flat.device.type == "cpu" and torch.distributed.get_backend(group) == "nccl":
        return flat.to(f"cuda:{torch.cuda.current_device()}")
    return flat


def split(flat: Tensor, tensors: Sequence[Tensor], bucket: Sequence[int]) -> Sequence[Tensor]:
    """Split what `flatten` has joined."""
    return torch.split(flat, [tensors[i].numel() for i in bucket])


def buckets(tensors: Sequence[Tensor], most: int) -> list[list[int]]:
    """Group the numbers of tensors that are sent together: of one type and device, up to so many bytes."""
    found: list[list[int]] = []
    open_buckets: dict[Any, list[int]] = {}
    n_bytes: dict[Any, int] = {}
    for i, x in enumerate(tensors):
        if not x.numel():  # nothing to send
            continue
        key = (x.dtype, x.device)
        if key not in open_buckets or n_bytes[key] + x.nbytes > most:
            open_buckets[key], n_bytes[key] = [], 0
            found.append(open_buckets[key])
        open_buckets[key].append(i)
        n_bytes[key] += x.nbytes
    return found


def in_order(rows: Tensor, positions: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Unpack rows of bytes of all ranks' samples, each of a position and of tensors as these, in order of positions."""
    order, *columns = unpack(rows, [positions, *tensors])
    index = order.argsort()
    return [column[index].to(x.device) for column, x in zip(columns, tensors, strict=True)]


def overlaps(sizes: Sequence[int], length: int) -> Tensor:
    """Count the numbers that ranks have to send on, where each has an equal share of a flat tensor.

    Args:
        sizes: of the parts that the ranks are to get, which follow one another.
        length: numbers that each rank has, one after the other.

    Returns:
        (ranks, ranks) how many numbers of each rank's part (rows) each rank has (columns).
    """
    ends, cuts = torch.tensor(sizes).cumsum(0), length * torch.arange(len(sizes) + 1)
    last = torch.minimum(ends[:, None], cuts[1:])
    first = torch.maximum((ends - torch.tensor(sizes))[:, None], cuts[:-1])
    return (last - first).clamp_min(0)
