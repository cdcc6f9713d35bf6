"""Rules for the operations that read units and make new ones: linear maps, convolutions, embeddings, products.

A map reads the units of its input (`trace.use`: which unit each of its columns belongs to) and labels its output by its
own rows (`trace.produce`). Where two activations are multiplied (attention), the units along which the product sums
come and go together: only what lies across them, the heads, can change in number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from senn.structure.tracing.labels import varying
from senn.structure.tracing.recorded import Call, Held
from senn.structure.tracing.recorder import Trace
from senn.structure.tracing.rules.pointwise import Rules, meet_plain, mixed, pinned, rules, together


def columns_of(trace: Trace, source: Tensor, axis: int) -> tuple[Tensor, list[Tensor]]:
    """What a map reads along one axis: the unit of each column, and the coats that vary along other axes only.

    Units that share a column are the same unit.
    """
    beside, along = [], torch.zeros(source.shape[axis], dtype=torch.long, device=source.device)
    for coat in trace.coats(source):
        if not bool(coat.any()):
            continue
        dims = varying(coat)
        if dims and axis not in dims:
            if trace.record.is_made(coat):
                beside.append(coat)
            continue
        rows = coat.movedim(axis, -1).reshape(-1, coat.shape[axis])
        first = rows.amax(0)
        trace.record.unite(rows, first.expand_as(rows))
        trace.record.refuse(first[(rows == 0).any(0)], f"its units meet a tensor that has no units in {trace.place}")
        if bool((along != 0).any()):
            trace.record.unite(along, first)
        along = torch.where(along != 0, along, first)
    return along, beside


def spread(labels: Tensor, axis: int, like: Tensor) -> Tensor:
    """A coat of the shape of a tensor with these labels along one axis."""
    shape = [1] * like.dim()
    shape[axis] = len(labels)
    return labels.to(like.device).view(shape).expand(like.shape).clone()


def matrix_product(trace: Trace, call: Call) -> None:
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


def linear(trace: Trace, call: Call) -> None:
    """`aten::linear`, where a backend doesn't split it up."""
    held = trace.weight_of(call.arguments["weight"])
    if held is None:
        trace.refuse_call(call)
    else:
        _linear(trace, call, held, call.arguments["input"], call.arguments["bias"], out_dim=1 if held.flipped else 0)


def _linear(trace: Trace, call: Call, weight: Held, source: Tensor, bias: Tensor | None, out_dim: int) -> None:
    output = call.outputs[0]
    columns, beside = columns_of(trace, source, source.dim() - 1)
    trace.use(weight, columns, source, in_dim=1 - out_dim, out_dim=out_dim, axis=source.dim() - 1)
    made = spread(trace.produce(weight, out_dim), output.dim() - 1, output)
    coats = [made]
    if bias is not None and trace.is_labelled(bias):
        added = [coat.broadcast_to(output.shape) for coat in trace.coats(bias)]
        coats = [coat.clone() for coat in together(trace, [made, *added])]
    elif bias is not None:
        coats = [meet_plain(trace, made, bias)]
    coats += [coat.amax(-1, keepdim=True).expand(output.shape).clone() for coat in beside]
    trace.dress(output, coats)


