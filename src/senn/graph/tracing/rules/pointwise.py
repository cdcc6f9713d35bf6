"""Rules for operations that work entry by entry, reduce dimensions or pool over them.

What all rule files share is here, too: how label maps meet where tensors do, and what mixing entries does to them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from senn.graph.tracing.labels import broadcast_shape, is_uniform, varying
from senn.graph.tracing.recorded import Call
from senn.graph.tracing.trace_recorder import TraceRecorder

Rule = Callable[[TraceRecorder, Call], None]
Rules = dict[str, Rule]
"""Rules by operation name without overload ("aten::view")."""

# Modules that are an activation as a whole. In any other module, single operations are recognized.
_ACTIVATIONS = frozenset(
    (
        *(
            "CELU",
            "ELU",
            "GELU",
            "Hardshrink",
            "Hardsigmoid",
            "Hardswish",
            "Hardtanh",
            "LeakyReLU",
            "LogSigmoid",
        ),
        *(
            "Mish",
            "PReLU",
            "RReLU",
            "Rational",
            "ReLU",
            "ReLU6",
            "SELU",
            "SiLU",
            "Sigmoid",
            "Softplus",
            "Softshrink",
        ),
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
    """Return a table that maps several operations to one rule.

    Args:
        rule: the rule.
        names: names of the operations without "aten::", separated by spaces.
    """
    return {f"aten::{name}": rule for name in names.split()}


def pointwise(trace: TraceRecorder, call: Call) -> None:
    """Merge the units of entries that meet, with broadcasting.

    Args:
        trace: the recorder.
        call: an operation that computes entry by entry.
    """
    labeled = [tensor for tensor in call.tensors if trace.is_labeled(tensor)]
    if labeled:
        shape = broadcast_shape(call.tensors)
        met = []
        device = labeled[0].device
        for tensor in labeled:
            met += [
                label_map.to(device).broadcast_to(shape) for label_map in trace.labels_of(tensor)
            ]
        label_maps = merge_label_maps(trace, met)
        # Only now: what meets the result must be equal along all of its units, not only along those of one input.
        for tensor in call.tensors:
            if not trace.is_labeled(tensor):
                values = call.values_of(tensor)
                label_maps = [
                    meet_unlabeled(trace, label_map, tensor, values) for label_map in label_maps
                ]
        for tensor in call.outputs:
            if (
                tensor.shape == shape
            ):  # copies: outputs must not share memory with inputs that are written into later
                trace.set_labels(
                    tensor, [label_map.to(tensor.device, copy=True) for label_map in label_maps]
                )
    activation = trace.kind if trace.kind in _ACTIVATIONS else _OPERATIONS.get(call.operation)
    if activation is not None:
        trace.note_activation(call, activation)


def merge_label_maps(trace: TraceRecorder, met: list[Tensor]) -> list[Tensor]:
    """Merge the units of tensors that meet entry by entry.

    Args:
        trace: the recorder.
        met: label maps of one shape.

    Returns:
        Label maps of the result. Two that vary along a common dimension name the same units and become one; two that
        vary along different dimensions (queries and keys in attention scores) are both kept.
    """
    label_maps: list[Tensor] = []
    # Maps of activations come first, so that a parameter's entries join the units of what it meets.
    for label_map in sorted(met, key=lambda labels: not trace.record.is_made(labels)):
        if not bool(label_map.any()):
            continue
        dims = varying(label_map)
        for place, other in enumerate(label_maps):
            other_dims = varying(other)
            if dims & other_dims or not dims or not other_dims:
                label_maps[place] = _merge_two(trace, other, label_map, other_dims, dims)
                break
        else:
            if not label_maps or trace.record.is_made(label_map):
                label_maps.append(label_map)
    return label_maps


def _merge_two(
    trace: TraceRecorder, first: Tensor, second: Tensor, first_dims: set[int], dims: set[int]
) -> Tensor:
    """Merge two label maps of one shape; return that of the result.

    `first_dims` and `dims` are the dimensions along which the first and the second vary.
    """
    record = trace.record
    if torch.equal(first, second):
        return first
    if first_dims and dims:  # both vary: entry by entry the same units
        if not record.is_made(second) and not first_dims <= dims:
            # A table that all units of several groups share (a rotary table for each head): its size stays.
            return fix_along(trace, first, first_dims & dims)
        record.merge(first, second)
        return torch.where(first != 0, first, second)
    if (
        not first_dims and not dims
    ):  # neither varies: groups of a single unit, or a parameter of one entry
        if _serves_all(trace, second):
            return first
        if _serves_all(trace, first):
            return second
        record.merge(first, second)
        return torch.where(first != 0, first, second)
    constant, varied = (second, first) if first_dims else (first, second)
    if not _serves_all(trace, constant):
        record.refuse(constant, f"its units are spread over other units in {trace.place}")
    return varied


def _serves_all(trace: TraceRecorder, labels: Tensor) -> bool:
    """Return True if a constant label map is a parameter's single entry, serving all units."""
    origin = trace.record.origin(int(labels.max()))
    return origin.shared and origin.end - origin.start == 1


