"""New values of the tensors that a plan replaces, and their gradients by position."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from senn.errors import UnsupportedError
from senn.surgery.index_maps import IndexMap, corner, place
from senn.surgery.moves import Insert
from senn.surgery.plan_types import Compensation, Entries, SurgeryPlan, find_tensor, join

# What a new channel of a norm starts with: it passes its input through until it is calibrated or trained.
_NEUTRAL_NORM = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}


def new_values(
    model: nn.Module, todo: SurgeryPlan, olds: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Compute the new value of every tensor that a plan replaces.

    Args:
        model: isn't changed.
        todo: the plan.
        olds: the tensors that are replaced, by full name.

    Returns:
        New values by full name: extended, compensated, scaled, cut, and with inserted layers folded in.
    """
    # The order matters. Compensation needs columns that leave, in their old places, so tensors are extended first (new
    # entries at the ends) and cut last. Folding needs the weight as it is after everything else.
    values = {name: _extended(model, name, old.detach(), todo) for name, old in olds.items()}
    for compensation in todo.compensations:
        _compensate(compensation, values)
    for name, scales in todo.scales.items():
        for scale in scales:
            factor = values[name].new_ones(values[name].shape[scale.dim])
            factor[scale.positions.to(factor.device)] = scale.factor
            shape = [-1 if dim == scale.dim else 1 for dim in range(values[name].dim())]
            values[name] = values[name] * factor.view(shape)
    for name, value in values.items():
        for dim, layout in todo.layouts[name].items():
            if not layout.appends:
                value = value.index_select(dim, layout.order.to(value.device))
        values[name] = value
    for move in todo.inserts:
        _fold(model, move, values)
    return values


def _extended(model: nn.Module, name: str, old: Tensor, todo: SurgeryPlan) -> Tensor:
    """Copy a tensor into a larger one with the new entries at the end of each dimension."""
    layouts = todo.layouts[name]
    shape = list(old.shape)
    for dim, layout in layouts.items():
        shape[dim] += layout.added
    # Zeros: that is what new columns of consumers must be for the function to stay.
    value = old.new_zeros(shape)
    corner(value, old.shape).copy_(old)
    for entry in todo.entries.get(name, ()):
        size = list(old.shape)
        size[entry.dim] = entry.count
        # Other dimensions at their old size only: new rows read zero from new columns of the same call.
        region = corner(value.narrow(entry.dim, entry.offset, entry.count), size)
        region.copy_(_new_entries(model, name, old, entry))
    return value


def _new_entries(model: nn.Module, name: str, old: Tensor, entry: Entries) -> Tensor:
    """Return the values of new entries, or what broadcasts to them."""
    if entry.values is not None:
        return entry.values
    if entry.fill == "neutral":
        return _neutral(model, name, old, entry)
    if entry.fill == "zero":
        return old.new_zeros(())
    if entry.fill == "mean":
        # In float64: LayerNorm's mean stays as it was only as far as this mean is exact.
        return _mean(model, name, old, entry).to(old.dtype)
    if entry.fill == "scale":
        positions = entry.index.flatten().to(old.device)
        return _root_mean_square(old.index_select(entry.dim, positions)).to(old.dtype)
    return _cycled(old, entry)


def _mean(model: nn.Module, name: str, old: Tensor, entry: Entries) -> Tensor:
    """Mean over the old units, of what their entries make after the gains: mean(g W) / g of the new unit."""
    units = old.index_select(entry.dim, entry.index.flatten().to(old.device)).double()
    new_gain = 1.0
    for gain_name, dim, index in entry.gains:
        gain = find_tensor(model, gain_name).detach().double()
        gains = gain.index_select(dim, index.flatten().to(gain.device)).flatten()
        if index.shape != entry.index.shape or len(gains) != index.numel():
            raise UnsupportedError(f"'{gain_name}' scales what '{name}' makes in an unknown layout")
        shape = [-1 if axis == entry.dim else 1 for axis in range(units.dim())]
        units = units * gains.view(shape).to(units.device)
        new_gain *= float(_root_mean_square(gains))
    # Gains of zero: nothing enters the stream, whatever the entries are.
    return units.mean(entry.dim, keepdim=True) / (new_gain or 1.0)


