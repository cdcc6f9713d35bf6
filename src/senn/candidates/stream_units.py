"""Candidate units of residual streams behind norms: random columns that read them, and silent rows that write them.

A unit that a norm must not notice enters it as zeros (LayerNorm: as the mean of the others) and leaves it as zeros, so
the columns that read it may be anything and nothing changes. With columns that aren't zero the rows that write it have
a gradient, by which it is scored (`senn.scoring.stream_rows`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from senn import pytree
from senn.errors import warn
from senn.graph import ChannelGroup, CoupledDim, DependencyGraph, LinearMap, get_tensor
from senn.graph.stream_places import stream_refusal
from senn.kfac.recorder import Tables, forward, record_linear_calls
from senn.preserve import preserve_model_state
from senn.pytree import Inputs, Output
from senn.surgery import Widen


@dataclass(frozen=True, eq=False, kw_only=True)
class Writer:
    """What writes the units of a stream: each unit is a row of a linear map, or a column of a table.

    Attributes:
        name: name of the map, or full name of the table.
        coupled: the dimension that gets entries for new units.
        map: the map; None for a table.
        rows: of a table, how many it has; None for a map.
        shared: of a table, True if all samples look up the same rows of it (positions).
    """

    name: str
    coupled: CoupledDim
    map: LinearMap | None = None
    rows: int | None = None
    shared: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamUnits:
    """Candidate units of one stream.

    Attributes:
        move: the move that would add all of them, with the columns that read them.
        writers: what writes the stream and can be read; anything else starts silent, and nothing is promised for it.
        centered: True if the norms take the mean off, and rows are counted from it.
    """

    move: Widen
    writers: tuple[Writer, ...]
    centered: bool


def sample_stream_units(
    model: nn.Module,
    graph: DependencyGraph,
    maps: Mapping[str, LinearMap],
    *,
    units: int,
    generator: torch.Generator,
    inputs: Inputs | None,
    output: Output | None,
) -> dict[str, StreamUnits]:
    """Sample candidate units for each stream that can be scored.

    Args:
        model: the model, read only.
        graph: what in it can change.
        maps: linear maps that can be read, by name.
        units: how many for each stream; 0 for none.
        generator: source of randomness.
        inputs: a few samples, from which is read what is looked up in tables; None where they can't be cut.
        output: finds the outputs in what the model returns.
    """
    reasons = {one.name: stream_refusal(one) for one in graph.groups if one.norms and units}
    for name, reason in reasons.items():
        if reason is not None:
            warn(f"no units are offered for the stream {name}: {reason}")
    places = [one for one in graph.groups if one.name in reasons and reasons[one.name] is None]
    if not places:
        return {}
    moves = {one.name: _sample_columns(model, one, units, generator) for one in places}
    shared = _shared_tables(model, graph, moves, inputs, output)
    found = {}
    for group in places:
        writers = _writers(model, group, maps, shared)
        if not writers:
            warn(
                f"no units are offered for the stream {group.name}: nothing that writes it can be read"
            )
        else:
            found[group.name] = StreamUnits(
                move=moves[group.name],
                writers=writers,
                centered=group.norms[0].kind == "layer",
            )
    return found


def _sample_columns(
    model: nn.Module, group: ChannelGroup, units: int, generator: torch.Generator
) -> Widen:
    """Draw the columns that read new units, of the scale that each reader's columns have."""
    units = -(-units // group.granularity) * group.granularity
    values = {}
    for coupled in group.dims_of("consumer"):
        if not coupled.behind_norm:
            continue
        tensor = get_tensor(model, coupled.name).detach()
        existing = tensor.index_select(coupled.dim, coupled.index.flatten().to(tensor.device))
        shape = list(tensor.shape)
        shape[coupled.dim] = units * coupled.index.shape[1]
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        scale = existing.double().square().mean().sqrt()
        values[coupled.name] = (noise * float(scale)).to(tensor)
    return Widen(group.name, units, values)


def _writers(
    model: nn.Module,
    group: ChannelGroup,
    maps: Mapping[str, LinearMap],
    shared: Mapping[str, bool],
) -> tuple[Writer, ...]:
    found = []
    for coupled in group.dims:
        if coupled.role == "consumer" or coupled.stream_power != 1:
            continue
        one, tensor = maps.get(coupled.map), get_tensor(model, coupled.name)
        if not tensor.requires_grad:
            continue
        if one is not None and (one.weight, one.out_dim) == (coupled.name, coupled.dim):
            if one.groups == 1 and not one.transposed:
                found.append(Writer(name=one.name, coupled=coupled, map=one))
        elif (is_shared := shared.get(coupled.name)) is not None:
            table = Writer(name=coupled.name, coupled=coupled, rows=len(tensor), shared=is_shared)
            found.append(table)
    return tuple(found)


def _shared_tables(
    model: nn.Module,
    graph: DependencyGraph,
    moves: Mapping[str, Widen],
    inputs: Inputs | None,
    output: Output | None,
) -> dict[str, bool]:
    """Find the tables that are looked up once in a forward pass, and those of which all samples share the rows.

    Tried on two numbers of samples, since a number of positions may be that of the samples by chance.
    """
    names = [
        coupled.name
        for name in moves
        for coupled in graph.group(name).dims
        if coupled.role != "consumer" and coupled.stream_power == 1 and _is_table(model, coupled)
    ]
    # A head that is tied to the table reads it too: steps of existing entries would change what that computes.
    applied = {id(get_tensor(model, one.weight)) for one in graph.linear_maps}
    names = [name for name in names if id(get_tensor(model, name)) not in applied]
    count = 0 if inputs is None else min(pytree.count(inputs), 3)
    if inputs is None or not names or count < 2:
        return {}
    shapes: dict[str, list[tuple[int, ...]]] = {name: [] for name in names}
    numbers = (count, count - 1)
    for number in numbers:
        tables = Tables(shared=dict.fromkeys(names, False), samples=number)
        with (
            torch.no_grad(),
            preserve_model_state(model),
            record_linear_calls(model, names, tables=tables) as calls,
        ):
            forward(model, pytree.clone(pytree.head(inputs, number)), output)
        for name, several in calls.items():
            if len(several) == 1:
                shapes[name].append(tuple(several[0].x.shape[:-1]))
    found = {}
    for name, (first, *others) in ((name, of) for name, of in shapes.items() if len(of) == 2):
        if [first[:1], *(one[:1] for one in others)] == [(number,) for number in numbers]:
            found[name] = False
        elif others == [first] and (len(first) == 1 or (len(first) == 2 and first[0] == 1)):
            found[name] = True
    return found


def _is_table(model: nn.Module, coupled: CoupledDim) -> bool:
    """True for the weight of an embedding, or a plain parameter of rows, as positions are."""
    tensor = get_tensor(model, coupled.name)
    module = model.get_submodule(coupled.module)
    # Rows that get no gradient, or are scaled as they are looked up, aren't those of a linear map.
    special = [getattr(module, name, None) for name in ("padding_idx", "max_norm")]
    is_plain = all(one is None for one in special) and not getattr(
        module, "scale_grad_by_freq", False
    )
    return tensor.dim() == 2 and coupled.dim == 1 and is_plain