def convolution(trace: Trace, call: Call) -> None:
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
        for coat in beside:
            trace.record.refuse(coat, f"{trace.place} mixes its units")
    count, taps = source.shape[1], given["weight"][0, 0].numel()
    if groups == count and groups > 1 and (not transposed or output.shape[1] == count):
        # depthwise: each channel has filters of its own, which go along with it
        rows = trace.carry(name, 0)
        trace.record.unite(rows, channels.repeat_interleave(len(rows) // count))
    else:
        out_dim = 1 if transposed else 0
        if groups > 1:  # units at the same place of all groups come and go together
            channels = trace.record.unite_along(channels.view(groups, -1), {0})[0]
            if transposed:
                channels = channels.repeat(groups)
        trace.use(
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
        rows = trace.produce(held, out_dim)
        if groups > 1 and transposed:
            rows = rows.repeat(groups)
        elif groups > 1:
            trace.record.unite_along(rows.view(groups, -1), {0})
    bias = given["bias"]
    if bias is not None and trace.is_labelled(bias):
        trace.record.unite(rows, trace.labels(bias).to(rows.device))
    trace.dress(output, [spread(rows, 1, output)])


def embedding(trace: Trace, call: Call) -> None:
    """A table of vectors: its columns are made, its rows are chosen by the data."""
    held = trace.weight_of(call.arguments["weight"])
    if held is None:
        trace.refuse_call(call)
        return
    output = call.outputs[0]
    trace.dress(output, [spread(trace.produce(held, 1), output.dim() - 1, output)])


def batched_product(trace: Trace, call: Call) -> None:
    """`bmm` and `baddbmm` of two activations."""
    given = call.arguments
    first, second = (given["batch1"], given["batch2"]) if "batch1" in given else (given["self"], given["mat2"])
    added = given["self"] if "batch1" in given else None
    if added is not None and trace.is_labelled(added):
        trace.refuse_call(call)
    else:
        _product(trace, call, first, second)


def _product(trace: Trace, call: Call, first: Tensor, second: Tensor) -> None:
    if any(trace.weight_of(factor) is not None for factor in (first, second)):
        trace.refuse_call(call)
    elif trace.is_labelled(first) or trace.is_labelled(second):
        coats = product(trace, trace.coats(first), trace.coats(second))
        output = call.outputs[0]
        trace.dress(output, [coat.expand(output.shape).clone() for coat in coats])


def product(trace: Trace, first: list[Tensor], second: list[Tensor]) -> list[Tensor]:
    """Coats of the product of (..., i, k) and (..., k, j) from the coats of both; size 1 where they don't vary."""
    first = [coat for coat in first if bool(coat.any())]
    second = [coat for coat in second if bool(coat.any())]
    for coat in first:
        for other in second:
            _contract(trace, coat, other)
    left = [_across(trace, coat, coat.dim() - 1) for coat in first]
    right = [_across(trace, coat, coat.dim() - 2) for coat in second]
    worn = [coat for coat in (*left, *right) if coat is not None]
    if not worn:
        return []
    shape = torch.broadcast_shapes(*(coat.shape for coat in worn))  # type: ignore[no-untyped-call]
    return together(trace, [coat.broadcast_to(shape) for coat in worn])


def _contract(trace: Trace, first: Tensor, second: Tensor) -> None:
    """Units along which a product sums are pairs."""
    if first.dim() - 1 in varying(first) and second.dim() - 2 in varying(second):
        trace.record.unite(first.amax(-2), second.amax(-1))


def _across(trace: Trace, coat: Tensor, summed: int) -> Tensor | None:
    """The coat without the dimension over which a product sums."""
    along = varying(coat)
    if along and along <= {summed}:
        trace.record.refuse(coat, f"its units are multiplied with others and summed in {trace.place}")
        return None
    if summed in along:
        coat = pinned(trace, coat, {summed})
    return coat.amax(summed, keepdim=True)


def attention(trace: Trace, call: Call) -> None:
    """Fused scaled dot product attention: (q k^T) v."""
    given = call.arguments
    query, key, value = (given[name] for name in ("query", "key", "value"))
    if not any(trace.is_labelled(tensor) for tensor in (query, key, value)):
        return
    repeats = query.shape[-3] // key.shape[-3] if query.dim() > 3 else 1
    keys, values = ([_repeated(coat, repeats) for coat in trace.coats(tensor)] for tensor in (key, value))
    scores = product(trace, trace.coats(query), [coat.transpose(-2, -1) for coat in keys])
    shape = (*query.shape[:-1], key.shape[-2])
    mask = given.get("attn_mask", given.get("attn_bias"))
    scores = [coat.expand(shape) for coat in scores]
    if mask is not None and trace.is_labelled(mask):
        scores = together(trace, [*scores, *(coat.broadcast_to(shape) for coat in trace.coats(mask))])
    weights = [mixed(trace, coat, {len(shape) - 1}, "softmax") for coat in scores]
    coats = product(trace, [coat for coat in weights if coat is not None], values)
    output = call.outputs[0]
    trace.dress(output, [coat.expand(output.shape).clone() for coat in coats])


def _repeated(coat: Tensor, repeats: int) -> Tensor:
    return coat.repeat_interleave(repeats, -3) if repeats > 1 else coat


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