def _root_mean_square(values: Tensor) -> Tensor:
    return values.double().square().mean().sqrt()


def _cycled(old: Tensor, entry: Entries) -> Tensor:
    """Repeat the old units' entries one after the other, from the first one again."""
    width, k = entry.index.shape
    units = torch.arange(entry.count // k) % width
    positions = entry.index[units].flatten()
    return old.index_select(entry.dim, positions.to(old.device))


def _neutral(model: nn.Module, name: str, old: Tensor, entry: Entries) -> Tensor:
    """Return what a new unit's elementwise entries start with when the move doesn't say."""
    path, _, key = name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(module, _NormBase | nn.GroupNorm) and key in _NEUTRAL_NORM:
        return old.new_tensor(_NEUTRAL_NORM[key])
    # Depthwise filters: a mean of filters is a blur of all of them, and learns nothing of its own.
    if isinstance(module, _ConvNd):
        return _cycled(old, entry)
    return old.double().mean(entry.dim, keepdim=True).to(old.dtype)


def _compensate(item: Compensation, values: dict[str, Tensor]) -> None:
    """Let the columns that stay take over from those that leave, in place.

    W_kept += W_gone @ C[:, :-1] and b += W_gone @ C[:, -1] (optimal brain surgeon, see `Prune`).
    """
    linear = item.map
    weight, bias = values[linear.weight], values.get(linear.bias or "")
    front = weight.movedim((linear.out_dim, linear.in_dim), (0, 1))
    matrix = front.flatten(1)
    # In float64: columns that are nearly dependent have large coefficients of opposite signs.
    coefficients = item.coefficients.to(weight.device, torch.float64)
    kept = item.kept.to(weight.device)
    gone = matrix.index_select(1, item.gone.to(weight.device)).double()
    stays = matrix.index_select(1, kept).double()
    sums = stays + gone @ coefficients[:, :-1]
    matrix = matrix.index_copy(1, kept, sums.to(weight.dtype))
    front.copy_(matrix.view(front.shape))
    if bias is not None:
        bias.copy_(bias.double() + gone @ coefficients[:, -1])


def _fold(model: nn.Module, move: Insert, values: dict[str, Tensor]) -> None:
    """Fold the inverse of an inserted layer into the map behind it: W <- W @ right, b <- b + W @ shift."""
    weight_name, bias_name = (join(move.insertion_point, tensor) for tensor in ("weight", "bias"))
    weight = values.get(weight_name)
    # Both formulas use the W of before, so it is read once. A shift alone doesn't replace the weight.
    old = (find_tensor(model, weight_name).detach() if weight is None else weight).double()
    if move.right is not None and weight is not None:
        values[weight_name] = (old @ move.right.to(old)).to(weight.dtype)
    if move.shift is not None:
        bias = values[bias_name]
        moved = bias.double() + old @ move.shift.to(old)
        values[bias_name] = moved.to(bias.dtype)


def like_strides(old: Tensor, value: Tensor) -> Tensor:
    """Lay a new value out in memory as the old one is (channels-last and the like): kernels are chosen by it.

    Args:
        old: that is replaced.
        value: new value, of the same dtype and device.
    """
    if old.is_contiguous():
        return value
    physical = sorted(range(old.dim()), key=lambda dim: -old.stride()[dim])
    into = torch.empty_permuted(value.shape, physical, dtype=old.dtype, device=old.device)
    return into.copy_(value)


def new_gradient(
    name: str, old: Tensor, value: Tensor, layouts: Mapping[int, IndexMap]
) -> Tensor | None:
    """Return the gradient of a tensor by its new positions, or None if it has none.

    Args:
        name: full name of the tensor.
        old: with its gradient.
        value: its new value.
        layouts: by dimension, where the old positions go.

    Raises:
        UnsupportedError: the gradient is sparse.
    """
    if not isinstance(old, nn.Parameter) or old.grad is None:
        return None
    if old.grad.is_sparse:
        raise UnsupportedError(f"the gradient of '{name}' is sparse, which can't be resized")
    # A change between backward and step must not lose the gradient; new entries have had none.
    return place(old.grad, layouts, torch.zeros_like(value, dtype=old.grad.dtype))
