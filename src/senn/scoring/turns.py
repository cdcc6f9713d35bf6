"""Linear maps that a round scores, where they have turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from senn.graph import ChannelGroup, DependencyGraph, LinearMap, get_tensor


def maps_in_turn(
    model: nn.Module,
    graph: DependencyGraph,
    maps: Mapping[str, LinearMap],
    n_turns: int,
    number: int,
) -> tuple[dict[str, LinearMap], DependencyGraph]:
    """Find the maps whose turn it is, and the places where these alone score candidates.

    Args:
        model: the model.
        graph: what in it can change.
        maps: the linear maps that can be read, by name.
        n_turns: number of rounds in which every map is scored once.
        number: number of rounds before this one.

    Returns:
        The maps, and the graph with no other groups, insertion points and residual blocks than theirs.
    """
    if n_turns == 1:
        return dict(maps), graph
    turns = _turns(model, graph, maps, n_turns)
    n_turns = max(turns.values()) + 1
    # One further in each cycle, so that moves of every other round come to all maps.
    now = (number + number // n_turns) % n_turns
    own = {name: one for name, one in maps.items() if turns[name] == now}

    def is_own(group: ChannelGroup) -> bool:
        if group.norms:  # scored by what writes it, apart from all maps
            return now == 0
        readers = [name for name in _readers(group) if name in maps]
        return all(name in own for name in readers)

    blocks = [one for i, one in enumerate(graph.residual_blocks) if i % n_turns == now]
    places = replace(
        graph,
        groups=tuple(one for one in graph.groups if is_own(one)),
        insertion_points=tuple(one for one in graph.insertion_points if one.module in own),
        residual_blocks=tuple(blocks),
    )
    return own, places


def _turns(
    model: nn.Module, graph: DependencyGraph, maps: Mapping[str, LinearMap], n_turns: int
) -> dict[str, int]:
    """Turn of each map: about as many weights in each, and readers of one group's candidates together."""
    together = {name: [name] for name in maps}
    for group in graph.groups:
        # Units behind a norm aren't sampled: what reads them needn't be scored together.
        readers = [] if group.norms else [name for name in _readers(group) if name in maps]
        for name in readers[1:]:
            one, other = together[readers[0]], together[name]
            if one is not other:
                one += other
                together |= dict.fromkeys(other, one)
    sizes = {name: get_tensor(model, one.weight).numel() for name, one in maps.items()}
    sets = list({id(names): names for names in together.values()}.values())
    loads = [0] * min(n_turns, len(sets))
    found: dict[str, int] = {}
    for names in sorted(sets, key=lambda names: -_total(names, sizes)):
        turn = loads.index(min(loads))
        loads[turn] += _total(names, sizes)
        found |= dict.fromkeys(names, turn)
    return found


def _readers(group: ChannelGroup) -> list[str]:
    return [coupled.map for coupled in group.dims_of("consumer")]


def _total(names: Sequence[str], sizes: Mapping[str, int]) -> int:
    return sum(sizes[name] for name in names)
