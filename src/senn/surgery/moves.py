"""Moves: records of a change of size that can be carried out on any copy of the model.

Conventions. A slot's tensor has `width * k` positions along `slot.dim` that belong to the space's units
(`slot.index`, shape (width, k)). W is the weight of a linear map, (out, in); b its bias, (out,).

All moves of one call are written against the model as it stands before that call: sizes, unit numbers and columns
are the old ones; new rows read zero from units that other moves of the call add.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from senn import _deprecated


@_deprecated.aliased
@dataclass(frozen=True, eq=False)
class Widen:
    """Add `units` new units to a space; consumers get zero columns, so the function stays.

    Attributes:
        group: the space's name.
        units: how many.
        values: new entries for producer and carrier slots by full tensor name; the shape is the tensor's
            with `units * k` along the slot's dimension (a unit's k positions side by side). A
            carrier that is not named takes its module's neutral value (BatchNorm: 1, 0, 0, 1, then
            running statistics from the probe batch; depthwise filters: old ones in turn; others: mean of the units).
            Nothing can be given for quiet slots (`Slot.quiet`): there producers' entries follow from the
            normalisation, and consumers take existing columns in turn.
    """

    group: str
    units: int
    values: Mapping[str, Tensor]


@_deprecated.aliased
@dataclass(frozen=True, eq=False)
class Prune:
    """Remove units from a space and let the others compensate (method: optimal brain surgeon, K-FAC).

    Attributes:
        group: the space's name.
        units: which units go.
        compensation: by consuming map's name, coefficients (gone columns, kept columns + 1) for its matrix: with W_gone
            the columns that go, W_kept += W_gone @ coefficients[:, :-1] and b += W_gone @ coefficients[:, -1] (the
            last column must be zero where there is no bias). Gone columns stand in the order of
            `columns(slot, taps)[units].flatten()`, kept ones as in the matrix.
    """

    group: str
    units: tuple[int, ...]
    compensation: Mapping[str, Tensor] = field(default_factory=dict)


@_deprecated.aliased
@dataclass(frozen=True, eq=False)
class Insert:
    """Put `layer` before the linear map `site`: W <- W @ right, b <- b + W @ shift (the old W).

    With x -> sigma(B x + beta) and sigma the identity now: right = B^-1, shift = -B^-1 beta. With a residual
    layer that starts silent: both None.

    Attributes:
        insertion_point: name of the linear map.
        layer: the new module, maps (..., in) to (..., in); each carrying out uses a fresh deepcopy.
        right: (in, in) or None for the identity.
        shift: (in,) or None for zero.
    """

    insertion_point: str
    layer: nn.Module
    right: Tensor | None = None
    shift: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Append:
    """Put a block after a residual block: into the list of layers that it lies in, else as `Sequential(block, copy)`.

    In a list, later layers move up by one (`h.3` is `h.4` then), and numbers that count layers or say where one stands
    (`layer_idx`) follow.

    Attributes:
        block: name of the block (`DependencyGraph.blocks`).
        copy: the new module, called as the block is and silent: it changes nothing now (`function_preserving_copy`).
            Each
            carrying out uses a fresh deepcopy. In the optimizer each parameter joins the group of the block's parameter
            of the same name.
    """

    block: str
    copy: nn.Module


Move = Widen | Prune | Insert | Append


def tensors_of(moves: Sequence[Move]) -> list[Tensor]:
    """Everything in the moves that is a number of the grown model, in order."""
    found: list[Tensor] = []
    for move in moves:
        if isinstance(move, Widen):
            found += move.values.values()
        elif isinstance(move, Prune):
            found += move.compensation.values()
        elif isinstance(move, Insert):
            found += [*move.layer.parameters(), *move.layer.buffers()]
            found += [x for x in (move.right, move.shift) if x is not None]
        else:
            found += [*move.copy.parameters(), *move.copy.buffers()]
    return [tensor.detach() for tensor in found]
