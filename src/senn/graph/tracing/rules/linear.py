"""Rules for the operations that read units and make new ones: linear maps, convolutions, embeddings, products.

A map reads the units of its input (`trace.use`: which unit each of its columns belongs to) and labels its output by its
own rows (`trace.produce`). Where two activations are multiplied (attention), the units along which the product sums
come and go together: only what lies across them, the heads, can change in number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from senn.graph.tracing.labels import varying
from senn.graph.tracing.recorded import Call, WeightView
from senn.graph.tracing.recorder import TraceRecorder
from senn.graph.tracing.rules.pointwise import Rules, meet_plain, merge_label_maps, mixed, pinned, rules


def columns_of(trace: TraceRecorder, source: Tensor, axis: int) -> tuple[Tensor, list[Tensor]]:
    """What a map reads along one axis: the unit of each column, and the coats that vary along other axes only.

    Units that share a column are the same unit.
    """
    beside, along = [], torch.zeros(source.shape[axis], dtype=torch.long, device=source.device)
    for label_map in trace.labels_of(source):
        if not bool(label_map.any()):
            continue
        dims = varying(label_map)
        if dims and axis not in dims:
            if trace.record.is_made(label_map):
                beside.append(label_map)
            continue
        rows = label_map.movedim(axis, -1).reshape(-1, label_map.shape[axis])
        first = rows.amax(0)
        trace.record.merge(rows, first.expand_as(rows))
        trace.record.refuse(first[(rows == 0).any(0)], f"its units meet a tensor that has no units in {trace.place}")
        if bool((along != 0).any()):
            trace.record.merge(along, first)
        along = torch.where(along != 0, along, first)
    return along, beside


def spread(labels: Tensor, axis: int, like: Tensor) -> Tensor:
    """A coat of the shape of a tensor with these labels along one axis."""
    shape = [1] * like.dim()
    shape[axis] = len(labels)
    return labels.to(like.device).view(shape).expand(like.shape).clone()


def matrix_product(trace: TraceRecorder, call: Call) -> None:
    """`mm` and `addmm`: a linear map where one factor is a weight, else a product of two activations."""
    given = call.arguments
    plain = given.get("alpha", 1) == 1 and given.get("beta", 1) == 1
    source, weight = (given["mat1"], given["mat2"]) if "mat1" in given else (given["self"], given["mat2"])
    bias = given["self"] if "mat1" in given else None
    held = trace.weight_of(weight)
    if held is not None and plain:
        _linear(trace, call, held, source, bias, out_dim=0 if held.flipped else 1)
    elif trace.weight_of(source) is not None or bias is not None:
        trace.refuse_call(call)
    else:
        _product(trace, call, source, weight)


def linear(trace: TraceRecorder, call: Call) -> None:
    """`aten::linear`, where a backend doesn't split it up."""
    held = trace.weight_of(call.arguments["weight"])
    if held is None:
        trace.refuse_call(call)
    else:
        _linear(trace, call, held, call.arguments["input"], call.arguments["bias"], out_dim=1 if held.flipped else 0)


def _linear(
    trace: TraceRecorder, call: Call, weight: WeightView, source: Tensor, bias: Tensor | None, out_dim: int
) -> None:
    output = call.outputs[0]
    columns, beside = columns_of(trace, source, source.dim() - 1)
    trace.weight_use(weight, columns, source, in_dim=1 - out_dim, out_dim=out_dim, axis=source.dim() - 1)
    made = spread(trace.produces(weight, out_dim), output.dim() - 1, output)
    label_maps = [made]
    if bias is not None and trace.is_labeled(bias):
        added = [label_map.broadcast_to(output.shape) for label_map in trace.labels_of(bias)]
        label_maps = [label_map.clone() for label_map in merge_label_maps(trace, [made, *added])]
    elif bias is not None:
        label_maps = [meet_plain(trace, made, bias)]
    label_maps += [label_map.amax(-1, keepdim=True).expand(output.shape).clone() for label_map in beside]
    trace.set_labels(output, label_maps)


