"""The part of a surgery plan that inserts layers and repeats blocks."""

from __future__ import annotations

from torch import nn

from senn.errors import SennError, UnsupportedError
from senn.graph.types import DependencyGraph, ResidualBlock
from senn.surgery.moves import Append, Insert, Prune, Widen
from senn.surgery.plan_types import (
    BEFORE,
    SurgeryPlan,
    check_values,
    find_group,
    find_insertion_point,
    find_tensor,
    join,
)


def plan_insert(
    result: SurgeryPlan, model: nn.Module, move: Insert, graph: DependencyGraph
) -> None:
    """Check an insertion and add it to a plan.

    Args:
        result: the plan.
        model: isn't changed.
        move: the insertion.
        graph: of the model.

    Raises:
        SennError: it doesn't fit the model or the rest of the plan.
    """
    name = move.insertion_point
    point = find_insertion_point(graph, name)
    if any(other.insertion_point == name for other in result.inserts):
        raise SennError(f"two layers before '{name}' don't go into one operation")
    if type(move.layer) is nn.Sequential and not len(move.layer):
        raise SennError(f"the layer to insert before '{name}' is empty")
    linear = model.get_submodule(name)
    if not isinstance(linear, BEFORE):
        kind = type(linear).__name__
        raise UnsupportedError(
            f"'{name}' is a {kind}; layers are inserted before linear maps and convolutions"
        )
    _check_held_once(model, linear, f"inserted before '{name}'")
    # The inverse of the layer goes into the map behind it, so that the function stays.
    if move.right is not None:
        check_values(
            f"the matrix folded into '{name}'", move.right, [point.features, point.features]
        )
        _replace(result, model, join(name, "weight"))
    if move.shift is not None:
        if linear.bias is None:
            raise SennError(f"'{name}' has no bias that could take the inserted layer's shift")
        check_values(f"the shift folded into '{name}'", move.shift, [point.features])
        _replace(result, model, join(name, "bias"))
    result.inserts.append(move)


def plan_append(
    result: SurgeryPlan, model: nn.Module, move: Append, graph: DependencyGraph
) -> None:
    """Check the repetition of a block and add it to a plan.

    Args:
        result: the plan, whose moves are all known.
        model: isn't changed.
        move: the repetition.
        graph: of the model.

    Raises:
        SennError: it doesn't fit the model or the rest of the plan.
    """
    try:
        block = graph.block(move.block)
    except KeyError:
        known = ", ".join(repr(block.module) for block in graph.residual_blocks) or "none"
        raise SennError(f"there is no block '{move.block}' to append to; blocks: {known}") from None
    # Two copies behind one block would both claim the place right after it.
    if any(other is block for other, _ in result.appends):
        raise SennError(f"two blocks after '{move.block}' don't go into one operation")
    if _resizes_stream(result, block, graph):
        raise SennError(
            f"a block after '{move.block}' and a change of what it is given don't go into one operation"
        )
    _check_held_once(model, model.get_submodule(move.block), f"put after '{move.block}'")
    result.appends.append((block, move.copy))


def _resizes_stream(result: SurgeryPlan, block: ResidualBlock, graph: DependencyGraph) -> bool:
    """Return True if some move of the plan resizes what a block reads or gives, and not only its inside."""
    for move in result.moves:
        if isinstance(move, Widen | Prune):
            group = find_group(graph, move.group)
            inside = [coupled.name.startswith(f"{block.module}.") for coupled in group.dims]
            # Inside alone, the copy keeps its own width. Inside and outside, the copy would have to be resized as well.
            if any(inside) and not all(inside):
                return True
    return False


def _check_held_once(model: nn.Module, module: nn.Module, what: str) -> None:
    # The layer takes the place of one dictionary entry: under a second name the old module would go on.
    count = 0
    for parent in model.modules():
        count += sum(child is module for child in parent._modules.values())
    if count != 1:
        where = "is the model itself" if module is model else f"is held under {count} names"
        raise UnsupportedError(f"no layer can be {what}: it {where}")


def _replace(result: SurgeryPlan, model: nn.Module, name: str) -> None:
    """Have a tensor's data exchanged, though its shape may stay: former data are never written to."""
    result.shapes[name] = find_tensor(model, name).shape
