"""Rules for linear maps, convolutions, embeddings and products.

A linear map reads the units of its input (`trace.weight_use`: which unit each of its columns belongs to), and its
output gets the labels of its own rows (`trace.produces`). Where two activations are multiplied (attention), units along
which the product sums come and go together; only what lies across them, the heads, can change in number.
"""

from __future__ import annotations

from torch import Tensor

from senn.graph.tracing.labels import broadcast_shape, varying
from senn.graph.tracing.recorded import Call
from senn.graph.tracing.rules.pointwise import (
    Rules,
    fix_along,
    meet_unlabeled,
    merge_label_maps,
    mix_along,
    rules,
)
from senn.graph.tracing.rules.weights import (
    Axes,
    apply_weight,
    columns_of,
    made_rows,
    spread,
    stored_columns,
    stored_dims,
)
from senn.graph.tracing.trace_recorder import TraceRecorder
from senn.graph.tracing.weight_view import WeightView

# Functions that apply their second argument even where the first is a parameter, too.
_APPLYING = frozenset(("linear", "multi_head_attention_forward"))
_COMPUTED = "its units are read by a weight that is computed from"


def _matrix_product(trace: TraceRecorder, call: Call) -> None:
    """`mm` and `addmm`: a linear map if a factor is a weight, else a product of activations."""
    if _is_unscaled(call):
        _product_with_bias(trace, call, *_operands(call, "mat1", "mat2"))
    else:
        trace.refuse_call(call)


def _batched_product(trace: TraceRecorder, call: Call) -> None:
    """`bmm` and `baddbmm`: of a stack of weights, or of two activations."""
    first, second, bias = _operands(call, "batch1", "batch2")
    if _is_unscaled(call):
        _product_with_bias(trace, call, first, second, bias)
    elif bias is None or trace.is_labeled(bias):
        trace.refuse_call(call)
    else:
        _multiply(trace, call, first, second)


def _is_unscaled(call: Call) -> bool:
    """With other factors, `addmm` isn't W a + b, and what is recorded of it would be wrong."""
    return bool(call.arguments.get("alpha", 1) == 1 and call.arguments.get("beta", 1) == 1)


