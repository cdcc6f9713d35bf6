"""From moves to a plan: what becomes of each tensor, module and attribute, by name.

Every move of one plan refers to the model as it stands before any of them. So values for new rows have the old number
of columns (new columns of other moves read zero there), and units and compensations are numbered as they were.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from senn import _deprecated
from senn.errors import SennError, UnsupportedError
from senn.graph.named_tensors import owned_columns
from senn.graph.output_group import OutputGroup
from senn.graph.types import ChannelGroup, CoupledDim, DependencyGraph, LinearMap
from senn.surgery.index_maps import IndexMapBuilder
from senn.surgery.moves import Append, Insert, Move, Prune, Widen
from senn.surgery.plan_layers import plan_append, plan_insert
from senn.surgery.plan_types import (
    Compensation,
    Entries,
    Fill,
    Scale,
    SurgeryPlan,
    check_values,
    find_group,
    find_tensor,
    join,
)


def plan(model: nn.Module, moves: Sequence[Move], graph: DependencyGraph) -> SurgeryPlan:
    """Check moves against a model and work out what becomes of each tensor.

    Args:
        model: isn't changed.
        moves: of any kind; several may touch the same tensor.
        graph: of the model or a copy with the same shapes.

    Returns:
        The joint effect of all moves, valid for every copy of the model.

    Raises:
        SennError: a move doesn't fit the model.
    """
    result = SurgeryPlan(moves=tuple(moves))
    # Units that no removal of this call has taken yet: several may prune one group.
    left = {group.name: set(range(group.width)) for group in graph.groups}
    for move in moves:
        if isinstance(move, Insert):
            plan_insert(result, model, move, graph)
        elif isinstance(move, Append):
            plan_append(result, model, move, graph)
        elif isinstance(move, Widen):
            _plan_widen(result, model, move, find_group(graph, move.group))
        else:
            group = find_group(graph, move.group)
            _take_units(move, group, left[group.name])
            _plan_prune(result, model, move, graph)
    for name, change in _changes(moves).items():
        _plan_norms(result, find_group(graph, name), change)
    for insert in result.inserts:
        # Its layer was made for the old number of features.
        if 1 in result.builders.get(join(insert.insertion_point, "weight"), {}):
            point = insert.insertion_point
            raise SennError(
                f"a layer before '{point}' and a change of its inputs don't go into one operation"
            )
    for name in result.shapes:
        builders = result.builders.get(name, {})
        result.layouts[name] = {dim: builder.layout() for dim, builder in builders.items()}
    return result


def _builder(result: SurgeryPlan, model: nn.Module, coupled: CoupledDim) -> IndexMapBuilder:
    """Return the builder of a dimension's index map, made at first use."""
    shape = find_tensor(model, coupled.name).shape
    last = int(coupled.index.max())
    if coupled.dim >= len(shape) or last >= shape[coupled.dim]:
        raise SennError(
            f"'{coupled.name}' has shape {tuple(shape)}, which doesn't fit the graph: analyze it anew"
        )
    result.shapes[coupled.name] = shape
    return result.builders[coupled.name].setdefault(
        coupled.dim, IndexMapBuilder(shape[coupled.dim])
    )


# -- units that come


def _plan_widen(result: SurgeryPlan, model: nn.Module, move: Widen, group: ChannelGroup) -> None:
    if move.units < 1 or move.units % group.granularity:
        raise SennError(
            f"'{group.name}' widens by multiples of {group.granularity}, not by {move.units}"
        )
    takers = {coupled.name for coupled in group.dims if _takes_values(coupled, group)}
    unknown = sorted(set(move.values) - takers)
    if unknown:
        raise SennError(f"values for '{unknown[0]}', which takes none in '{group.name}'")
    for coupled in group.dims:
        offset, count = _builder(result, model, coupled).add(coupled, move.units)
        values = move.values.get(coupled.name) if _takes_values(coupled, group) else None
        if values is not None:
            shape = list(result.shapes[coupled.name])
            shape[coupled.dim] = count
            check_values(f"new entries of '{coupled.name}'", values, shape)
        elif coupled.role == "producer" and not coupled.behind_norm:
            raise SennError(f"new units of '{group.name}' need values for '{coupled.name}'")
        fill: Fill | None = "given" if values is not None else _default_fill(coupled, group)
        if fill is not None:
            entries = Entries(
                dim=coupled.dim,
                offset=offset,
                count=count,
                fill=fill,
                values=values,
                index=coupled.index.cpu(),
                gains=_gains(coupled, group),
            )
            result.entries[coupled.name].append(entries)
    _plan_attributes(result, group, move.units)
    if isinstance(group, OutputGroup) and group.is_output:
        result.new_outputs += move.units


