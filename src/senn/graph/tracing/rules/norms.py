"""Rules for normalizations: of each unit on its own, or over units.

The parameters of the former go along with the units, one by one; the latter are recorded (`NormUse`), not refused.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from senn.graph.tracing.labels import varying
from senn.graph.tracing.recorded import Call
from senn.graph.tracing.rules.pointwise import Rules, dimensions, fix_along, reduce, rules
from senn.graph.tracing.rules.weights import columns_of, spread
from senn.graph.tracing.trace_recorder import TraceRecorder


def _layer_norm(trace: TraceRecorder, call: Call) -> None:
    """Layer normalization over the last dimensions; see `normalize_units`."""
    source, arguments = call.tensors[0], call.arguments
    normalize_units(
        trace,
        source,
        call.outputs[0],
        dimensions(call, source.dim()),
        kind="layer",
        weight=arguments.get("weight"),
        bias=arguments.get("bias"),
        eps=arguments.get("eps"),
    )


def normalize_units(
    trace: TraceRecorder,
    source: Tensor,
    output: Tensor,
    dims: set[int],
    *,
    kind: Literal["layer", "rms"],
    weight: Tensor | None,
    bias: Tensor | None = None,
    eps: float | None = None,
) -> None:
    """Normalize over some dimensions.

    Over whole units that is a `Norm` of their group. Over parts of units (each head on its own) it fixes the size of
    these parts, and the units can still change in number.

    Args:
        trace: the recorder.
        source: the input.
        output: the output, of the same shape.
        dims: dimensions over which the statistics are taken.
        kind: `layer` (which subtracts the mean) or `rms`.
        weight: factors, one for each unit; None if there are none.
        bias: summands, one for each unit; None if there are none.
        eps: the small number in the variance; None if it isn't known.
    """
    if not trace.is_labeled(source):
        return
    parameters = [parameter for parameter in (weight, bias) if parameter is not None]
    label_maps = []
    for label_map in trace.labels_of(source):
        along = varying(label_map)
        mixed = along & dims
        if mixed == along and mixed:  # whole units
            # Each unit has its own factor and summand, which are labeled as entries of a parameter.
            own = [labels for parameter in parameters for labels in trace.labels_of(parameter)]
            for labels in own:
                trace.record.merge(label_map, labels.expand_as(label_map))
            use = trace.flow.note(
                kind=kind,
                label_map=label_map,
                inputs=trace.sources.of(source),
                weight=weight,
                eps=eps,
            )
            if bias is not None:
                use.shifts.append(trace.sources.parameter(bias) or "")
                use.blocked = None if use.weights else f"the bias that {trace.place} adds"
            trace.flow.begin(use, output)
            trace.sources.end(output, trace.place)
        elif mixed:  # parts of units
            label_map = fix_along(trace, label_map, mixed)
        label_maps.append(label_map)
    trace.set_labels(output, [label_map.clone() for label_map in label_maps])


def _statistic(trace: TraceRecorder, call: Call) -> None:
    """Reduce over some dimensions; over whole units that may be a part of a normalization."""
    source = call.tensors[0]
    if trace.is_labeled(source):
        label_maps = [one for one in trace.labels_of(source) if bool(one.any())]
        dims = dimensions(call, source.dim())
        along = varying(label_maps[0]) if len(label_maps) == 1 else set()
        if along and along <= dims and trace.flow.reduces(call, label_maps[0], dims, along):
            return
    reduce(trace, call)


def _batch_norm(trace: TraceRecorder, call: Call) -> None:
    """Normalize each channel (dimension 1) on its own; its tensors go along with the units."""
    source = call.tensors[0]
    channels, elsewhere = columns_of(trace, source, 1)
    for label_map in elsewhere:  # the statistics of a batch are taken over these units
        trace.record.refuse(
            label_map, f"its units are not along the feature dimension in {trace.place}"
        )
    for key in (
        "weight",
        "bias",
        "running_mean",
        "running_var",
    ):  # absent, or None, where the layer has none
        tensor = call.arguments.get(key)
        if (
            isinstance(tensor, Tensor)
            and tensor.shape == channels.shape
            and trace.is_labeled(tensor)
        ):
            trace.record.merge(channels, trace.first_labels_of(tensor).to(channels.device))
    trace.set_labels(call.outputs[0], [label_map.clone() for label_map in trace.labels_of(source)])


def _group_norm(trace: TraceRecorder, call: Call) -> None:
    """Normalize each group of channels on its own: a whole group is one unit."""
    source, groups = call.tensors[0], call.arguments["group"]
    channels, _ = columns_of(trace, source, 1)
    if bool(channels.any()):
        if groups == 1:
            trace.record.refuse(channels, f"{trace.place} mixes its units (one group)")
        # The number of groups grows with the units, their size doesn't.
        trace.record.merge_along(channels.view(groups, -1), {1})
        trace.note_groups(channels)
        for key in ("weight", "bias"):
            tensor = call.arguments.get(key)
            if tensor is not None:
                trace.record.merge(channels, trace.first_labels_of(tensor).to(channels.device))
    trace.set_labels(call.outputs[0], [spread(channels, 1, source)])


RULES: Rules = {
    **rules(_statistic, "mean sum var std var_mean std_mean linalg_vector_norm norm"),
    **rules(_layer_norm, "native_layer_norm"),
    **rules(_group_norm, "native_group_norm"),
    **rules(
        _batch_norm,
        "native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit "
        "_native_batch_norm_legit_no_training _batch_norm_no_update",
    ),
}
