"""Rules for linear maps, convolutions, embeddings and products.

A linear map reads the units of its input (`trace.weight_use`: which unit each of its columns belongs to), and its
output gets the labels of its own rows (`trace.produces`). Where two activations are multiplied (attention), units along
which the product sums come and go together; only what lies across them, the heads, can change in number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from senn.graph.tracing.labels import varying
from senn.graph.tracing.recorded import Call, WeightView
from senn.graph.tracing.rules.pointwise import (
    Rules,
    fix_along,
    meet_unlabeled,
    merge_label_maps,
    mix_along,
    rules,
)
from senn.graph.tracing.trace_recorder import TraceRecorder


def columns_of(trace: TraceRecorder, source: Tensor, axis: int) -> tuple[Tensor, list[Tensor]]:
    """Determine what a linear map reads with each of its columns.

    Units that are read by one column, at other locations, are the same unit.

    Args:
        trace: the recorder.
        source: the input.
        axis: its dimension that counts features.

    Returns:
        (features,) long, the label of each column; and the label maps whose units vary along other dimensions only.
    """
    elsewhere = []
    columns = torch.zeros(source.shape[axis], dtype=torch.long, device=source.device)
    for label_map in trace.labels_of(source):
        if not bool(label_map.any()):
            continue
        dims = varying(label_map)
        if dims and axis not in dims:
            if trace.record.is_made(label_map):
                elsewhere.append(label_map)
            continue
        locations = label_map.movedim(axis, -1).reshape(-1, label_map.shape[axis])
        first = locations.amax(0)  # the label at some location where there is one
        trace.record.merge(locations, first.expand_as(locations))
        sometimes_none = (locations == 0).any(0)
        trace.record.refuse(
            first[sometimes_none], f"its units meet a tensor that has no units in {trace.place}"
        )
        if bool((columns != 0).any()):
            trace.record.merge(columns, first)
        columns = torch.where(columns != 0, columns, first)
    return columns, elsewhere


def spread(labels: Tensor, axis: int, like: Tensor) -> Tensor:
    """Return a label map with labels along one axis.

    Args:
        labels: (features,) long.
        axis: the axis.
        like: a tensor of the shape that the label map gets.
    """
    shape = [1] * like.dim()
    shape[axis] = len(labels)
    # A copy, not an expanded view: units may be written into the label map later.
    return labels.to(like.device).view(shape).expand(like.shape).clone()


def _matrix_product(trace: TraceRecorder, call: Call) -> None:
    """`mm` and `addmm`: a linear map if a factor is a weight, else a product of activations."""
    arguments = call.arguments
    # With other factors, `addmm` isn't W a + b, and what is recorded of it would be wrong.
    plain = arguments.get("alpha", 1) == 1 and arguments.get("beta", 1) == 1
    if "mat1" in arguments:  # addmm
        source, weight, bias = arguments["mat1"], arguments["mat2"], arguments["self"]
    else:
        source, weight, bias = arguments["self"], arguments["mat2"], None
    view = trace.weight_of(weight)
    if view is not None and plain:
        out_dim = (
            0 if view.flipped else 1
        )  # (in, out) unless it is the transpose of a stored (out, in)
        _linear(trace, view, source, call.outputs[0], bias=bias, out_dim=out_dim)
    elif trace.weight_of(source) is not None or bias is not None:
        trace.refuse_call(call)
    else:
        _multiply(trace, call, source, weight)


def _fused_linear(trace: TraceRecorder, call: Call) -> None:
    """`aten::linear`, which some backends don't split into a transposition and `addmm`."""
    arguments = call.arguments
    view = trace.weight_of(arguments["weight"])
    if view is None:
        trace.refuse_call(call)
        return
    out_dim = 1 if view.flipped else 0
    _linear(
        trace, view, arguments["input"], call.outputs[0], bias=arguments["bias"], out_dim=out_dim
    )


def _linear(
    trace: TraceRecorder,
    view: WeightView,
    source: Tensor,
    output: Tensor,
    *,
    bias: Tensor | None,
    out_dim: int,
) -> None:
    last = source.dim() - 1
    columns, elsewhere = columns_of(trace, source, last)
    trace.weight_use(view, columns, source, in_dim=1 - out_dim, out_dim=out_dim, axis=last)
    made = spread(trace.produces(view, out_dim), output.dim() - 1, output)
    label_maps = [made]
    if bias is not None and trace.is_labeled(bias):
        added = [label_map.broadcast_to(output.shape) for label_map in trace.labels_of(bias)]
        label_maps = [label_map.clone() for label_map in merge_label_maps(trace, [made, *added])]
    elif bias is not None:
        label_maps = [meet_unlabeled(trace, made, bias)]
    # Units along other dimensions (tokens, heads) pass a linear map: they are locations to it.
    for label_map in elsewhere:
        label_maps.append(label_map.amax(-1, keepdim=True).expand(output.shape).clone())
    trace.set_labels(output, label_maps)


