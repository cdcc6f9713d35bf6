"""Rules for operations that write at, or read from, positions that an index names.

Rows move along the indexed dimensions, and units along the others stay what they are: messages of a graph that are
summed at their targets, tokens that are put where a mask has room for them, tables of relative positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from senn.graph.tracing.labels import varying
from senn.graph.tracing.recorded import Call
from senn.graph.tracing.rules.pointwise import (
    Rules,
    fix_along,
    meet_unlabeled,
    merge_label_maps,
    rules,
)
from senn.graph.tracing.trace_recorder import TraceRecorder

_ADDING = frozenset(("index_add", "index_reduce", "scatter_add", "scatter_reduce"))


def _gather(trace: TraceRecorder, call: Call) -> None:
    """Read, along one dimension, the entries that an index of the output's shape names."""
    arguments, output = call.arguments, call.outputs[0]
    source, dim, index = arguments["self"], arguments["dim"], arguments["index"]
    if trace.has_units(index):
        trace.refuse_call(call)
        return
    if not trace.is_labeled(source):
        return
    label_maps = []
    for label_map in trace.labels_of(source):
        label_map = label_map.gather(dim, index)
        # The index has an entry for each unit as well, so that its size must follow theirs.
        meet_unlabeled(trace, label_map.amax(dim, keepdim=True), index)
        label_maps.append(label_map)
    trace.set_labels(output, label_maps)


def _write(trace: TraceRecorder, call: Call) -> None:
    """Write into rows of a tensor, add to them or reduce with them: units along other dimensions stay."""
    target, source = call.arguments["self"], _source(call)
    operands = [target] if source is None else [target, source]
    known = set(map(id, operands))
    if any(id(tensor) not in known and trace.has_units(tensor) for tensor in call.tensors):
        trace.refuse_call(call)  # units would choose where something is written, or what
        return
    if not any(map(trace.is_labeled, operands)):
        return
    dims = _indexed_dims(call)
    rows: list[Tensor] = []
    placed: dict[int, Tensor] = {}
    for tensor in operands:
        for label_map in trace.labels_of(tensor):
            if not bool(label_map.any()):
                continue
            row = (_row if tensor is target else _row_of_source)(trace, call, label_map, dims)
            if row is None:
                placed[id(tensor)] = label_map
            else:
                rows.append(row)
    if len({row.shape for row in rows}) > 1:
        trace.refuse_call(call)  # written into a part of the units
        return
    label_maps = _written(trace, call, placed)
    for shared in merge_label_maps(trace, rows):
        label_maps.append(_met(trace, call, shared, operands).expand(target.shape).clone())
    trace.set_labels(call.outputs[0], label_maps)


def _source(call: Call) -> Tensor | None:
    """Return the tensor that is written; None if it is a number."""
    for key in ("src", "source", "values", "value"):
        source = call.arguments.get(key)
        if isinstance(source, Tensor) and source.dim():
            return source
    return None


def _indexed_dims(call: Call) -> set[int]:
    """Return the dimensions along which an index or a mask says where something is written."""
    arguments = call.arguments
    rank = arguments["self"].dim()
    if "dim" in arguments:
        return {arguments["dim"] % rank}
    if "indices" not in arguments:  # `masked_scatter`, whose rows are the last dimension
        return set(range(rank - 1))
    dims: set[int] = set()
    place = 0
    for index in arguments["indices"]:
        # A mask stands for as many dimensions as it has.
        taken = index.dim() if index is not None and index.dtype == torch.bool else 1
        if index is not None:
            dims |= set(range(place, place + taken))
        place += taken
    return dims


def _row(trace: TraceRecorder, call: Call, label_map: Tensor, dims: set[int]) -> Tensor | None:
    """Return the label map of one row, with size 1 along the indexed dimensions; None if units lie along these."""
    along = varying(label_map)
    if along and along <= dims:
        return None
    if along & dims:
        label_map = fix_along(trace, label_map, along & dims)
    return label_map.amax(sorted(dims), keepdim=True)


def _row_of_source(
    trace: TraceRecorder, call: Call, label_map: Tensor, dims: set[int]
) -> Tensor | None:
    """Return the label map of one row of what is written; see `_row`."""
    arguments = call.arguments
    target: Tensor = arguments["self"]
    if "dim" in arguments:  # of the target's rank
        return _row(trace, call, label_map, dims)
    memory = torch.zeros(target.shape, dtype=torch.long, device=label_map.device)
    if "mask" in arguments:
        where = arguments["mask"].expand(target.shape)
        memory.masked_scatter_(where, label_map)
        row = memory.amax(sorted(dims), keepdim=True)
        same = torch.equal(row.expand(target.shape)[where], memory[where])
    else:
        # Leading dimensions of size 1 may be missing in what is written, so it is written, and read back.
        where = tuple(slice(None) if index is None else index for index in arguments["indices"])
        memory[where] = label_map
        row = memory.amax(sorted(dims), keepdim=True)
        read = row.expand(target.shape)[where]
        same = torch.equal(read, label_map.expand_as(read))
    return row if same else None


def _written(trace: TraceRecorder, call: Call, placed: dict[int, Tensor]) -> list[Tensor]:
    """Carry out an operation on label maps of units that lie along the indexed dimensions."""
    if not placed:
        return []
    arguments = dict(call.arguments)
    adds = call.operation in _ADDING or bool(arguments.get("accumulate") or arguments.get("reduce"))
    if adds:
        for label_map in placed.values():
            trace.record.refuse(label_map, f"{trace.place} mixes its units ({call.operation})")
        return []
    for key in ("self", "src", "source", "values", "value"):
        value = arguments.get(key)
        if isinstance(value, Tensor):
            nothing = torch.zeros_like(value, dtype=torch.long)
            arguments[key] = placed.get(id(value), nothing).clone()
        elif value is not None:
            arguments[key] = 0
    return [call.func(**arguments)]


def _met(trace: TraceRecorder, call: Call, shared: Tensor, operands: list[Tensor]) -> Tensor:
    """Let what has no units meet the units of the other operand."""
    unlabeled = [
        tensor
        for tensor in operands
        if not any(bool(label_map.any()) for label_map in trace.labels_of(tensor))
    ]
    if call.operation.startswith("scatter"):
        unlabeled.append(call.arguments["index"])  # which has an entry for each unit
    for tensor in unlabeled:
        shared = meet_unlabeled(trace, shared, tensor, call.values_of(tensor))
    return shared


RULES: Rules = {
    **rules(_gather, "gather"),
    **rules(
        _write,
        "index_add index_add_ index_reduce index_reduce_ index_copy index_copy_ index_fill index_fill_ index_put "
        "index_put_ _unsafe_index_put scatter scatter_ scatter_add scatter_add_ scatter_reduce scatter_reduce_ "
        "masked_scatter masked_scatter_",
    ),
}