def fix_along(trace: TraceRecorder, label_map: Tensor, dims: set[int]) -> Tensor:
    """Merge units along dimensions of a fixed size; what lies across them can still change.

    Args:
        trace: the recorder.
        label_map: a label map that varies along other dimensions, too.
        dims: the dimensions of a fixed size, such as the features of a head.

    Returns:
        The label map after merging, of the same shape.
    """
    return trace.record.merge_along(label_map, dims).expand_as(label_map)


def meet_unlabeled(
    trace: TraceRecorder, label_map: Tensor, other: Tensor, values: Tensor | None = None
) -> Tensor:
    """Let a tensor without units meet units: allowed only where it is equal for all of them.

    Args:
        trace: the recorder.
        label_map: of the tensor that it meets.
        other: the tensor without units; it broadcasts to the label map's shape.
        values: its values at that time; None if it still holds them.

    Returns:
        The label map after the meeting; its units are refused if there is no way out.
    """
    offset = label_map.dim() - other.dim()  # broadcasting aligns the last dimensions
    dims = varying(label_map)
    fixed = set()
    for dim in dims:
        if dim >= offset and other.shape[dim - offset] > 1:
            fixed.add(dim)
    if not fixed:
        return label_map
    values = other if values is None else values
    if is_uniform(values, {dim - offset for dim in fixed}):
        trace.backfill_labels(other, label_map)
        return label_map
    if (
        fixed < dims
    ):  # units also vary across the fixed dimensions, as heads do across their features
        return fix_along(trace, label_map, fixed)
    trace.record.refuse(label_map, f"its units meet {trace.kind_of(other)} in {trace.place}")
    return label_map


def mix_along(trace: TraceRecorder, label_map: Tensor, dims: set[int], how: str) -> Tensor | None:
    """Mix the entries along some dimensions.

    Args:
        trace: the recorder.
        label_map: of the tensor whose entries are mixed.
        dims: the dimensions.
        how: name of the operation, for the message.

    Returns:
        The label map after that; None, and its units refused, if whole units are mixed with each other.
    """
    along = varying(label_map)
    if not along & dims:
        return label_map
    if along <= dims:
        trace.record.refuse(label_map, f"{trace.place} mixes its units ({how})")
        return None
    return fix_along(trace, label_map, along & dims)


def reduce(trace: TraceRecorder, call: Call) -> None:
    """Reduce over some dimensions: units survive in the others.

    Args:
        trace: the recorder.
        call: the reduction.
    """
    source = call.tensors[0]
    if not trace.is_labeled(source):
        return
    dims = dimensions(call, source.dim())
    label_maps = []
    for label_map in trace.labels_of(source):
        mixed = mix_along(trace, label_map, dims, call.operation)
        if mixed is not None:
            label_maps.append(mixed)
    for tensor in call.outputs:
        if tensor.shape == source.shape:  # a softmax or a cumulative sum keeps the shape
            trace.set_labels(tensor, [label_map.clone() for label_map in label_maps])
            continue
        reduced = [
            label_map.amax(sorted(dims), keepdim=True) if dims else label_map
            for label_map in label_maps
        ]
        trace.set_labels(tensor, [label_map.reshape(tensor.shape).clone() for label_map in reduced])


