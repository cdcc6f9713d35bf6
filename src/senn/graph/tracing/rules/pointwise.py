"""Rules for operations that work on each entry, reduce some dimensions, or slide a window over them.

Here is also what all rules share: how labels meet where tensors do, and what mixing entries does to them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from senn.graph.tracing.labels import is_uniform, varying
from senn.graph.tracing.recorded import Call
from senn.graph.tracing.recorder import TraceRecorder

Rule = Callable[[TraceRecorder, Call], None]
Rules = dict[str, Rule]
"""Rules by operation name without overload ("aten::view")."""

# Modules that are a per-unit non-linearity; other modules are recognised by the operations that they call.
_ACTIVATIONS = frozenset(
    (
        *("CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid"),
        *("Mish", "PReLU", "RReLU", "Rational", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softshrink"),
        *("Softsign", "Tanh", "Tanhshrink", "Threshold"),
    )
)
_OPERATIONS = {
    "celu": "CELU",
    "elu": "ELU",
    "gelu": "GELU",
    "hardsigmoid": "Hardsigmoid",
    "hardswish": "Hardswish",
    "hardtanh": "Hardtanh",
    "leaky_relu": "LeakyReLU",
    "log_sigmoid_forward": "LogSigmoid",
    "mish": "Mish",
    "prelu_kernel": "PReLU",
    "relu": "ReLU",
    "sigmoid": "Sigmoid",
    "silu": "SiLU",
    "softplus": "Softplus",
    "tanh": "Tanh",
}


def rules(rule: Rule, names: str) -> Rules:
    """Return a table with one rule for several operations, whose names stand in a string."""
    return {f"aten::{name}": rule for name in names.split()}


def pointwise(trace: TraceRecorder, call: Call) -> None:
    """Entries that meet each other belong to the same unit."""
    dressed = [tensor for tensor in call.tensors if trace.is_labeled(tensor)]
    if dressed:
        shape = torch.broadcast_shapes(*(tensor.shape for tensor in call.tensors))  # type: ignore[no-untyped-call]
        device = dressed[0].device
        label_maps = [
            label_map.to(device).broadcast_to(shape) for tensor in dressed for label_map in trace.labels_of(tensor)
        ]
        label_maps = merge_label_maps(trace, label_maps)
        for tensor in call.tensors:
            if not trace.is_labeled(tensor):
                label_maps = [meet_plain(trace, label_map, tensor) for label_map in label_maps]
        for tensor in call.outputs:
            if tensor.shape == shape:
                trace.set_labels(tensor, [label_map.to(tensor.device, copy=True) for label_map in label_maps])
    name = trace.kind if trace.kind in _ACTIVATIONS else _OPERATIONS.get(call.operation)
    if name is not None:
        trace.note_activation(call, name)


def merge_label_maps(trace: TraceRecorder, met: list[Tensor]) -> list[Tensor]:
    """The coats of what comes out where tensors with these coats, of one shape, meet entry by entry.

    Coats that vary along a common dimension name the same units; the others stay beside each other.
    """
    labeled = [label_map for label_map in met if bool(label_map.any())]
    label_maps: list[Tensor] = []
    for label_map in sorted(labeled, key=lambda labels: not trace.record.is_made(labels)):  # parameters last
        along = varying(label_map)
        for place, other in enumerate(label_maps):
            beside = varying(other)
            if along & beside or not along or not beside:
                label_maps[place] = _meet(trace, other, label_map, beside, along)
                break
        else:
            if not label_maps or trace.record.is_made(label_map):
                label_maps.append(label_map)
    return label_maps


def _meet(trace: TraceRecorder, first: Tensor, second: Tensor, along_first: set[int], along_second: set[int]) -> Tensor:
    """Unite two coats of one shape that meet entry by entry; return the coat of what comes out."""
    if torch.equal(first, second):
        return first
    record = trace.record
    if along_first and along_second:
        if not record.is_made(second) and not along_first <= along_second:
            return pinned(trace, first, along_first & along_second)  # a table that all of several groups share
        record.merge(first, second)
        return torch.where(first != 0, first, second)
    if not along_first and not along_second:
        if not (_is_shared(trace, first) or _is_shared(trace, second)):
            record.merge(first, second)
            return torch.where(first != 0, first, second)
        return first if _is_shared(trace, second) else second
    if not _is_shared(trace, second if along_first else first):
        record.refuse(second if along_first else first, f"its units are spread over other units in {trace.place}")
    return first if along_first else second


def _is_shared(trace: TraceRecorder, labels: Tensor) -> bool:
    """Whether a label that doesn't vary is that of a parameter with one entry for all units."""
    owner = trace.record.origin(int(labels.max()))
    return owner.shared and owner.count == 1


