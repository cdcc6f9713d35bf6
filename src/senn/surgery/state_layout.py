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


class Triangle(tuple[int, ...]):
    """Dimensions of a parameter whose square factor is kept as its upper triangle, row by row in one dimension."""


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
        # The number of positions that the parameter has, here and in the trials in which it has more.
        numbers = [math.prod(shape[dim] for dim in dims)]
        numbers += [math.prod(shape[one] + (one == dim) for one in dims) for dim in dims]
        sizes = [size, *(trials[dim][position] for dim in dims)]
        if not dims or sizes == numbers:
            every.append(dims)
        elif sizes == [_triangle(number) for number in numbers]:
            every.append(Triangle(dims))
        else:
            raise odd
    return tuple(every)


def _triangle(number: int) -> int:
    """Count the entries on and above the diagonal of a square matrix."""
    return number * (number + 1) // 2


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
    *,
    rescaled: bool = False,
) -> Tensor:
    """Return a state tensor by its parameter's new positions.

    Args:
        value: as it is; it isn't written to.
        dims: what it runs over; a dimension may hold the triangle of a square factor.
        shape: of the parameter before.
        changed: by dimension of the parameter, where positions go.
        start: tensor of the new shape with what new positions start with; None for zeros.
        rescaled: True to bring the start to the scale that the old entries have by now.

    Raises:
        Uncarried: it relates units of one dimension with each other, and some of them leave.
    """
    at = next((n for n, many in enumerate(dims) if isinstance(many, Triangle)), None)
    if at is None or not any(dim in changed for dim in dims[at]):
        return _carried(value, dims, shape, changed, start, rescaled=rescaled)
    many = (*dims[at],)
    square = (*dims[:at], many, many, *dims[at + 1 :])
    old = math.prod(shape[dim] for dim in many)
    new = len(_new_positions(many, shape, changed))
    start = None if start is None else _unpacked(start, at, new)
    result = carried(_unpacked(value, at, old), square, shape, changed, start, rescaled=rescaled)
    rows, columns = torch.triu_indices(new, new, device=value.device)
    return result.movedim((at, at + 1), (-2, -1))[..., rows, columns].movedim(-1, at)


def _carried(
    value: Tensor,
    dims: Dims,
    shape: torch.Size,
    changed: Mapping[int, IndexMap],
    start: Tensor | None,
    *,
    rescaled: bool = False,
) -> Tensor:
    """Do what `carried` does where no dimension holds a triangle."""
    if not any(dim in changed for many in dims for dim in many):
        if start is not None and start.shape != value.shape:
            # In blocks, say: one more unit in a trial may have changed nothing.
            raise Uncarried(
                f"has shape {tuple(value.shape)}, and would start with {tuple(start.shape)}"
            )
        return value
    old_sizes: list[int] = []
    layouts: dict[int, IndexMap] = {}
    for size, many in zip(value.shape, dims, strict=True):
        for dim in many or (None,):
            if dim is not None and dim in changed:
                layouts[len(old_sizes)] = changed[dim]
            old_sizes.append(size if dim is None else shape[dim])
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
    if rescaled:
        into *= _relative_scale(value, into, layouts)
    pairs = _pairs(dims, changed, start)
    first = into.reshape(whole).clone() if pairs else into
    into = place(value.reshape(old_sizes), layouts, into).reshape(whole)
    for pair in pairs:
        _separate(into, first, pair, _new_positions(dims[pair[0]], shape, changed))
    return into


def _unpacked(value: Tensor, at: int, size: int) -> Tensor:
    """Return square factors whose upper triangles stand along one dimension; below them are zeros."""
    if value.shape[at] != _triangle(size):
        raise Uncarried(f"has no triangle of {size} rows along dimension {at}")
    line = value.movedim(at, -1)
    rows, columns = torch.triu_indices(size, size, device=value.device)
    square = line.new_zeros((*line.shape[:-1], size, size))
    square[..., rows, columns] = line
    return square.movedim((-2, -1), (at, at + 1))


def _relative_scale(value: Tensor, start: Tensor, layouts: Mapping[int, IndexMap]) -> float:
    """Return the root mean square of old entries, in that of what the same positions would start with; 1 if unknown."""
    for dim, layout in layouts.items():
        start = start.index_select(dim, layout.kept[1].to(start.device))
    mean, other = (float(one.double().square().mean()) ** 0.5 for one in (value, start))
    found = mean / other if other else math.nan
    return found if math.isfinite(found) else 1.0


def _merged(sizes: Sequence[int], dims: Dims) -> list[int]:
    """Sizes of the state tensor itself, where dimensions that it runs over at once are one."""
    rest = iter(sizes)
    return [math.prod(next(rest) for _ in many or (None,)) for many in dims]


def _pairs(
    dims: Dims, changed: Mapping[int, IndexMap], start: Tensor | None
) -> list[tuple[int, int]]:
    """Return pairs of dimensions that run over the same changed ones of the parameter: square factors."""
    counts = Counter(dim for many in dims for dim in many if dim in changed)
    twice = {dim for dim, count in counts.items() if count > 1}
    positions: dict[tuple[int, ...], list[int]] = {}
    for position, many in enumerate(dims):
        if twice & {*many}:
            positions.setdefault(many, []).append(position)
    leaves = any(len(changed[dim].kept[0]) < changed[dim].size for dim in twice)
    if leaves or (twice and start is None) or any(len(one) != 2 for one in positions.values()):
        # Rows of an orthogonal basis without some of its columns are no basis.
        raise Uncarried("relates units with each other, so that none can be taken out of it")
    return [(one, other) for one, other in positions.values()]


def _new_positions(
    many: Sequence[int], shape: torch.Size, changed: Mapping[int, IndexMap]
) -> Tensor:
    """Tell which positions are new along a dimension that runs over some of a parameter's at once."""
    new = torch.zeros((), dtype=torch.bool)
    for dim in many:
        here = torch.zeros(shape[dim], dtype=torch.bool)
        if dim in changed:
            here = changed[dim].order >= changed[dim].size
        new = (new[..., None] | here.cpu()).flatten()
    return new


def _separate(into: Tensor, first: Tensor, pair: tuple[int, int], new: Tensor) -> None:
    """Make new units of a preconditioner independent of the old ones, each with the scale that it starts with.

    A block-diagonal basis stays orthogonal, and so do averages that were taken in it.
    """
    new = new.to(into.device)
    matrices, start = (one.movedim(pair, (-2, -1)) for one in (into, first))
    # Not the start's own entries: a fresh basis may be any permutation of the units.
    scale = torch.linalg.vector_norm(start.float(), dim=-1).to(into.dtype)
    matrices.masked_fill_(new[:, None] | new, 0)
    diagonal = torch.diagonal(matrices, dim1=-2, dim2=-1)
    diagonal.copy_(torch.where(new, scale, diagonal))
