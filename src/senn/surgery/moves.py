"""Moves: records of a change of size that can be applied to any copy of the model.

Conventions. The tensor of a coupled dimension has `width * k` positions along `dim` that belong to the group's units:
row i of `index`, shape (width, k), lists those of unit i. W is the weight of a linear map, (out, in); b its bias,
(out,).

All moves of one call refer to the model as it stands before that call: sizes, unit numbers and columns are the old
ones, and new rows read zero from units that other moves of the same call add.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from senn import _deprecated


@_deprecated.aliased
@dataclass(frozen=True, eq=False)
class Widen:
    """Add new units to a channel group; consumers get zero columns, so the function stays.

    An elementwise dimension that `values` doesn't name takes its module's neutral value: BatchNorm 1, 0, 0, 1 and then
    the running statistics of the probe batch, depthwise filters the old ones in turn, anything else the mean of the
    units. Dimensions behind a norm (`CoupledDim.behind_norm`) take no values: there, producers' entries follow from the
    normalization. Only what reads the units past the norm does, which sees zeros and may have any columns: those that
    `values` doesn't name are existing ones in turn.

    Attributes:
        group: the group's name.
        units: how many units to add, a multiple of the group's granularity.
        values: new entries by full tensor name, of every producer and of any elementwise dimensions; behind a norm, of
            any consumers instead. The shape is the tensor's, with `units * k` along the coupled dimension (a unit's k
            positions side by side).

    Example:
        >>> import torch
        >>> from senn.surgery import Widen
        >>> rows = {"fc1.weight": torch.zeros(2, 8), "fc1.bias": torch.zeros(2)}
        >>> move = Widen("fc1", units=2, values=rows)
    """

    # Names and indices only, so that one record can be applied to any copy of the model.
    group: str
    units: int
    values: Mapping[str, Tensor]


@_deprecated.aliased
@dataclass(frozen=True, eq=False)
class Prune:
    """Remove units from a channel group, and let the remaining columns compensate.

    Compensated pruning is the authors' own: it is in the code published with the paper, not in its text. The
    coefficients are those of the optimal brain surgeon (Hassibi & Stork 1993), with Kronecker factors for the Hessian
    (as in EigenDamage, Wang et al. 2019, arXiv 1905.05934): least squares of the outgoing columns on those that stay,
    under the layer's input covariance.

    Attributes:
        group: the group's name.
        units: numbers of the units to remove.
        compensation: by name of a consuming map, coefficients (removed columns, kept columns + 1) for its matrix W:
            W_kept += W_gone @ coefficients[:, :-1] and b += W_gone @ coefficients[:, -1]. The last column must be zero
            where there is no bias. Removed columns stand in the order of
            `owned_columns(coupled, kernel_numel)[units].flatten()`, kept ones in that of the matrix. Without an entry,
            the columns are dropped.
    """

    group: str
    units: tuple[int, ...]
    compensation: Mapping[str, Tensor] = field(default_factory=dict)


@_deprecated.aliased
@dataclass(frozen=True, eq=False)
class Insert:
    """Put a layer before a linear map: W <- W @ right, b <- b + W @ shift, with the old W on the right-hand side.

    For x -> sigma(B x + beta), with sigma the identity now, the inverse is folded into the map: right = B^-1,
    shift = -B^-1 beta. A residual layer whose branch gives zero needs neither.

    Attributes:
        insertion_point: name of the linear map.
        layer: the new module, (..., in) -> (..., in); every model that it is applied to gets a deepcopy of its own.
        right: (in, in), or None for the identity.
        shift: (in,), or None for zero.
    """

    insertion_point: str
    layer: nn.Module
    right: Tensor | None = None
    shift: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Append:
    """Put a block after a residual block: into its list of layers, else as `Sequential(block, copy)` in its place.

    In a list, later layers move up by one (`h.3` becomes `h.4`), and numbers that count layers or say where one stands
    (`n_layer`, `layer_idx`) follow.

    Attributes:
        block: name of the block (`DependencyGraph.residual_blocks`).
        copy: the new module, called with the same arguments as the block, which changes nothing now
            (`function_preserving_copy` makes one); every model that it is applied to gets a deepcopy of its own. In the
            optimizer, each parameter joins the group of the block's parameter of the same name.
    """

    block: str
    copy: nn.Module


Move = Widen | Prune | Insert | Append


def place_of(move: Move) -> str:
    """Return the name of the group, insertion point or block that a move changes."""
    if isinstance(move, Insert):
        return move.insertion_point
    return move.block if isinstance(move, Append) else move.group


def tensors_of(moves: Sequence[Move]) -> list[Tensor]:
    """Return every tensor in the moves that becomes part of the grown model, in order.

    Args:
        moves: of any kind.

    Returns:
        Detached tensors: values, compensations, and parameters and buffers of new layers.
    """
    found: list[Tensor] = []
    for move in moves:
        if isinstance(move, Widen):
            found += move.values.values()
        elif isinstance(move, Prune):
            # The only numbers of a removal: what leaves isn't part of the grown model.
            found += move.compensation.values()
        elif isinstance(move, Insert):
            found += [*move.layer.parameters(), *move.layer.buffers()]
            found += [folded for folded in (move.right, move.shift) if folded is not None]
        else:
            found += [*move.copy.parameters(), *move.copy.buffers()]
    return [tensor.detach() for tensor in found]