def convolution(trace: TraceRecorder, call: Call) -> None:
    """A convolution of any kind: plain, transposed, grouped, depthwise."""
    given = call.arguments
    source, groups, transposed = given["input"], given["groups"], given["transposed"]
    held = trace.weight_of(given["weight"])
    output = call.outputs[0]
    if held is None:
        trace.refuse_call(call)
        return
    name = held.name
    channels, beside = columns_of(trace, source, 1)
    if beside:
        for label_map in beside:
            trace.record.refuse(label_map, f"{trace.place} mixes its units")
    count, taps = source.shape[1], given["weight"][0, 0].numel()
    if groups == count and groups > 1 and (not transposed or output.shape[1] == count):
        # depthwise: each channel has filters of its own, which go along with it
        rows = trace.passes_elementwise(name, 0)
        trace.record.merge(rows, channels.repeat_interleave(len(rows) // count))
    else:
        out_dim = 1 if transposed else 0
        if groups > 1:  # units at the same place of all groups come and go together
            channels = trace.record.merge_along(channels.view(groups, -1), {0})[0]
            if transposed:
                channels = channels.repeat(groups)
        trace.weight_use(
            held,
            channels,
            source,
            in_dim=1 - out_dim,
            out_dim=out_dim,
            axis=1,
            taps=taps,
            plain=groups == 1 or not transposed,
            groups=groups,
            transposed=bool(transposed),
        )
        rows = trace.produces(held, out_dim)
        if groups > 1 and transposed:
            rows = rows.repeat(groups)
        elif groups > 1:
            trace.record.merge_along(rows.view(groups, -1), {0})
    bias = given["bias"]
    if bias is not None and trace.is_labeled(bias):
        trace.record.merge(rows, trace.labels(bias).to(rows.device))
    trace.set_labels(output, [spread(rows, 1, output)])


def embedding(trace: TraceRecorder, call: Call) -> None:
    """A table of vectors: its columns are made, its rows are chosen by the data."""
    held = trace.weight_of(call.arguments["weight"])
    if held is None:
        trace.refuse_call(call)
        return
    output = call.outputs[0]
    trace.set_labels(output, [spread(trace.produces(held, 1), output.dim() - 1, output)])


def batched_product(trace: TraceRecorder, call: Call) -> None:
    """`bmm` and `baddbmm` of two activations."""
    given = call.arguments
    first, second = (given["batch1"], given["batch2"]) if "batch1" in given else (given["self"], given["mat2"])
    added = given["self"] if "batch1" in given else None
    if added is not None and trace.is_labeled(added):
        trace.refuse_call(call)
    else:
        _product(trace, call, first, second)


def _product(trace: TraceRecorder, call: Call, first: Tensor, second: Tensor) -> None:
    if any(trace.weight_of(factor) is not None for factor in (first, second)):
        trace.refuse_call(call)
    elif trace.is_labeled(first) or trace.is_labeled(second):
        label_maps = product(trace, trace.labels_of(first), trace.labels_of(second))
        output = call.outputs[0]
        trace.set_labels(output, [label_map.expand(output.shape).clone() for label_map in label_maps])


def product(trace: TraceRecorder, first: list[Tensor], second: list[Tensor]) -> list[Tensor]:
    """Coats of the product of (..., i, k) and (..., k, j) from the coats of both; size 1 where they don't vary."""
    first = [label_map for label_map in first if bool(label_map.any())]
    second = [label_map for label_map in second if bool(label_map.any())]
    for label_map in first:
        for other in second:
            _contract(trace, label_map, other)
    left = [_across(trace, label_map, label_map.dim() - 1) for label_map in first]
    right = [_across(trace, label_map, label_map.dim() - 2) for label_map in second]
    label_maps = [label_map for label_map in (*left, *right) if label_map is not None]
    if not label_maps:
        return []
    shape = torch.broadcast_shapes(*(label_map.shape for label_map in label_maps))  # type: ignore[no-untyped-call]
    return merge_label_maps(trace, [label_map.broadcast_to(shape) for label_map in label_maps])


def _contract(trace: TraceRecorder, first: Tensor, second: Tensor) -> None:
    """Units along which a product sums are pairs."""
    if first.dim() - 1 in varying(first) and second.dim() - 2 in varying(second):
        trace.record.merge(first.amax(-2), second.amax(-1))


def _across(trace: TraceRecorder, label_map: Tensor, summed: int) -> Tensor | None:
    """The coat without the dimension over which a product sums."""
    along = varying(label_map)
    if along and along <= {summed}:
        trace.record.refuse(label_map, f"its units are multiplied with others and summed in {trace.place}")
        return None
    if summed in along:
        label_map = pinned(trace, label_map, {summed})
    return label_map.amax(summed, keepdim=True)


def attention(trace: TraceRecorder, call: Call) -> None:
    """Fused scaled dot product attention: (q k^T) v."""
    given = call.arguments
    query, key, value = (given[name] for name in ("query", "key", "value"))
    if not any(trace.is_labeled(tensor) for tensor in (query, key, value)):
        return
    repeats = query.shape[-3] // key.shape[-3] if query.dim() > 3 else 1
    keys, values = ([_repeated(label_map, repeats) for label_map in trace.labels_of(tensor)] for tensor in (key, value))
    scores = product(trace, trace.labels_of(query), [label_map.transpose(-2, -1) for label_map in keys])
    shape = (*query.shape[:-1], key.shape[-2])
    mask = given.get("attn_mask", given.get("attn_bias"))
    scores = [label_map.expand(shape) for label_map in scores]
    if mask is not None and trace.is_labeled(mask):
        scores = merge_label_maps(
            trace, [*scores, *(label_map.broadcast_to(shape) for label_map in trace.labels_of(mask))]
        )
    weights = [mixed(trace, label_map, {len(shape) - 1}, "softmax") for label_map in scores]
    label_maps = product(trace, [label_map for label_map in weights if label_map is not None], values)
    output = call.outputs[0]
    trace.set_labels(output, [label_map.expand(output.shape).clone() for label_map in label_maps])


def _repeated(label_map: Tensor, repeats: int) -> Tensor:
    return label_map.repeat_interleave(repeats, -3) if repeats > 1 else label_map


RULES: Rules = {
    **rules(matrix_product, "mm addmm"),
    **rules(linear, "linear"),
    **rules(convolution, "convolution _convolution convolution_overrideable"),
    **rules(embedding, "embedding"),
    **rules(batched_product, "bmm baddbmm"),
    **rules(
        attention,
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_attention_math "
        "_scaled_dot_product_cudnn_attention scaled_dot_product_attention",
    ),
}