def _convolution(trace: TraceRecorder, call: Call) -> None:
    """A convolution of any kind: plain, transposed, grouped, depthwise."""
    arguments = call.arguments
    source, groups, transposed = arguments["input"], arguments["groups"], arguments["transposed"]
    view = trace.weight_of(arguments["weight"])
    output = call.outputs[0]
    if view is None:
        trace.refuse_call(call)
        return
    channels, elsewhere = columns_of(trace, source, 1)
    for label_map in elsewhere:
        trace.record.refuse(label_map, f"{trace.place} mixes its units")
    one_each = groups == source.shape[1] and groups > 1
    is_depthwise = one_each and (not transposed or output.shape[1] == groups)
    if is_depthwise:  # each channel has filters of its own, which come and go with it
        rows = trace.passes_elementwise(view.name, 0)
        trace.record.merge(rows, channels.repeat_interleave(len(rows) // groups))
    else:
        rows = _convolved_rows(trace, call, view, channels)
    bias = arguments["bias"]
    if bias is not None and trace.is_labeled(bias):
        trace.record.merge(rows, trace.first_labels_of(bias).to(rows.device))
    trace.set_labels(output, [spread(rows, 1, output)])


def _convolved_rows(trace: TraceRecorder, call: Call, view: WeightView, channels: Tensor) -> Tensor:
    """Record that a convolution reads channels with these labels; return those it makes."""
    arguments = call.arguments
    groups, transposed = arguments["groups"], bool(arguments["transposed"])
    out_dim = 1 if transposed else 0
    if groups > 1:
        # A grouped convolution keeps its groups equal in size: channels at the same place of each are one unit.
        channels = trace.record.merge_along(channels.view(groups, -1), {0})[0]
        if transposed:  # whose weight has all input channels along dimension 0
            channels = channels.repeat(groups)
    trace.weight_use(
        view,
        channels,
        arguments["input"],
        in_dim=1 - out_dim,
        out_dim=out_dim,
        axis=1,
        kernel_numel=arguments["weight"][0, 0].numel(),
        plain=groups == 1 or not transposed,
        groups=groups,
        transposed=transposed,
    )
    rows = trace.produces(view, out_dim)
    if groups > 1 and transposed:
        return rows.repeat(groups)
    if groups > 1:
        trace.record.merge_along(rows.view(groups, -1), {0})
    return rows


def _embedding(trace: TraceRecorder, call: Call) -> None:
    """A table of vectors: it makes units with its columns; the data choose its rows."""
    view = trace.weight_of(call.arguments["weight"])
    if view is None:
        trace.refuse_call(call)
        return
    output = call.outputs[0]
    # Tokens are no units, so the rows of the table get no labels.
    columns = trace.produces(view, 1)
    trace.set_labels(output, [spread(columns, output.dim() - 1, output)])


def _batched_product(trace: TraceRecorder, call: Call) -> None:
    """`bmm` and `baddbmm` of two activations."""
    arguments = call.arguments
    if "batch1" in arguments:  # baddbmm
        first, second, added = arguments["batch1"], arguments["batch2"], arguments["self"]
    else:
        first, second, added = arguments["self"], arguments["mat2"], None
    if added is not None and trace.is_labeled(added):
        trace.refuse_call(call)
    else:
        _multiply(trace, call, first, second)


def _multiply(trace: TraceRecorder, call: Call, first: Tensor, second: Tensor) -> None:
    if trace.weight_of(first) is not None or trace.weight_of(second) is not None:
        trace.refuse_call(call)
    elif trace.is_labeled(first) or trace.is_labeled(second):
        _set_expanded(trace, call, _product(trace, trace.labels_of(first), trace.labels_of(second)))


def _set_expanded(trace: TraceRecorder, call: Call, label_maps: list[Tensor]) -> None:
    output = call.outputs[0]
    trace.set_labels(output, [label_map.expand(output.shape).clone() for label_map in label_maps])


def _product(trace: TraceRecorder, first: list[Tensor], second: list[Tensor]) -> list[Tensor]:
    """Multiply two activations, (..., i, k) and (..., k, j).

    Args:
        trace: the recorder.
        first: label maps of the first.
        second: label maps of the second.

    Returns:
        Label maps of the product, of size 1 where they don't vary.
    """
    first = [label_map for label_map in first if bool(label_map.any())]
    second = [label_map for label_map in second if bool(label_map.any())]
    for label_map in first:
        for other in second:
            # Units k of the one are summed with units k of the other: they are pairs.
            if label_map.dim() - 1 in varying(label_map) and other.dim() - 2 in varying(other):
                trace.record.merge(label_map.amax(-2), other.amax(-1))
    summed = [(label_map, label_map.dim() - 1) for label_map in first]
    summed += [(label_map, label_map.dim() - 2) for label_map in second]
    left = []
    for label_map, dim in summed:
        along = varying(label_map)
        if along == {dim}:
            trace.record.refuse(
                label_map, f"its units are multiplied with others and summed in {trace.place}"
            )
            continue
        if dim in along:
            label_map = fix_along(trace, label_map, {dim})
        left.append(label_map.amax(dim, keepdim=True))
    if not left:
        return []
    shape = torch.broadcast_shapes(*(label_map.shape for label_map in left))  # type: ignore[no-untyped-call]
    return merge_label_maps(trace, [label_map.broadcast_to(shape) for label_map in left])


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
    **rules(_embedding, "embedding"),
    **rules(_batched_product, "bmm baddbmm"),
    **rules(
        _attention,
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_attention_math "
        "_scaled_dot_product_cudnn_attention scaled_dot_product_attention",
    ),
}
