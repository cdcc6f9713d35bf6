"""Rules for normalisations. Those of each unit on its own carry units; those that mix units are noted, not refused."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from senn.graph.tracing.labels import varying
from senn.graph.tracing.recorded import Call
from senn.graph.tracing.recorder import TraceRecorder
from senn.graph.tracing.rules.linear import columns_of, spread
from senn.graph.tracing.rules.pointwise import Rules, dimensions, pinned, rules


def layer_norm(trace: TraceRecorder, call: Call) -> None:
    """Over the last dimensions: see `over_units`."""
    source, given = call.tensors[0], call.arguments
    dims = dimensions(call, source.dim())
    over_units(trace, source, call.outputs[0], dims, kind="layer", weight=given.get("weight"), bias=given.get("bias"))


def over_units(
    trace: TraceRecorder,
    source: Tensor,
    output: Tensor,
    dims: set[int],
    *,
    kind: Literal["layer", "rms"],
    weight: Tensor | None,
    bias: Tensor | None = None,
) -> None:
    """Normalise over some dimensions: of whole units a `Norm`, of parts of units (each head on its own) a fixed size.

    Args:
        trace: what has been seen so far.
        source: what is normalised.
        output: what comes out, of the same shape.
        dims: the dimensions over which the statistics are taken.
        kind: `layer` (less the mean) or `rms`.
        weight: factors by unit, or None.
        bias: what is added by unit, or None.
    """
    if not trace.is_labeled(source):
        return
    label_maps = []
    for label_map in trace.labels_of(source):
        along = varying(label_map)
        if along & dims and along <= dims:
            for parameter in (weight, bias):
                for carrier in trace.labels_of(parameter) if parameter is not None else ():
                    trace.record.merge(label_map, carrier.expand_as(label_map))
            trace.note_norm(weight, kind, label_map)
            trace.note_normed(output)
        elif along & dims:
            label_map = pinned(trace, label_map, along & dims)
        label_maps.append(label_map)
    trace.set_labels(output, [label_map.clone() for label_map in label_maps])


def batch_norm(trace: TraceRecorder, call: Call) -> None:
    """Each channel (dimension 1) on its own: weight, bias and running statistics are carriers."""
    source = call.tensors[0]
    channels, beside = columns_of(trace, source, 1)
    for label_map in beside:  # statistics of a batch are taken over them
        trace.record.refuse(label_map, f"its units are not along the feature dimension in {trace.place}")
    for key in ("weight", "bias", "running_mean", "running_var"):
        carrier = call.arguments.get(key)
        if isinstance(carrier, Tensor) and carrier.shape == channels.shape and trace.is_labeled(carrier):
            trace.record.merge(channels, trace.labels(carrier).to(channels.device))
    trace.set_labels(call.outputs[0], [label_map.clone() for label_map in trace.labels_of(source)])


def group_norm(trace: TraceRecorder, call: Call) -> None:
    """Each group of channels on its own: the channels of a group are one unit."""
    source, groups = call.tensors[0], call.arguments["group"]
    channels, _ = columns_of(trace, source, 1)
    if bool(channels.any()):
        if groups == 1:
            trace.record.refuse(channels, f"{trace.place} mixes its units (one group)")
        trace.record.merge_along(channels.view(groups, -1), {1})
        trace.note_groups(channels)
        for key in ("weight", "bias"):
            carrier = call.arguments.get(key)
            if carrier is not None:
                trace.record.merge(channels, trace.labels(carrier).to(channels.device))
    trace.set_labels(call.outputs[0], [spread(channels, 1, source)])


RULES: Rules = {
    **rules(layer_norm, "native_layer_norm"),
    **rules(group_norm, "native_group_norm"),
    **rules(
        batch_norm,
        "native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit "
        "_native_batch_norm_legit_no_training _batch_norm_no_update",
    ),
}
