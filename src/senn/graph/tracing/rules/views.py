"""Rules for operations that move, copy or overwrite entries.

These are views, `cat`, casts, and tensors made like another. Those that only move entries need no code of their own:
`_move` carries them out on the labels themselves.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from senn.graph.tracing.label_maps import write_labels
from senn.graph.tracing.labels import varying
from senn.graph.tracing.recorded import Call
from senn.graph.tracing.rules.pointwise import Rules, meet_unlabeled, merge_label_maps, rules
from senn.graph.tracing.trace_recorder import TraceRecorder

# Operations that have no kernel for integers: labels go through them as doubles, exact up to 2^53.
_ONLY_FLOATING = frozenset(
    (
        *("aten::im2col", "aten::channel_shuffle", "aten::native_channel_shuffle"),
        *(
            f"aten::{kind}_pad{rank}d"
            for kind in ("reflection", "replication")
            for rank in (1, 2, 3)
        ),
    )
)


def _move(trace: TraceRecorder, call: Call) -> None:
    """Carry out an operation that only moves entries on the label maps, too."""
    # A view without units is followed as well: units may be written into it later, and so into its base.
    is_view = any(result.alias_info is not None for result in call.func._schema.returns)
    if not is_view and not any(map(trace.is_labeled, call.tensors)):
        return
    source = call.args[0]
    moved = [source] if isinstance(source, Tensor) else list(source)
    identities = set(map(id, moved))
    if any(id(tensor) not in identities and trace.has_units(tensor) for tensor in call.tensors):
        trace.refuse_call(call)  # units would choose which entries move, as indices of a `gather`
        return
    own_maps = [trace.labels_of(tensor) for tensor in moved]
    results = []
    for number in range(max(map(len, own_maps))):
        replacement = {}
        for tensor, own in zip(moved, own_maps, strict=True):
            has_one = number < len(own)  # parts of a `cat` may have different numbers of label maps
            replacement[id(tensor)] = own[number] if has_one else torch.zeros_like(own[0])
        results.append(pytree.tree_leaves(_on_labels(call, replacement)))
    for place, tensor in enumerate(call.outputs):
        label_maps = [result[place] for result in results]
        if any(label_map.shape != tensor.shape for label_map in label_maps):
            trace.refuse_call(call)  # a view as another dtype cuts entries into pieces
            return
        trace.set_labels(tensor, label_maps)


def _on_labels(call: Call, replacement: dict[int, Tensor]) -> Any:
    """Run an operation with label maps in place of its tensors."""

    def replaced(tensor: Tensor) -> Tensor:
        return replacement.get(id(tensor), tensor)

    args, kwargs = pytree.tree_map_only(Tensor, replaced, (call.args, call.kwargs))
    if call.name in _ONLY_FLOATING:
        return call.func(args[0].double(), *args[1:], **kwargs).long()
    try:
        return call.func(*args, **kwargs)
    except RuntimeError:
        if call.name not in ("aten::view", "aten::_unsafe_view"):
            raise
        return args[0].reshape(call.args[1])  # a label map may have other strides than its tensor


def _pad(trace: TraceRecorder, call: Call) -> None:
    """Constants around a tensor: of each unit along other dimensions, of none along that of the units."""
    source = call.args[0]
    if not trace.is_labeled(source):
        return
    widths = call.arguments["pad"]  # the last dimension comes first: (before, after, before, ...)
    label_maps = []
    for label_map in trace.labels_of(source):
        for number in range(len(widths) // 2):
            dim = source.dim() - 1 - number
            size = source.shape[dim]
            before, after = widths[2 * number : 2 * number + 2]  # negative where it is cropped
            positions = torch.arange(-before, size + after, device=label_map.device)
            moved = label_map.index_select(dim, positions.clamp(0, size - 1))
            if _lies_along(label_map, dim):
                shape = [1] * source.dim()
                shape[dim] = len(positions)
                inside = (positions >= 0) & (positions < size)
                moved = moved * inside.view(shape)
            label_map = moved
        label_maps.append(label_map)
    trace.set_labels(call.outputs[0], label_maps)


def _restride(trace: TraceRecorder, call: Call) -> None:
    """Read memory in another order: labels are laid out in memory as the tensor is, and read in that order."""
    source, output = call.args[0], call.outputs[0]
    if not trace.is_labeled(source):
        return
    label_maps = trace.labels_of(source)
    if (
        source is output
    ):  # in place: the former order is lost, but torch's own pooling keeps the shape
        if any(label_map.shape != output.shape for label_map in label_maps):
            trace.refuse_call(call)
        return
    size = source.untyped_storage().nbytes() // source.element_size()
    read = []
    for label_map in label_maps:
        memory = torch.zeros(size, dtype=torch.long, device=label_map.device)
        laid_out = memory.as_strided(source.shape, source.stride(), source.storage_offset())
        write_labels([laid_out], 0, label_map)
        read.append(
            memory.as_strided(output.shape, output.stride(), output.storage_offset()).clone()
        )
    trace.set_labels(output, read)


def _join(trace: TraceRecorder, call: Call) -> None:
    """`cat` and `stack`: tensors side by side share the units of their other dimensions."""
    parts = [part for part in call.args[0] if part.numel()]  # an empty part may have any shape
    if not any(map(trace.is_labeled, parts)):
        return
    output, new = call.outputs[0], call.name == "aten::stack"
    dim = call.arguments["dim"] % output.dim()
    own = [[labels for labels in trace.labels_of(part) if bool(labels.any())] for part in parts]
    if new:
        own = [[labels.unsqueeze(dim) for labels in label_maps] for label_maps in own]
    along, across = _sides(trace, own, -1 if new else dim)
    label_maps = []
    if any(labels is not None for labels in along):
        pieces = [
            torch.zeros_like(part, dtype=torch.long) if labels is None else labels
            for part, labels in zip(parts, along, strict=True)
        ]
        label_maps.append(torch.cat(pieces, dim))
    for shared in merge_label_maps(trace, [labels.narrow(dim, 0, 1) for labels in across]):
        dims = varying(shared)
        for part, known in zip(parts, own, strict=True):
            if not any(not dims or dims & varying(labels) for labels in known):
                meets = shared.squeeze(dim) if new else shared
                meet_unlabeled(trace, meets.expand(part.shape), part)
        label_maps.append(shared.expand(output.shape).clone())
    trace.set_labels(output, label_maps)


def _sides(
    trace: TraceRecorder, own: list[list[Tensor]], dim: int
) -> tuple[list[Tensor | None], list[Tensor]]:
    """Divide the label maps of joined tensors.

    Args:
        trace: the recorder.
        own: the label maps of each part.
        dim: the dimension along which the parts lie; -1 if it is a new one.

    Returns:
        The label map of each part whose units follow those of the part before along `dim`, or None; and those whose
        units lie along other dimensions, which all parts share.
    """
    across_dims: set[int] = set()
    for labels in itertools.chain(*own):
        if trace.record.is_made(labels) and not _lies_along(labels, dim):
            across_dims |= varying(labels)
    along: list[Tensor | None] = []
    across = []
    for label_maps in own:
        lying = None
        for labels in label_maps:
            if not _lies_along(labels, dim):
                across.append(labels)
            elif not trace.record.is_made(labels) and across_dims & varying(labels):
                # A table whose rows follow others (a class token, a prefix): the columns are the units.
                across.append(trace.record.merge_along(labels, {dim}))
            else:
                lying = labels
        along.append(lying)
    return along, across


def _lies_along(labels: Tensor, dim: int) -> bool:
    """Return True if units lie along a dimension; a single unit does where the dimension has one position."""
    along = varying(labels)
    return dim in along or (dim >= 0 and not along and labels.shape[dim] == 1)


def _keep(trace: TraceRecorder, call: Call) -> None:
    """Give outputs the units of the first input: casts, copies, tensors made like another."""
    source = call.tensors[0]
    if not trace.is_labeled(source):
        if call.operation == "to_copy":
            trace.note_copy(source, call.outputs[0])
        return
    for tensor in call.outputs:
        if tensor is not source and tensor.shape == source.shape:
            copies = [
                label_map.to(tensor.device, copy=True) for label_map in trace.labels_of(source)
            ]
            trace.set_labels(tensor, copies)


def _new(trace: TraceRecorder, call: Call) -> None:
    """Tensors of a given size, which take only their dtype and device from another: they have no units."""


def _overwrite(trace: TraceRecorder, call: Call) -> None:
    """Replace the units of a tensor, or of a part of one, by those of what is written into it."""
    target, *others = call.tensors
    source = call.arguments.get("src")
    if source is None:
        for value in others:
            trace.unreadable(value, call.operation)
    if source is not None and trace.is_labeled(source):
        trace.set_labels(
            target, [label_map.expand_as(target) for label_map in trace.labels_of(source)]
        )
    elif trace.is_labeled(target):
        for label_map in trace.labels_of(target):
            label_map.zero_()


RULES: Rules = {
    **rules(
        _move,
        "view _unsafe_view reshape _reshape_alias t t_ transpose transpose_ permute expand unsqueeze unsqueeze_ "
        "squeeze squeeze_ select slice split split_with_sizes unsafe_split unsafe_split_with_sizes unsafe_chunk unbind "
        "clone repeat repeat_interleave flip roll index index_select diagonal unfold tril triu pixel_shuffle "
        "pixel_unshuffle detach detach_ alias lift_fresh im2col channel_shuffle native_channel_shuffle "
        "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d",
    ),
    **rules(_join, "cat stack"),
    **rules(_pad, "constant_pad_nd"),
    **rules(_restride, "as_strided as_strided_"),
    **rules(_new, "new_zeros new_ones new_full new_empty new_empty_strided"),
    **rules(
        _keep,
        "_to_copy empty_like zeros_like ones_like full_like rand_like randn_like native_dropout bernoulli bernoulli_ "
        "normal_ uniform_ exponential_",
    ),
    **rules(_overwrite, "copy_ fill_ zero_"),
}