def pinned(trace: TraceRecorder, label_map: Tensor, dims: set[int]) -> Tensor:
    """The coat after its units along some dimensions, whose size is fixed, have become one; they vary along others."""
    return trace.record.merge_along(label_map, dims).expand_as(label_map)


def meet_plain(trace: TraceRecorder, label_map: Tensor, other: Tensor) -> Tensor:
    """A tensor without units may meet units only where it is the same for all of them."""
    offset = label_map.dim() - other.dim()
    along = varying(label_map)
    fixed = {dim for dim in along if dim >= offset and other.shape[dim - offset] > 1}
    if not fixed:
        return label_map
    if is_uniform(other, {dim - offset for dim in fixed}):
        trace.backfill_labels(other, label_map)
        return label_map
    if fixed < along:
        return pinned(trace, label_map, fixed)
    trace.record.refuse(label_map, f"its units meet a tensor that has no units in {trace.place}")
    return label_map


def mixed(trace: TraceRecorder, label_map: Tensor, dims: set[int], how: str) -> Tensor | None:
    """A coat whose entries along `dims` are mixed: None (and refused) if that mixes whole units."""
    along = varying(label_map)
    if not along & dims:
        return label_map
    if along <= dims:
        trace.record.refuse(label_map, f"{trace.place} mixes its units ({how})")
        return None
    return pinned(trace, label_map, along & dims)


def reduce(trace: TraceRecorder, call: Call) -> None:
    """Reduction over some dimensions: refused if it mixes units, else the remaining dimensions keep them."""
    source = call.tensors[0]
    if not trace.is_labeled(source):
        return
    dims = dimensions(call, source.dim())
    kept = [mixed(trace, label_map, dims, call.operation) for label_map in trace.labels_of(source)]
    label_maps = [label_map for label_map in kept if label_map is not None]
    for tensor in call.outputs:
        if tensor.shape == source.shape:
            trace.set_labels(tensor, [label_map.clone() for label_map in label_maps])
        else:
            reduced = [label_map.amax(sorted(dims), keepdim=True) if dims else label_map for label_map in label_maps]
            trace.set_labels(tensor, [label_map.reshape(tensor.shape).clone() for label_map in reduced])


def dimensions(call: Call, rank: int) -> set[int]:
    """The dimensions over which an operation mixes entries; all of them unless it names some."""
    if "normalized_shape" in call.arguments:
        return set(range(rank - len(call.arguments["normalized_shape"]), rank))
    dims = call.arguments.get("dim")
    if dims is None or dims == []:
        return set(range(rank))
    return {dim % max(rank, 1) for dim in ([dims] if isinstance(dims, int) else dims)}


def window(trace: TraceRecorder, call: Call) -> None:
    """Pooling and resampling of each channel over its last dimensions, as many as the operation's name says."""
    source = call.tensors[0]
    if not trace.is_labeled(source):
        return
    spatial = next(number for number in (1, 2, 3) if f"{number}d" in call.name)
    dims = set(range(source.dim() - spatial, source.dim()))
    kept = [mixed(trace, label_map, dims, call.operation) for label_map in trace.labels_of(source)]
    for tensor in call.outputs:
        label_maps = [
            label_map.amax(sorted(dims), keepdim=True).expand(tensor.shape).clone()
            for label_map in kept
            if label_map is not None
        ]
        trace.set_labels(tensor, label_maps)


def glu(trace: TraceRecorder, call: Call) -> None:
    """The two halves of a dimension meet."""
    source = call.tensors[0]
    if trace.is_labeled(source):
        halves = [label_map.chunk(2, call.arguments.get("dim", -1)) for label_map in trace.labels_of(source)]
        trace.set_labels(
            call.outputs[0], [c.clone() for c in merge_label_maps(trace, [half for pair in halves for half in pair])]
        )


def scalar(trace: TraceRecorder, call: Call) -> None:
    """A value goes back to Python, where it can steer anything."""
    trace.refuse(call.tensors[0], f"its values steer Python code in {trace.place}")


RULES: Rules = {
    **rules(
        pointwise,
        "hardswish hardswish_ log_sigmoid_forward _prelu_kernel masked_fill masked_fill_ floor_divide "
        "rrelu_with_noise rrelu_with_noise_functional",
    ),
    **rules(
        reduce,
        "mean sum prod amax amin max min var std var_mean std_mean logsumexp linalg_vector_norm norm any all argmax "
        "argmin _softmax _log_softmax _safe_softmax cumsum cumprod",
    ),
    **rules(
        window,
        "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d "
        "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_max_pool2d adaptive_max_pool3d "
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d "
        "_upsample_bilinear2d_aa upsample_bicubic2d _upsample_bicubic2d_aa upsample_trilinear3d "
        "_upsample_nearest_exact1d "
        "_upsample_nearest_exact2d _upsample_nearest_exact3d fractional_max_pool2d",
    ),
    **rules(glu, "glu"),
    **rules(scalar, "_local_scalar_dense"),
}
