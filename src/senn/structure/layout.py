"""Where new units' entries land along a tensor's dimension: the one place that knows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from senn.structure.spaces import Slot


def splice(size: int, additions: Sequence[tuple[Slot, int]]) -> tuple[Tensor, list[Tensor]]:
    """Lay out a dimension of `size` after units are added to the spaces that own parts of it.

    A space's new units follow its last unit, wherever that lies (in the middle, for a concatenation). The k positions of a
    unit stay neighbours, or alternate with the other units' (`Slot.interleaved`).

    Args:
        size: positions now.
        additions: (slot, number of new units) for each slot on this dimension that grows.

    Returns:
        `source`, (new size,) long: the old position that each new position holds, or -1 for a new entry; and for each
        slot the positions of its new units, (units, k) long.
    """
    after: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for number, (slot, units) in enumerate(additions):
        last = slot.index[-1].tolist()
        for unit in range(units):
            for place in range(len(last)):
                anchor = last[place] if slot.interleaved else last[-1]
                after[anchor].append((number, unit, place))
    source: list[int] = []
    positions = [torch.empty(units, slot.index.shape[1], dtype=torch.long) for slot, units in additions]
    for old in range(size):
        source.append(old)
        for number, unit, place in after.get(old, ()):
            positions[number][unit, place] = len(source)
            source.append(-1)
    return torch.tensor(source, dtype=torch.long), positions
