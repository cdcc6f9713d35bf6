"""Places whose tensors nobody trains aren't offered: what is bought there would stay as it was born."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from senn.graph.types import DependencyGraph, Refusal


def without_untrained(graph: DependencyGraph, untrained: Collection[str]) -> DependencyGraph:
    """Leave out groups, insertion points and blocks of which a tensor isn't held by any optimizer.

    Args:
        graph: of a model.
        untrained: full names of parameters that require gradients and that no optimizer holds.

    Returns:
        The graph with fewer places and more refusals.
    """
    if not untrained:
        return graph
    refusals: dict[str, Refusal] = {}

    def is_trained(place: str, tensors: Collection[str]) -> bool:
        idle = [name for name in tensors if name in untrained]
        if idle:
            reason = f"no optimizer holds '{idle[0]}', so what is new there would never be trained"
            refusals.setdefault(place, Refusal(place=place, reason=reason))
        return not idle

    groups = tuple(
        one for one in graph.groups if is_trained(one.name, [dim.name for dim in one.dims])
    )
    points = tuple(
        one for one in graph.insertion_points if is_trained(one.module, [f"{one.module}.weight"])
    )
    blocks = tuple(
        one for one in graph.residual_blocks if is_trained(one.module, one.output_params)
    )
    return replace(
        graph,
        groups=groups,
        insertion_points=points,
        residual_blocks=blocks,
        refusals=(*refusals.values(), *graph.refusals),
    )
