"""Rules for normalisations. Those of each unit on its own carry units; those that mix units are noted, not refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from senn.structure.tracing.labels import varying
from senn.structure.tracing.rules.linear import columns_of, spread
from senn.structure.tracing.rules.pointwise import RULES, Call, dimensions, pinned

if TYPE_CHECKING:
    from senn.structure.tracing.recorder import Trace


def layer_norm(trace: Trace, call: Call) -> None:
    """Over the last dimensions: of whole units a `Norm`, of parts of units (each head on its own) a fixed size."""
    source = call.tensors[0]
    if not trace.is_labelled(source):
        return
    dims, given = dimensions(call, source.dim()), call.arguments
    coats = []
    for coat in trace.coats(source):
        along = varying(coat)
        if not along & dims:
            coats.append(coat)
        elif along <= dims:
            for key in ("weight", "bias"):
                if given.get(key) is not None:
                    for carrier in trace.coats(given[key]):
                        trace.record.unite(coat, carrier.expand_as(coat))
            trace.note_norm(given.get("weight"), "layer", coat)
            trace.note_normed(call.outputs[0])
            coats.append(coat)
        else:
            coats.append(pinned(trace, coat, along & dims))
    trace.dress(call.outputs[0], [coat.clone() for coat in coats])


def batch_norm(trace: Trace, call: Call) -> None:
    """Each channel (dimension 1) on its own: weight, bias and running statistics are carriers."""
    source = call.tensors[0]
    channels, beside = columns_of(trace, source, 1)
    for coat in beside:  # statistics of a batch are taken over them
        trace.record.refuse(coat, f"its units are not along the feature dimension in {trace.place}")
    for key in ("weight", "bias", "running_mean", "running_var"):
        carrier = call.arguments.get(key)
        if isinstance(carrier, Tensor) and carrier.shape == channels.shape and trace.is_labelled(carrier):
            trace.record.unite(channels, trace.labels(carrier).to(channels.device))
    trace.dress(call.outputs[0], [coat.clone() for coat in trace.coats(source)])


def group_norm(trace: Trace, call: Call) -> None:
    """Each group of channels on its own: the channels of a group are one unit."""
    source, groups = call.tensors[0], call.arguments["group"]
    channels, _ = columns_of(trace, source, 1)
    if bool(channels.any()):
        if groups == 1:
            trace.record.refuse(channels, f"{trace.place} mixes its units (one group)")
        trace.record.unite_along(channels.view(groups, -1), {1})
        trace.note_groups(channels)
        for key in ("weight", "bias"):
            carrier = call.arguments.get(key)
            if carrier is not None:
                trace.record.unite(channels, trace.labels(carrier).to(channels.device))
    trace.dress(call.outputs[0], [spread(channels, 1, source)])


for _rule, _names in (
    (layer_norm, "native_layer_norm"),
    (group_norm, "native_group_norm"),
    (
        batch_norm,
        "native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit "
        "_native_batch_norm_legit_no_training _batch_norm_no_update",
    ),
):
    RULES.update({f"aten::{name}": _rule for name in _names.split()})
