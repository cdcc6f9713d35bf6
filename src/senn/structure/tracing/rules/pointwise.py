"""Rules for operations that work on each entry, reduce some dimensions, or slide a window over them.

Here is also what all rules share: how labels meet where tensors do, and what mixing entries does to them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from senn.structure.tracing.labels import is_uniform, varying
from senn.structure.tracing.recorded import Call
from senn.structure.tracing.recorder import Trace

Rule = Callable[[Trace, Call], None]
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


def pointwise(trace: Trace, call: Call) -> None:
    """Entries that meet each other belong to the same unit."""
    dressed = [tensor for tensor in call.tensors if trace.is_labelled(tensor)]
    if dressed:
        shape = torch.broadcast_shapes(*(tensor.shape for tensor in call.tensors))  # type: ignore[no-untyped-call]
        device = dressed[0].device
        worn = [coat.to(device).broadcast_to(shape) for tensor in dressed for coat in trace.coats(tensor)]
        coats = together(trace, worn)
        for tensor in call.tensors:
            if not trace.is_labelled(tensor):
                coats = [meet_plain(trace, coat, tensor) for coat in coats]
        for tensor in call.outputs:
            if tensor.shape == shape:
                trace.dress(tensor, [coat.to(tensor.device, copy=True) for coat in coats])
    name = trace.kind if trace.kind in _ACTIVATIONS else _OPERATIONS.get(call.operation)
    if name is not None:
        trace.note_activation(call, name)


def together(trace: Trace, worn: list[Tensor]) -> list[Tensor]:
    """The coats of what comes out where tensors with these coats, of one shape, meet entry by entry.

    Coats that vary along a common dimension name the same units; the others stay beside each other.
    """
    worn = [coat for coat in worn if bool(coat.any())]
    coats: list[Tensor] = []
    for coat in sorted(worn, key=lambda labels: not trace.record.is_made(labels)):  # parameters last
        along = varying(coat)
        for place, other in enumerate(coats):
            beside = varying(other)
            if along & beside or not along or not beside:
                coats[place] = _meet(trace, other, coat, beside, along)
                break
        else:
            if not coats or trace.record.is_made(coat):
                coats.append(coat)
    return coats


def _meet(trace: Trace, first: Tensor, second: Tensor, along_first: set[int], along_second: set[int]) -> Tensor:
    """Unite two coats of one shape that meet entry by entry; return the coat of what comes out."""
    if torch.equal(first, second):
        return first
    record = trace.record
    if along_first and along_second:
        if not record.is_made(second) and not along_first <= along_second:
            return pinned(trace, first, along_first & along_second)  # a table that all of several groups share
        record.unite(first, second)
        return torch.where(first != 0, first, second)
    if not along_first and not along_second:
        if not (_is_shared(trace, first) or _is_shared(trace, second)):
            record.unite(first, second)
            return torch.where(first != 0, first, second)
        return first if _is_shared(trace, second) else second
    if not _is_shared(trace, second if along_first else first):
        record.refuse(second if along_first else first, f"its units are spread over other units in {trace.place}")
    return first if along_first else second


def _is_shared(trace: Trace, labels: Tensor) -> bool:
    """Whether a label that doesn't vary is that of a parameter with one entry for all units."""
    owner = trace.record.owner(int(labels.max()))
    return owner.shared and owner.count == 1


def pinned(trace: Trace, coat: Tensor, dims: set[int]) -> Tensor:
    """The coat after its units along some dimensions, whose size is fixed, have become one; they vary along others."""
    return trace.record.unite_along(coat, dims).expand_as(coat)


def meet_plain(trace: Trace, coat: Tensor, other: Tensor) -> Tensor:
    """A tensor without units may meet units only where it is the same for all of them."""
    offset = coat.dim() - other.dim()
    along = varying(coat)
    fixed = {dim for dim in along if dim >= offset and other.shape[dim - offset] > 1}
    if not fixed:
        return coat
    if is_uniform(other, {dim - offset for dim in fixed}):
        trace.dress_late(other, coat)
        return coat
    if fixed < along:
        return pinned(trace, coat, fixed)
    trace.record.refuse(coat, f"its units meet a tensor that has no units in {trace.place}")
    return coat


def mixed(trace: Trace, coat: Tensor, dims: set[int], how: str) -> Tensor | None:
    """A coat whose entries along `dims` are mixed: None (and refused) if that mixes whole units."""
    along = varying(coat)
    if not along & dims:
        return coat
    if along <= dims:
        trace.record.refuse(coat, f"{trace.place} mixes its units ({how})")
        return None
    return pinned(trace, coat, along & dims)


def reduce(trace: Trace, call: Call) -> None:
    """Reduction over some dimensions: refused if it mixes units, else the remaining dimensions keep them."""
    source = call.tensors[0]
    if not trace.is_labelled(source):
        return
    dims = dimensions(call, source.dim())
    kept = [mixed(trace, coat, dims, call.operation) for coat in trace.coats(source)]
    coats = [coat for coat in kept if coat is not None]
    for tensor in call.outputs:
        if tensor.shape == source.shape:
            trace.dress(tensor, [coat.clone() for coat in coats])
        else:
            reduced = [coat.amax(sorted(dims), keepdim=True) if dims else coat for coat in coats]
            trace.dress(tensor, [coat.reshape(tensor.shape).clone() for coat in reduced])


def dimensions(call: Call, rank: int) -> set[int]:
    """The dimensions over which an operation mixes entries; all of them unless it names some."""
    if "normalized_shape" in call.arguments:
        return set(range(rank - len(call.arguments["normalized_shape"]), rank))
    dims = call.arguments.get("dim")
    if dims is None or dims == []:
        return set(range(rank))
    return {dim % max(rank, 1) for dim in ([dims] if isinstance(dims, int) else dims)}


def window(trace: Trace, call: Call) -> None:
    """Pooling and resampling of each channel over its last dimensions, as many as the operation's name says."""
    source = call.tensors[0]
    if not trace.is_labelled(source):
        return
    spatial = next(number for number in (1, 2, 3) if f"{number}d" in call.name)
    dims = set(range(source.dim() - spatial, source.dim()))
    kept = [mixed(trace, coat, dims, call.operation) for coat in trace.coats(source)]
    for tensor in call.outputs:
        worn = [coat.amax(sorted(dims), keepdim=True).expand(tensor.shape).clone() for coat in kept if coat is not None]
        trace.dress(tensor, worn)


def glu(trace: Trace, call: Call) -> None:
    """The two halves of a dimension meet."""
    source = call.tensors[0]
    if trace.is_labelled(source):
        halves = [coat.chunk(2, call.arguments.get("dim", -1)) for coat in trace.coats(source)]
        trace.dress(call.outputs[0], [c.clone() for c in together(trace, [half for pair in halves for half in pair])])


def scalar(trace: Trace, call: Call) -> None:
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