def dimensions(call: Call, rank: int) -> set[int]:
    """Return the dimensions over which an operation mixes entries.

    Args:
        call: the operation; all dimensions unless it names some.
        rank: number of dimensions of its input.
    """
    if "normalized_shape" in call.arguments:
        return set(range(rank - len(call.arguments["normalized_shape"]), rank))
    dims = call.arguments.get("dim")
    if dims is None or dims == []:
        return set(range(rank))
    if isinstance(dims, int):  # `argmax` and `cumsum` take one, `sum` and `mean` a list
        dims = [dims]
    return {dim % max(rank, 1) for dim in dims}  # a scalar may be reduced along its dimension 0


def _window(trace: TraceRecorder, call: Call) -> None:
    """Pool or resample each channel over its last dimensions ("2d" in the name: two)."""
    source = call.tensors[0]
    if not trace.is_labeled(source):
        return
    dims = _pooled(call, source)
    label_maps = []
    for label_map in trace.labels_of(source):
        mixed = mix_along(trace, label_map, dims, call.operation)
        if mixed is not None:
            label_maps.append(mixed.amax(sorted(dims), keepdim=True) if dims else mixed)
    # Pooled sizes differ from those of the input, but no map varies along them any more.
    for tensor in call.outputs:
        trace.set_labels(
            tensor, [label_map.expand(tensor.shape).clone() for label_map in label_maps]
        )


def _pooled(call: Call, source: Tensor) -> set[int]:
    """Return the dimensions along which a window has several entries, or entries are interpolated."""
    spatial = next(number for number in (1, 2, 3) if f"{number}d" in call.name)
    dims = list(range(source.dim() - spatial, source.dim()))
    kernel = call.arguments.get("kernel_size")
    if kernel is None:
        return set(dims)
    sizes = [kernel] if isinstance(kernel, int) else list(kernel)
    # One number stands for all dimensions.
    sizes = sizes * spatial if len(sizes) == 1 else sizes
    output = call.outputs[0]
    return {
        dim
        for dim, size in zip(dims, sizes, strict=True)
        if size > 1 or output.shape[dim] != source.shape[dim]
    }


def _glu(trace: TraceRecorder, call: Call) -> None:
    """Multiply one half of a dimension with the other: entries at one place are one unit."""
    source = call.tensors[0]
    if not trace.is_labeled(source):
        return
    halves: list[Tensor] = []
    for label_map in trace.labels_of(source):
        halves += label_map.chunk(2, call.arguments.get("dim", -1))
    label_maps = merge_label_maps(trace, halves)
    trace.set_labels(call.outputs[0], [label_map.clone() for label_map in label_maps])


def _spectrum(trace: TraceRecorder, call: Call) -> None:
    """Fourier transforms: entries along some dimensions are mixed, and units along the others stay."""
    source, output = call.tensors[0], call.outputs[0]
    if not trace.is_labeled(source):
        return
    dims = {dim % source.dim() for dim in call.arguments["dim"]}
    label_maps = []
    for label_map in trace.labels_of(source):
        mixed = mix_along(trace, label_map, dims, call.operation)
        if mixed is not None:
            label_maps.append(mixed.amax(sorted(dims), keepdim=True))
    # Half of a spectrum stands for all of it, so that sizes along these dimensions may differ.
    trace.set_labels(output, [label_map.expand(output.shape).clone() for label_map in label_maps])


def _scalar(trace: TraceRecorder, call: Call) -> None:
    """Refuse units whose values go back to Python, where they can steer anything."""
    trace.refuse(call.tensors[0], f"its values steer Python code in {trace.place}")


RULES: Rules = {
    **rules(
        pointwise,
        "hardswish hardswish_ log_sigmoid_forward _prelu_kernel masked_fill masked_fill_ floor_divide "
        "rrelu_with_noise rrelu_with_noise_functional",
    ),
    **rules(
        reduce,
        "prod amax amin max min logsumexp any all argmax argmin _softmax _log_softmax _safe_softmax cumsum cumprod",
    ),
    **rules(
        _window,
        "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d "
        "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_max_pool2d adaptive_max_pool3d "
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d "
        "_upsample_bilinear2d_aa upsample_bicubic2d _upsample_bicubic2d_aa upsample_trilinear3d "
        "_upsample_nearest_exact1d "
        "_upsample_nearest_exact2d _upsample_nearest_exact3d fractional_max_pool2d",
    ),
    **rules(_glu, "glu"),
    **rules(_spectrum, "_fft_c2c _fft_r2c _fft_c2r"),
    **rules(_scalar, "_local_scalar_dense"),
}
