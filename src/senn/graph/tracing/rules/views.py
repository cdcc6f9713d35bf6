"""Rules for operations that move, copy or overwrite entries.

These are views, `cat`, casts, and tensors made like another. Those that only move entries need no code of their own:
`_move` carries them out on the labels themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from senn.graph.tracing.labels import varying
from senn.graph.tracing.recorded import Call
from senn.graph.tracing.rules.pointwise import Rules, meet_unlabeled, rules
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
    if any(id(tensor) not in identities and trace.is_labeled(tensor) for tensor in call.tensors):
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
    if call.name == "aten::constant_pad_nd":
        return call.func(*args[:2])  # padding belongs to no unit, whatever its value
    if call.name in _ONLY_FLOATING:
        return call.func(args[0].double(), *args[1:], **kwargs).long()
    try:
        return call.func(*args, **kwargs)
    except RuntimeError:
        if call.name not in ("aten::view", "aten::_unsafe_view"):
            raise
        return args[0].reshape(call.args[1])  # a label map may have other strides than its tensor


def _join(trace: TraceRecorder, call: Call) -> None:
    """`cat` and `stack`: tensors side by side share the units of their other dimensions."""
    _move(trace, call)
    output = call.outputs[0]
    if not trace.is_labeled(output):
        return
    parts = [part for part in call.args[0] if part.numel()]  # an empty part may have any shape
    new = call.name == "aten::stack"
    dim = call.arguments["dim"] % output.dim()
    label_maps = []
    for number, label_map in enumerate(trace.labels_of(output)):
        own = []
        for part in parts:
            own += trace.labels_of(part)[number : number + 1]
        along_dim = not new and any(dim in varying(labels) for labels in own)
        if along_dim or not bool(label_map.any()):
            label_maps.append(
                label_map
            )  # units lie one after the other along `dim`: nothing to merge
            continue
        shared = trace.record.merge_along(label_map, {dim})
        for part, labels in zip(parts, own, strict=False):
            if not bool(labels.any()):
                meet_unlabeled(
                    trace, (shared.squeeze(dim) if new else shared).expand(part.shape), part
                )
        label_maps.append(shared.expand(label_map.shape).clone())
    trace.set_labels(output, label_maps)


def _keep(trace: TraceRecorder, call: Call) -> None:
    """Give outputs the units of the first input: casts, copies, tensors made like another."""
    source = call.tensors[0]
    if not trace.is_labeled(source):
        return
    for tensor in call.outputs:
        if tensor is not source and tensor.shape == source.shape:
            copies = [
                label_map.to(tensor.device, copy=True) for label_map in trace.labels_of(source)
            ]
            trace.set_labels(tensor, copies)


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
        "clone repeat repeat_interleave flip roll index index_select gather constant_pad_nd diagonal unfold "
        "tril triu pixel_shuffle pixel_unshuffle detach detach_ alias lift_fresh im2col channel_shuffle "
        "native_channel_shuffle reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
        "replication_pad2d replication_pad3d",
    ),
    **rules(_join, "cat stack"),
    **rules(
        _keep,
        "_to_copy empty_like zeros_like ones_like full_like rand_like randn_like native_dropout bernoulli bernoulli_ "
        "normal_ uniform_ exponential_",
    ),
    **rules(_overwrite, "copy_ fill_ zero_"),
}
