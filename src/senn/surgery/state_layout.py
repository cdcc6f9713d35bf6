"""Where one tensor of an optimizer's state goes when its parameter changes size.

A state tensor runs over dimensions of its parameter: an average over all of them, the row and column factors of
Adafactor over some, a flattened copy over all in one, a preconditioner of Shampoo or SOAP over one of them twice. Which
ones is read off the optimizer itself, which starts parameters of other sizes in a trial (`blank_optimizer`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from senn.surgery.index_maps import IndexMap, place

Dims = tuple[tuple[int, ...], ...]
"""For each dimension of a state tensor, the parameter's dimensions that it runs over; () for none of them."""


class Uncarried(Exception):
    """A state tensor doesn't follow its parameter by any rule; the text continues the tensor's name."""


def dims_by_trial(found: torch.Size, shape: torch.Size, trials: Sequence[torch.Size]) -> Dims:
    """Read off trials which dimensions of a parameter a state tensor runs over.

    Args:
        found: shape of the state tensor.
        shape: shape of the parameter.
        trials: for each dimension of the parameter, the shape of the state tensor where that is larger by one.

    Raises:
        Uncarried: its size is no product of the parameter's sizes.
    """
    odd = Uncarried(
        f"has shape {tuple(found)}, which doesn't follow its parameter's {tuple(shape)}"
    )
    if any(len(trial) != len(found) for trial in trials):
        raise odd
    every: list[tuple[int, ...]] = []
    for position, size in enumerate(found):
        dims = tuple(dim for dim, trial in enumerate(trials) if trial[position] != size)
        if dims and math.prod(shape[dim] for dim in dims) != size:
            raise odd
        if any(trials[dim][position] * shape[dim] != size * (shape[dim] + 1) for dim in dims):
            raise odd
        every.append(dims)
    return tuple(every)


def dims_by_size(found: torch.Size, shape: torch.Size) -> Dims:
    """Tell by sizes alone which dimensions of a parameter a state tensor runs over.

    Args:
        found: shape of the state tensor.
        shape: shape of the parameter.

    Raises:
        Uncarried: sizes don't tell.
    """
    if not found or found == shape:
        return tuple((dim,) for dim in range(len(found)))
    if len(found) == len(shape) and all(
        mine in (1, its) for mine, its in zip(found, shape, strict=True)
    ):
        return tuple((dim,) if mine == shape[dim] else () for dim, mine in enumerate(found))
    total = shape.numel()
    if len(shape) > 1 and found == (total,) and total not in shape:
        return (tuple(range(len(shape))),)
    matching = [[dim for dim, its in enumerate(shape) if its == mine] for mine in found]
    is_factor = len(found) == 1 or (len(found) == 2 and found[0] == found[1])
    if is_factor and len(matching[0]) == 1:
        return tuple((matching[0][0],) for _ in found)
    raise Uncarried(
        f"has shape {tuple(found)}, which doesn't follow its parameter's {tuple(shape)}"
    )


def carried(
    value: Tensor,
    dims: Dims,
    shape: torch.Size,
    changed: Mapping[int, IndexMap],
    start: Tensor | None,
) -> Tensor:
    """Return a state tensor by its parameter's new positions.

    Args:
        value: as it is; it isn't written to.
        dims: what it runs over.
        shape: of the parameter before.
        changed: by dimension of the parameter, where positions go.
        start: tensor of the new shape with what new positions start with; None for zeros.

    Raises:
        Uncarried: it relates units of one dimension with each other, and some of them leave.
    """
    if not any(dim in changed for many in dims for dim in many):
        if start is not None and start.shape != value.shape:
            # In blocks, say: one more unit in a trial may have changed nothing.
            raise Uncarried(
                f"has shape {tuple(value.shape)}, and would start with {tuple(start.shape)}"
            )
        return value
    old_sizes: list[int] = []
    layouts: dict[int, IndexMap] = {}
    runs: list[int | None] = []
    for size, many in zip(value.shape, dims, strict=True):
        for dim in many or (None,):
            if dim is not None and dim in changed:
                layouts[len(runs)] = changed[dim]
            old_sizes.append(size if dim is None else shape[dim])
            runs.append(dim)
    new_sizes = [
        len(layouts[number].order) if number in layouts else size
        for number, size in enumerate(old_sizes)
    ]
    whole = _merged(new_sizes, dims)
    if start is None:
        into = value.new_zeros(new_sizes)
    elif list(start.shape) != whole:
        raise Uncarried(f"would have shape {whole}, and starts with {list(start.shape)}")
    else:
        into = start.detach().to(value.device, value.dtype, copy=True).reshape(new_sizes)
    twice = [
        dim
        for dim, count in Counter(runs).items()
        if dim is not None and count > 1 and dim in changed
    ]
    first = into.clone() if twice else into
    into = place(value.reshape(old_sizes), layouts, into)
    for dim in twice:
        _separate(into, first, [n for n, run in enumerate(runs) if run == dim], changed[dim], start)
    return into.reshape(whole)


def _merged(sizes: Sequence[int], dims: Dims) -> list[int]:
    """Sizes of the state tensor itself, where dimensions that it runs over at once are one."""
    rest = iter(sizes)
    return [math.prod(next(rest) for _ in many or (None,)) for many in dims]


def _separate(
    into: Tensor, first: Tensor, pair: Sequence[int], layout: IndexMap, start: Tensor | None
) -> None:
    """Make new units of a preconditioner independent of the old ones, each with the scale that it starts with.

    A block-diagonal basis stays orthogonal, and so do averages that were taken in it.
    """
    kept, places = layout.kept
    if len(kept) < layout.size or len(pair) > 2 or start is None:
        # Rows of an orthogonal basis without some of its columns are no basis.
        raise Uncarried("relates units with each other, so that none can be taken out of it")
    new = torch.ones(len(layout.order), dtype=torch.bool, device=into.device)
    new[places.to(into.device)] = False
    one, other = pair
    # Not the start's own entries: a fresh basis may be any permutation of the units.
    scale = torch.linalg.vector_norm(first.float(), dim=other).to(into.dtype).movedim(one, -1)
    matrices = into.movedim((one, other), (-2, -1))
    matrices.masked_fill_(new[:, None] | new, 0)
    diagonal = torch.diagonal(matrices, dim1=-2, dim2=-1)
    diagonal.copy_(torch.where(new, scale, diagonal))