def _operands(call: Call, first: str, second: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return both factors and the bias of a product; `mm` and `bmm` have none, and call their own factors otherwise."""
    arguments = call.arguments
    if first in arguments:
        return arguments[first], arguments[second], arguments["self"]
    return arguments["self"], arguments["mat2"], None


def _product_with_bias(
    trace: TraceRecorder, call: Call, first: Tensor, second: Tensor, bias: Tensor | None
) -> None:
    """A product of two matrices, or of two stacks of them, plus a bias."""
    left, right = trace.weight_of(first), trace.weight_of(second)
    last = first.dim() - 1
    stack = tuple(range(last - 1))
    if left is not None and right is not None and trace.function not in _APPLYING:
        for tensor in (first, second):  # a weight of low rank, say: computed, and applied elsewhere
            trace.labels_of(tensor)
        return
    if right is not None:  # of two weights, the left one is an input: a learned query
        axes = Axes(inputs=last - 1, outputs=last, source=last, made=last, stack=stack)
        _linear(trace, call, right, first, axes, bias=bias)
        return
    if left is not None:
        axes = Axes(inputs=last, outputs=last - 1, source=last - 1, made=last - 1, stack=stack)
        _linear(trace, call, left, second, axes, bias=bias, plain=False)
        return
    computed = trace.computed_from(first) or trace.computed_from(second)
    labeled = bias is not None and trace.is_labeled(bias)
    if labeled and computed is None:
        trace.refuse_call(call)
    else:
        _multiply(trace, call, first, second)


def _refuse_weight(trace: TraceRecorder, call: Call) -> None:
    """Refuse the units that are read by something that is no weight."""
    origin = trace.computed_from(call.arguments["weight"])
    if origin is None:
        trace.refuse_call(call)
    else:
        trace.refuse(call.arguments["input"], f"{_COMPUTED} {origin}")


def _fused_linear(trace: TraceRecorder, call: Call) -> None:
    """`aten::linear`, which some backends don't split into a transposition and `addmm`."""
    arguments = call.arguments
    source, view = arguments["input"], trace.weight_of(arguments["weight"])
    if view is None:
        _refuse_weight(trace, call)
        return
    last = source.dim() - 1
    axes = Axes(inputs=1, outputs=0, source=last, made=last)
    _linear(trace, call, view, source, axes, bias=arguments["bias"])


def _grouped_product(trace: TraceRecorder, call: Call) -> None:
    """`_grouped_mm`: rows of an input go to one matrix each of a stack (experts)."""
    arguments = call.arguments
    source, view = arguments["self"], trace.weight_of(arguments["mat2"])
    if view is None or len(view.shape) != 3 or source.dim() != 2:
        trace.refuse_call(call)
        return
    axes = Axes(inputs=1, outputs=2, source=1, made=1)
    _linear(trace, call, view, source, axes, bias=arguments.get("bias"), plain=False)


def _linear(
    trace: TraceRecorder,
    call: Call,
    view: WeightView,
    source: Tensor,
    axes: Axes,
    *,
    bias: Tensor | None,
    plain: bool = True,
) -> None:
    output = call.outputs[0]
    label_maps = apply_weight(trace, view, source, output, axes, plain=plain)
    if label_maps is None:
        trace.refuse_call(call)
        return
    made, *elsewhere = label_maps
    if bias is not None and trace.is_labeled(bias):
        added = [label_map.broadcast_to(output.shape) for label_map in trace.labels_of(bias)]
        found = [label_map.clone() for label_map in merge_label_maps(trace, [made, *added])]
    else:
        found = [made if bias is None else meet_unlabeled(trace, made, bias)]
    trace.set_labels(output, [*found, *elsewhere])


def _convolution(trace: TraceRecorder, call: Call) -> None:
    """A convolution of any kind: plain, transposed, grouped, depthwise."""
    arguments = call.arguments
    source, groups, transposed = arguments["input"], arguments["groups"], arguments["transposed"]
    view = trace.weight_of(arguments["weight"])
    output = call.outputs[0]
    if view is None:
        _refuse_weight(trace, call)
        return
    out_axis = 1 if transposed else 0
    read, made = stored_dims(trace, view, 1 - out_axis, out_axis)
    if len(read) != 1 or len(made) != 1:
        trace.refuse_call(call)
        return
    channels, elsewhere = columns_of(trace, source, 1)
    for label_map in elsewhere:
        trace.record.refuse(label_map, f"{trace.place} mixes its units")
    one_each = groups == source.shape[1] and groups > 1
    is_depthwise = one_each and (not transposed or output.shape[1] == groups)
    if is_depthwise:  # each channel has filters of its own, which come and go with it
        (dim,) = read if transposed else made
        rows = trace.passes_elementwise(view.name, dim)[view.positions_along(dim, 0)]
        trace.record.merge(rows, channels.repeat_interleave(len(rows) // groups))
    else:
        rows = _convolved_rows(trace, call, view, channels, read[0], made[0])
    bias = arguments["bias"]
    if bias is not None and trace.is_labeled(bias):
        trace.record.merge(rows, trace.first_labels_of(bias).to(rows.device))
    trace.set_labels(output, [spread(rows, 1, output)])


def _convolved_rows(
    trace: TraceRecorder, call: Call, view: WeightView, channels: Tensor, in_dim: int, out_dim: int
) -> Tensor:
    """Record that a convolution reads channels with these labels; return those it makes."""
    arguments = call.arguments
    groups, transposed = arguments["groups"], bool(arguments["transposed"])
    out_axis = 1 if transposed else 0
    if groups > 1:
        # A grouped convolution keeps its groups equal in size: channels at the same place of each are one unit.
        channels = trace.record.merge_along(channels.view(groups, -1), {0})[0]
        if transposed:  # whose weight has all input channels along dimension 0
            channels = channels.repeat(groups)
    trace.weight_use(
        view,
        stored_columns(trace, view, channels, [1 - out_axis], [in_dim]),
        arguments["input"],
        in_dim=in_dim,
        out_dim=out_dim,
        axis=1,
        kernel_numel=arguments["weight"][0, 0].numel(),
        plain=groups == 1 or not transposed,
        groups=groups,
        transposed=transposed,
    )
    rows = made_rows(trace, view, [out_axis], [out_dim])
    if groups > 1 and transposed:
        return rows.repeat(groups)
    if groups > 1:
        trace.record.merge_along(rows.view(groups, -1), {0})
    return rows


def _embedding(trace: TraceRecorder, call: Call) -> None:
    """A table of vectors: it makes units with its columns; the data choose its rows."""
    view = trace.weight_of(call.arguments["weight"])
    # Tokens are no units, so the rows of the table get no labels.
    made = [] if view is None else stored_dims(trace, view, 0, 1)[1]
    if view is None or len(made) != 1:
        trace.refuse_call(call)
        return
    output = call.outputs[0]
    if trace.tensors[view.name].requires_grad:
        columns = made_rows(trace, view, [1], made)
    else:  # frozen positions, say: what it is added to makes the units, and it goes along with them
        columns = trace.passes_elementwise(view.name, made[0])[view.positions_along(made[0], 1)]
    trace.set_labels(output, [spread(columns, output.dim() - 1, output)])


def _multiply(trace: TraceRecorder, call: Call, first: Tensor, second: Tensor) -> None:
    if not trace.is_labeled(first) and not trace.is_labeled(second):
        return
    origin = trace.computed_from(first) or trace.computed_from(second)
    why = None if origin is None else f"{_COMPUTED} {origin}"
    dots, labels = trace.dots, trace.labels_of(second)
    weights = dots.of(first)
    if weights is not None:
        dots.weigh(weights, labels)
    product = dots.begin(trace.labels_of(first), labels)
    if product is not None:
        dots.note_result(call.outputs[0], product)
    _set_expanded(trace, call, _product(trace, trace.labels_of(first), labels, why))


def _set_expanded(trace: TraceRecorder, call: Call, label_maps: list[Tensor]) -> None:
    output = call.outputs[0]
    trace.set_labels(output, [label_map.expand(output.shape).clone() for label_map in label_maps])


def _product(
    trace: TraceRecorder, first: list[Tensor], second: list[Tensor], why: str | None = None
) -> list[Tensor]:
    """Multiply two activations, (..., i, k) and (..., k, j).

    Args:
        trace: the recorder.
        first: label maps of the first.
        second: label maps of the second.
        why: reason for a refusal of units that are summed over; None for the usual one.

    Returns:
        Label maps of the product, of size 1 where they don't vary.
    """
    first = [label_map for label_map in first if bool(label_map.any())]
    second = [label_map for label_map in second if bool(label_map.any())]
    shared = []
    for label_map in first:
        for other in second:
            # Units k of the one are summed with units k of the other: they are pairs.
            if label_map.dim() - 1 in varying(label_map) and other.dim() - 2 in varying(other):
                if _has_heads(label_map) == _has_heads(other):
                    trace.record.merge(label_map.amax(-2), other.amax(-1))
                else:
                    shared.append(other if _has_heads(label_map) else label_map)
    if any(map(_has_heads, first)):
        shared += [other for other in second if varying(other) == {other.dim() - 1}]
    # One head of keys and values for several of queries. How many is a number that other paths through the forward
    # (with a mask, with a cache) may repeat by, so neither side changes.
    if shared:
        reason = f"several heads share one head of keys or values in {trace.place}"
        for label_map in (*first, *second):
            trace.record.refuse(label_map, reason)
        return []
    summed = [(label_map, label_map.dim() - 1) for label_map in first]
    summed += [(label_map, label_map.dim() - 2) for label_map in second]
    left = []
    for label_map, dim in summed:
        along = varying(label_map)
        if along == {dim}:
            usual = f"its units are multiplied with others and summed in {trace.place}"
            trace.record.refuse(label_map, why or usual)
            continue
        if dim in along:
            label_map = fix_along(trace, label_map, {dim})
        left.append(label_map.amax(dim, keepdim=True))
    if not left:
        return []
    shape = broadcast_shape(left)
    return merge_label_maps(trace, [label_map.broadcast_to(shape) for label_map in left])


def _has_heads(label_map: Tensor) -> bool:
    """Return True if units lie along dimensions of a batch of matrices."""
    return bool(varying(label_map) & {*range(label_map.dim() - 2)})


def _attention(trace: TraceRecorder, call: Call) -> None:
    """Fused scaled dot product attention, softmax(q k^T) v."""
    arguments = call.arguments
    query, key, value = arguments["query"], arguments["key"], arguments["value"]
    if not any(map(trace.is_labeled, (query, key, value))):
        return
    keys, values = trace.labels_of(key), trace.labels_of(value)
    has_heads = query.dim() > 3
    if (
        has_heads and query.shape[-3] > key.shape[-3]
    ):  # several heads of queries share one of keys and values
        repeats = query.shape[-3] // key.shape[-3]
        keys = [label_map.repeat_interleave(repeats, -3) for label_map in keys]
        values = [label_map.repeat_interleave(repeats, -3) for label_map in values]
    transposed = [label_map.transpose(-2, -1) for label_map in keys]
    product = trace.dots.begin(trace.labels_of(query), transposed)
    if product is not None:
        trace.dots.weigh(product, values)
    scores = _product(trace, trace.labels_of(query), transposed)
    shape = (*query.shape[:-1], key.shape[-2])
    scores = [label_map.expand(shape) for label_map in scores]
    # Its name differs between the backends' kernels.
    mask = arguments.get("attn_mask", arguments.get("attn_bias"))
    if mask is not None and trace.is_labeled(mask):
        scores += [label_map.broadcast_to(shape) for label_map in trace.labels_of(mask)]
        scores = merge_label_maps(trace, scores)
    weights = []
    for label_map in scores:
        mixed = mix_along(trace, label_map, {len(shape) - 1}, "softmax")
        if mixed is not None:
            weights.append(mixed)
    _set_expanded(trace, call, _product(trace, weights, values))


RULES: Rules = {
    **rules(_matrix_product, "mm addmm"),
    **rules(_fused_linear, "linear"),
    **rules(_convolution, "convolution _convolution convolution_overrideable"),
    **rules(_embedding, "embedding _embedding_bag _embedding_bag_forward_only"),
    **rules(_grouped_product, "_grouped_mm"),
    **rules(_batched_product, "bmm baddbmm"),
    **rules(
        _attention,
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_attention_math "
        "_scaled_dot_product_cudnn_attention scaled_dot_product_attention",
    ),
}
