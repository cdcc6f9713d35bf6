"""Operations of all ranks on one flat tensor: sums that each rank gets a part of, and gathered texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from senn.collectives.packing import overlaps

SHORT = 248
"""Bytes of a message up to which ranks that meet in their group need one operation."""


def reduce_flat(
    flat: Tensor,
    sizes: Sequence[int],
    dtype: torch.dtype | None,
    rank: int,
    run: Callable[[float, Callable[..., Any]], None],
) -> Tensor:
    """Sum a flat tensor, of which the first `sizes[0]` numbers go to rank 0, the next ones to rank 1, and so on.

    Args:
        flat: the tensor, of the same size on all ranks.
        sizes: numbers that each rank gets.
        dtype: floating-point type in which the ranks' numbers are sent; None for that of the tensor.
        rank: number of this process.
        run: carries out an operation that sends so many bytes.

    Returns:
        The sums that this rank gets.
    """
    n_ranks = len(sizes)
    length = -(-len(flat) // n_ranks)
    padded = flat.new_zeros(n_ranks * length, dtype=flat.dtype if dtype is None else dtype)
    padded[: len(flat)] = flat
    every = torch.empty_like(padded)
    n_bytes = padded.nbytes * (n_ranks - 1) / n_ranks
    run(n_bytes, partial(torch.distributed.all_to_all_single, every, padded))
    share = every.view(n_ranks, length).to(flat.dtype).sum(0)
    found = overlaps(sizes, length)
    to, of = found[:, rank].tolist(), found[rank].tolist()
    sums = flat.new_empty(sizes[rank])
    n_bytes = (sum(to) - to[rank]) * flat.element_size()
    run(n_bytes, partial(torch.distributed.all_to_all_single, sums, share[: sum(to)], of, to))
    return sums


def gather_texts(text: str, gather: Callable[[Tensor], list[Tensor]]) -> list[str]:
    """Gather a text of every rank.

    Args:
        text: this rank's.
        gather: gathers bytes of every rank, as many of each.
    """
    data, size = text.encode(), SHORT
    while True:
        head = len(data).to_bytes(8, "little")
        padded = bytearray(head + data[:size].ljust(size, b" "))
        every = [bytes(x.tolist()) for x in gather(torch.frombuffer(padded, dtype=torch.uint8))]
        lengths = [int.from_bytes(one[:8], "little") for one in every]
        if max(lengths) <= size:
            break
        size = max(lengths)  # one is too long: all are sent again
    return [one[8 : 8 + length].decode() for one, length in zip(every, lengths, strict=True)]