def _takes_values(coupled: CoupledDim, group: ChannelGroup) -> bool:
    # Behind a norm that mixes units, what makes them follows from the norm: nobody may choose it. What reads them is
    # free there, since they leave the norm as zeros; everywhere else these are the columns that must be zero.
    if coupled.role != "consumer":
        return not coupled.behind_norm
    # A tensor that also makes units of the group (in_proj_weight of attention) takes values for these.
    makes = any(one.name == coupled.name and one.role != "consumer" for one in group.dims)
    return coupled.behind_norm and not makes


def _default_fill(coupled: CoupledDim, group: ChannelGroup) -> Fill | None:
    """Return what new entries are filled with that no move gives; None for zero columns, which need nothing."""
    if not coupled.behind_norm:
        return None if coupled.role == "consumer" else "neutral"
    if coupled.role == "consumer":
        # The norm gives zero for new units, so any columns keep the function; those of old units learn at once.
        return "cycle"
    if any(coupled.name in norm.shifts for norm in group.norms):
        return "zero"
    if any((coupled.name, coupled.dim) in norm.scaled for norm in group.norms):
        return "mean"
    if any(coupled.name in producer.gains for producer in group.dims):
        return "scale"  # not zero, or a unit with zero rows as well would never learn
    # LayerNorm: units that enter as the mean of the old ones leave the mean as it is. RMSNorm has no mean, so zeros.
    return "mean" if group.norms[0].kind == "layer" else "zero"


def _gains(coupled: CoupledDim, group: ChannelGroup) -> tuple[tuple[str, int, Tensor], ...]:
    """Parameters that scale what a producer makes, with the positions of their units."""
    return tuple(
        (gain.name, gain.dim, gain.index.cpu())
        for name in coupled.gains
        for gain in group.dims
        if gain.name == name
    )


def _changes(moves: Sequence[Move]) -> dict[str, int]:
    """By how much each group's number of units changes in all."""
    changes: dict[str, int] = defaultdict(int)
    for move in moves:
        if isinstance(move, Widen):
            changes[move.group] += move.units
        elif isinstance(move, Prune):
            changes[move.group] -= len(move.units)
    return changes


def _plan_norms(result: SurgeryPlan, group: ChannelGroup, units: int) -> None:
    """Rescale weight and eps of norms over the units, so that the old units' outputs stay.

    With C units and k that add nothing to the variance, var' = var C / (C + k). So w (x - m) / sqrt(var + eps) stays
    for w' = w sqrt(C / (C + k)) and eps' = eps C / (C + k), or for x' = x sqrt((C + k) / C) and the same eps.
    """
    factors: dict[tuple[str, int], float] = {}
    fixed = [norm for norm in group.norms if norm.fixed_eps]
    for norm in group.norms:
        if min(group.width, group.width + units) <= norm.spare:
            raise SennError(f"'{group.name}' needs two units: {norm.module} divides by one fewer")
        fraction = norm.fraction(group.width, units)
        factors |= dict.fromkeys(norm.scaled, fraction**norm.power)
        if norm.eps is not None and not fixed:
            # Assigned: several norms of a group may share one attribute.
            result.factors[norm.eps_module, norm.eps] = fraction**norm.eps_power
    for coupled in group.dims:
        factor = factors.get((coupled.name, coupled.dim), 1.0)
        if fixed and coupled.stream_power:
            factor *= fixed[0].fraction(group.width, units) ** (-0.5 * coupled.stream_power)
        if factor != 1.0:
            builder = result.builders[coupled.name][coupled.dim]
            new = [
                torch.arange(offset, offset + count)
                for owner, offset, count in builder.newcomers
                if owner is coupled
            ]
            positions = torch.cat([coupled.index.cpu().flatten(), *new])
            scale = Scale(dim=coupled.dim, positions=positions, factor=factor)
            result.scales[coupled.name].append(scale)


# -- units that leave


def _take_units(move: Prune, group: ChannelGroup, left: set[int]) -> None:
    """Check the units of a removal and strike them off those that are left."""
    for unit in move.units:
        if unit not in left:
            last = group.width - 1
            raise SennError(
                f"'{group.name}' has no unit {unit} to prune; it has units 0 to {last}, once each"
            )
        left.remove(unit)
    least, count = group.granularity, len(move.units)
    if not left or not count or count % least:
        most = group.width - least
        raise SennError(
            f"'{group.name}' loses between {least} and {most} units in multiples of {least}, not {count}"
        )


