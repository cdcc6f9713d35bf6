"""From moves to a plan: what becomes of each tensor, module and attribute, by name.

Every move of one plan is written against the model as it stands before any of them. So values for new rows
have the old number of columns (new columns of other moves read zero there), and units and compensations are
numbered as they were.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from senn.errors import DivergenceError, SennError, UnsupportedError
from senn.graph.types import ChannelGroup, CoupledDim, DependencyGraph, InsertionPoint, LinearMap, owned_columns
from senn.surgery.index_maps import IndexMap, IndexMapBuilder
from senn.surgery.moves import Append, Insert, Move, Prune, Widen
from senn.surgery.repeat import Addition

BEFORE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Modules before which a layer can be inserted."""

How = Literal["given", "neutral", "mean", "zero", "cycle"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Entries:
    """New entries along one dimension of a tensor.

    Attributes:
        dim: the dimension.
        offset: number of the first new position.
        count: of new positions.
        fill: as given; the module's neutral value; the mean of the old units' entries; zero; or the old units' entries
            in turn.
        values: if given.
        index: the old units' positions, (width, k).
    """

    dim: int
    offset: int
    count: int
    fill: How
    values: Tensor | None
    index: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Compensation:
    """W_kept += W_gone @ coefficients[:, :-1], b += W_gone @ coefficients[:, -1], in the matrix's old columns."""

    map: LinearMap
    gone: Tensor
    kept: Tensor
    coefficients: Tensor


@dataclass(eq=False, kw_only=True)
class SurgeryPlan:
    """What several moves come to.

    Attributes:
        moves: as asked for.
        shapes: old shape of every tensor that is replaced, by full name.
        drafts: by full tensor name and dimension, who comes and leaves.
        layouts: the same, settled.
        entries: by full tensor name, the new producer and carrier entries.
        compensations: in the order of the moves.
        inserts: in the order of the moves.
        appends: blocks, and what comes after them; likewise.
        attributes: by (module, attribute, item), how much is added.
        scales: by full tensor name, a factor of all its entries (weights of normalisations).
        factors: by (module, attribute), a factor of a floating-point attribute (their eps).
    """

    moves: tuple[Move, ...] = ()
    shapes: dict[str, torch.Size] = field(default_factory=dict)
    drafts: dict[str, dict[int, IndexMapBuilder]] = field(default_factory=lambda: defaultdict(dict))
    layouts: dict[str, dict[int, IndexMap]] = field(default_factory=dict)
    entries: dict[str, list[Entries]] = field(default_factory=lambda: defaultdict(list))
    compensations: list[Compensation] = field(default_factory=list)
    inserts: list[Insert] = field(default_factory=list)
    appends: list[Addition] = field(default_factory=list)
    attributes: dict[tuple[str, str, int | None], int] = field(default_factory=lambda: defaultdict(int))
    scales: dict[str, float] = field(default_factory=dict)
    factors: dict[tuple[str, str], float] = field(default_factory=dict)


def plan(model: nn.Module, moves: Sequence[Move], graph: DependencyGraph) -> SurgeryPlan:
    """Check the moves against the model and work out what becomes of each tensor.

    Raises:
        SennError: if a move doesn't fit the model; nothing has been changed.
    """
    result = SurgeryPlan(moves=tuple(moves))
    left = {group.name: set(range(group.width)) for group in graph.groups}
    for move in moves:
        if isinstance(move, Insert):
            _plan_insert(result, model, move, graph)
        elif isinstance(move, Append):
            _plan_append(result, model, move, graph)
        elif isinstance(move, Widen):
            _plan_widen(result, model, move, find_group(graph, move.group))
        else:
            group = find_group(graph, move.group)
            _plan_prune(result, model, move, group, graph, left[group.name])
    for insert in result.inserts:
        if 1 in result.drafts.get(join(insert.insertion_point, "weight"), {}):
            raise SennError(
                f"a layer before '{insert.insertion_point}' and a change of its inputs don't go into one operation"
            )
    for name in result.shapes:
        result.layouts[name] = {dim: draft.layout() for dim, draft in result.drafts.get(name, {}).items()}
    return result


def join(module: str, tensor: str) -> str:
    """Full name of a tensor of a module, as in `state_dict`."""
    return f"{module}.{tensor}" if module else tensor


def find_tensor(model: nn.Module, name: str) -> Tensor:
    """The plain parameter or buffer with that full name."""
    path, _, key = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise SennError(f"the model has no module '{path}'; was its structure found on another model?") from None
    tensor = module._parameters.get(key, module._buffers.get(key))
    if tensor is None:
        raise UnsupportedError(f"'{name}' is not a plain parameter or buffer of the model")
    if type(tensor) not in (nn.Parameter, Tensor) and type(tensor) is not nn.Buffer:
        raise UnsupportedError(f"'{name}' is a {type(tensor).__name__}, which can't be resized")
    return tensor


def find_group(graph: DependencyGraph, name: str) -> ChannelGroup:
    """The space with that name."""
    try:
        return graph.group(name)
    except KeyError:
        known = ", ".join(repr(group.name) for group in graph.groups) or "none"
        raise SennError(f"there is no space '{name}' to resize; spaces: {known}") from None


def _draft(result: SurgeryPlan, model: nn.Module, coupled: CoupledDim) -> IndexMapBuilder:
    """The draft for the slot's dimension, made at first use."""
    shape = find_tensor(model, coupled.name).shape
    if coupled.dim >= len(shape) or int(coupled.index.max()) >= shape[coupled.dim]:
        raise SennError(f"'{coupled.name}' has shape {tuple(shape)}, which doesn't fit the structure; analyse it anew")
    result.shapes[coupled.name] = shape
    return result.drafts[coupled.name].setdefault(coupled.dim, IndexMapBuilder(shape[coupled.dim]))


def _plan_widen(result: SurgeryPlan, model: nn.Module, move: Widen, group: ChannelGroup) -> None:
    if move.units < 1 or move.units % group.granularity:
        raise SennError(f"'{group.name}' widens by multiples of {group.granularity}, not by {move.units}")
    takers = {coupled.name for coupled in group.dims if _takes_values(coupled)}
    if unknown := sorted(set(move.values) - takers):
        raise SennError(f"values for '{unknown[0]}', which takes none in '{group.name}'")
    for coupled in group.dims:
        offset, count = _draft(result, model, coupled).add(coupled, move.units)
        values = move.values.get(coupled.name) if _takes_values(coupled) else None
        if values is not None:
            shape = list(result.shapes[coupled.name])
            shape[coupled.dim] = count
            _check_values(f"new entries of '{coupled.name}'", values, shape)
        elif coupled.role == "producer" and not coupled.behind_norm:
            raise SennError(f"new units of '{group.name}' need values for '{coupled.name}'")
        if (how := _how(coupled, group, values)) is not None:
            index = coupled.index.cpu()
            result.entries[coupled.name].append(
                Entries(dim=coupled.dim, offset=offset, count=count, fill=how, values=values, index=index)
            )
    _plan_attributes(result, group, move.units)
    _plan_norms(result, group, move.units)


def _takes_values(coupled: CoupledDim) -> bool:
    """Whether new entries may be given: in producers and carriers, unless a normalisation says what they must be."""
    return coupled.role != "consumer" and not coupled.behind_norm


def _how(coupled: CoupledDim, group: ChannelGroup, values: Tensor | None) -> How | None:
    """What new entries are; None for zero columns, which need nothing."""
    if values is not None:
        return "given"
    if not coupled.behind_norm:
        return None if coupled.role == "consumer" else "neutral"
    if coupled.role == "consumer":
        return "cycle"
    if any(norm.module == coupled.module for norm in group.norms):
        return "zero" if coupled.tensor == "bias" else "mean"
    return "mean" if group.norms[0].kind == "layer" else "zero"


def _plan_norms(result: SurgeryPlan, group: ChannelGroup, units: int) -> None:
    """Normalisations over the units: weight and eps make up for the new ones."""
    for norm in group.norms:
        fraction = group.width / (group.width + units)
        for coupled in group.dims:
            if coupled.module == norm.module and coupled.tensor == "weight":
                result.scales[coupled.name] = result.scales.get(coupled.name, 1.0) * math.sqrt(fraction)
        if norm.eps is not None:
            key = norm.module, norm.eps
            result.factors[key] = result.factors.get(key, 1.0) * fraction


def _plan_prune(
    result: SurgeryPlan, model: nn.Module, move: Prune, group: ChannelGroup, graph: DependencyGraph, left: set[int]
) -> None:
    for unit in move.units:
        if unit not in left:
            raise SennError(
                f"'{group.name}' has no unit {unit} to prune; it has units 0 to {group.width - 1}, once each"
            )
        left.remove(unit)
    if not left or not move.units or len(move.units) % group.granularity:
        raise SennError(
            f"'{group.name}' loses between {group.granularity} and {group.width - group.granularity} units "
            f"in multiples of {group.granularity}, not {len(move.units)}"
        )
    gone: dict[str, list[Tensor]] = defaultdict(list)
    for coupled in group.dims:
        positions = coupled.index.cpu()[list(move.units)].flatten()
        _draft(result, model, coupled).remove(positions)
        if coupled.role == "consumer" and coupled.map in move.compensation:
            one = graph.map(coupled.map)
            if (one.weight, one.in_dim) != (coupled.name, coupled.dim):
                raise UnsupportedError(
                    f"compensation in '{coupled.name}' along dimension {coupled.dim} isn't understood"
                )
            gone[coupled.map].append(owned_columns(coupled, one.kernel_numel)[list(move.units)].flatten())
    if unknown := sorted(set(move.compensation) - set(gone)):
        raise SennError(f"compensation for '{unknown[0]}', which is no consumer of '{group.name}'")
    for name, coefficients in move.compensation.items():
        _plan_compensation(result, model, graph.map(name), torch.cat(gone[name]), coefficients)
    _plan_attributes(result, group, -len(move.units))
    _plan_norms(result, group, -len(move.units))


def _plan_compensation(
    result: SurgeryPlan, model: nn.Module, one: LinearMap, gone: Tensor, coefficients: Tensor
) -> None:
    everything = torch.arange(find_tensor(model, one.weight).shape[one.in_dim] * one.kernel_numel)
    kept = everything[~torch.isin(everything, gone)]
    _check_values(f"compensation in '{one.name}'", coefficients, [len(gone), len(kept) + 1])
    if one.bias is not None:
        result.shapes[one.bias] = find_tensor(model, one.bias).shape
    elif coefficients[:, -1].any():
        raise SennError(f"'{one.name}' has no bias, so the last column of its compensation must be zero")
    result.compensations.append(Compensation(map=one, gone=gone, kept=kept, coefficients=coefficients))


def _plan_attributes(result: SurgeryPlan, group: ChannelGroup, units: int) -> None:
    for attribute in group.attributes:
        result.attributes[attribute.module, attribute.name, attribute.item] += units * attribute.per_unit


def _plan_insert(result: SurgeryPlan, model: nn.Module, move: Insert, graph: DependencyGraph) -> None:
    insertion_point = find_insertion_point(graph, move.insertion_point)
    if any(other.insertion_point == move.insertion_point for other in result.inserts):
        raise SennError(f"two layers before '{move.insertion_point}' don't go into one operation")
    if type(move.layer) is nn.Sequential and not len(move.layer):
        raise SennError(f"the layer to insert before '{move.insertion_point}' is empty")
    linear = model.get_submodule(move.insertion_point)
    if not isinstance(linear, BEFORE):
        kind = type(linear).__name__
        raise UnsupportedError(
            f"'{move.insertion_point}' is a {kind}; layers are inserted before linear maps and convolutions"
        )
    _check_held_once(model, linear, f"inserted before '{move.insertion_point}'")
    if move.right is not None:
        _check_values(
            f"the matrix folded into '{move.insertion_point}'",
            move.right,
            [insertion_point.features, insertion_point.features],
        )
        _note(result, model, join(move.insertion_point, "weight"))
    if move.shift is not None:
        if linear.bias is None:
            raise SennError(f"'{move.insertion_point}' has no bias that could take the inserted layer's shift")
        _check_values(f"the shift folded into '{move.insertion_point}'", move.shift, [insertion_point.features])
        _note(result, model, join(move.insertion_point, "bias"))
    result.inserts.append(move)


def _plan_append(result: SurgeryPlan, model: nn.Module, move: Append, graph: DependencyGraph) -> None:
    try:
        block = graph.block(move.block)
    except KeyError:
        known = ", ".join(repr(block.module) for block in graph.residual_blocks) or "none"
        raise SennError(f"there is no block '{move.block}' to append to; blocks: {known}") from None
    if any(other is block for other, _ in result.appends):
        raise SennError(f"two blocks after '{move.block}' don't go into one operation")
    for other in result.moves:
        if isinstance(other, Widen | Prune):
            within = {coupled.name.startswith(f"{block.module}.") for coupled in find_group(graph, other.group).dims}
            if len(within) > 1:
                raise SennError(
                    f"a block after '{move.block}' and a change of what it is given don't go into one operation"
                )
    _check_held_once(model, model.get_submodule(move.block), f"put after '{move.block}'")
    result.appends.append((block, move.copy))


def _check_held_once(model: nn.Module, module: nn.Module, what: str) -> None:
    holders = [name for parent in model.modules() for name, m in parent._modules.items() if m is module]
    if len(holders) != 1:
        where = "is the model itself" if module is model else f"is held under {len(holders)} names"
        raise UnsupportedError(f"no layer can be {what}: it {where}")


def _note(result: SurgeryPlan, model: nn.Module, name: str) -> None:
    """Have a tensor replaced though its shape may stay."""
    result.shapes[name] = find_tensor(model, name).shape


def find_insertion_point(graph: DependencyGraph, name: str) -> InsertionPoint:
    """The site with that name."""
    for insertion_point in graph.insertion_points:
        if insertion_point.module == name:
            return insertion_point
    known = ", ".join(repr(insertion_point.module) for insertion_point in graph.insertion_points) or "none"
    raise SennError(f"there is no site '{name}' to insert a layer at; sites: {known}")


def _check_values(what: str, values: Tensor, shape: Sequence[int]) -> None:
    if tuple(values.shape) != tuple(shape):
        raise SennError(f"{what} must have shape {tuple(shape)}, not {tuple(values.shape)}")
    if not values.isfinite().all():
        raise DivergenceError(f"{what} are not finite")


def parameters_per_unit(model: nn.Module, group: ChannelGroup) -> int:
    """How many parameters one more unit of the space brings, consumers included."""
    return _resized(model, group, 1)


def new_parameters(model: nn.Module, graph: DependencyGraph, move: Move) -> int:
    """By how much a move changes the number of parameters; negative for a Prune."""
    if isinstance(move, Insert | Append):
        layer = move.layer if isinstance(move, Insert) else move.copy
        return sum(parameter.numel() for parameter in layer.parameters())
    units = move.units if isinstance(move, Widen) else -len(move.units)
    return _resized(model, find_group(graph, move.group), units)


def _resized(model: nn.Module, group: ChannelGroup, units: int) -> int:
    """Change of the number of parameters when the space changes by `units`."""
    shapes: dict[str, list[int]] = {}
    change = 0
    for coupled in group.dims:
        tensor = find_tensor(model, coupled.name)
        if isinstance(tensor, nn.Parameter):
            if coupled.name not in shapes:
                shapes[coupled.name] = list(tensor.shape)
                change -= tensor.numel()
            shapes[coupled.name][coupled.dim] += units * coupled.index.shape[1]
    return change + sum(math.prod(shape) for shape in shapes.values())