def _plan_prune(result: SurgeryPlan, model: nn.Module, move: Prune, graph: DependencyGraph) -> None:
    group = find_group(graph, move.group)
    units = list(move.units)
    gone: dict[str, list[Tensor]] = defaultdict(list)
    for coupled in group.dims:
        _builder(result, model, coupled).remove(coupled.index.cpu()[units].flatten())
        if coupled.role == "consumer" and coupled.map in move.compensation:
            linear = graph.map(coupled.map)
            if (linear.weight, linear.in_dim) != (coupled.name, coupled.dim):
                raise UnsupportedError(
                    f"compensation in '{coupled.name}' along dimension {coupled.dim} isn't understood"
                )
            gone[coupled.map].append(owned_columns(coupled, linear.kernel_numel)[units].flatten())
    unknown = sorted(set(move.compensation) - set(gone))
    if unknown:
        raise SennError(f"compensation for '{unknown[0]}', which is no consumer of '{group.name}'")
    for name, coefficients in move.compensation.items():
        _plan_compensation(result, model, graph.map(name), torch.cat(gone[name]), coefficients)
    _plan_attributes(result, group, -len(units))


def _plan_compensation(
    result: SurgeryPlan, model: nn.Module, linear: LinearMap, gone: Tensor, coefficients: Tensor
) -> None:
    width = find_tensor(model, linear.weight).shape[linear.in_dim]
    # Columns of the matrix: a convolution has one for each kernel position of an input channel.
    every = torch.arange(width * linear.kernel_numel)
    kept = every[~torch.isin(every, gone)]
    shape = [len(gone), len(kept) + 1]
    check_values(f"compensation in '{linear.name}'", coefficients, shape)
    if linear.bias is not None:
        result.shapes[linear.bias] = find_tensor(model, linear.bias).shape
    elif coefficients[:, -1].any():
        raise SennError(
            f"'{linear.name}' has no bias, so the last column of its compensation must be zero"
        )
    result.compensations.append(
        Compensation(map=linear, gone=gone, kept=kept, coefficients=coefficients)
    )


def _plan_attributes(result: SurgeryPlan, group: ChannelGroup, units: int) -> None:
    for attribute in group.attributes:
        result.attributes[attribute.module, attribute.name, attribute.item] += (
            units * attribute.per_unit
        )


# -- parameters that moves cost


@_deprecated.keywords
def parameters_per_unit(model: nn.Module, group: ChannelGroup) -> int:
    """Return how many parameters one more unit brings, consumers' columns included.

    Args:
        model: that the group belongs to.
        group: which would grow.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import senn
        >>> from senn.surgery import parameters_per_unit
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> (group,) = senn.analyze(model, torch.zeros(1, 3)).groups
        >>> parameters_per_unit(model, group)  # a row of 3, its bias, a column of 2
        6
    """
    return added_parameters(model, {group: 1})


@_deprecated.keywords
def new_parameters(model: nn.Module, graph: DependencyGraph, move: Move) -> int:
    """Return by how many a move changes the number of parameters; negative for a Prune.

    Args:
        model: isn't changed.
        graph: of the model.
        move: of any kind.

    Raises:
        SennError: the graph has no such group.
    """
    if isinstance(move, Insert | Append):
        layer = move.layer if isinstance(move, Insert) else move.copy
        return sum(parameter.numel() for parameter in layer.parameters())
    units = move.units if isinstance(move, Widen) else -len(move.units)
    return added_parameters(model, {find_group(graph, move.group): units})


def added_parameters(model: nn.Module, units: Mapping[ChannelGroup, int]) -> int:
    """Return by how many a joint change of several widths changes the number of parameters.

    Args:
        model: isn't changed.
        units: by group, how many units come; negative where they go.
    """
    # A tensor may be resized along two dimensions (units that feed themselves, or two groups of one map): so by its
    # final shape, not by a sum.
    shapes: dict[str, list[int]] = {}
    change = 0
    for group, number in units.items():
        for coupled in group.dims:
            tensor = find_tensor(model, coupled.name)
            if not isinstance(tensor, nn.Parameter):
                continue
            if coupled.name not in shapes:
                shapes[coupled.name] = list(tensor.shape)
                change -= tensor.numel()
            shapes[coupled.name][coupled.dim] += number * coupled.index.shape[1]
    return change + sum(math.prod(shape) for shape in shapes.values())
