"""From labeled forward passes to an unproved dependency graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from senn.graph.forward_passes import ForwardPass
from senn.graph.grouping import build_groups
from senn.graph.named_tensors import get_tensor
from senn.graph.tracing.recorded import WeightUse
from senn.graph.tracing.trace_recorder import TraceRecorder
from senn.graph.tracing.tracer import trace_forward
from senn.graph.types import DependencyGraph, InsertionPoint, LinearMap, Refusal

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def trace_graph(
    model: nn.Module,
    passes: Sequence[ForwardPass],
    ignored: Collection[str] = frozenset(),
    tied: Mapping[str, str] | None = None,
) -> DependencyGraph:
    """Trace a model's forward passes and return the dependency graph that they show together, unproved.

    Args:
        model: any module that `input_checks.check_model` accepts; it is left as it was.
        passes: how it is run; scoring runs it as the first one does.
        ignored: names of modules whose own weights must keep their shapes.
        tied: `shared_memory` of the original if the model is a copy, in which tensors share no memory any more.

    Returns:
        The graph. A size that the forward takes for granted without a trace (a constant, a float computed from a size)
        isn't seen: `senn.analyze` finds it by widening a copy.

    Raises:
        SennError: the forward pass fails on these inputs.
        UnsupportedError: the output holds no tensor that could be followed.
    """
    if tied is None:
        tied = shared_memory(model)
    trace, sizes = trace_forward(model, passes)
    fixed: dict[str, str] = {}
    for name in ignored:
        for key, _ in model.get_submodule(name).named_parameters(recurse=False):
            fixed[f"{name}.{key}"] = "is ignored as requested"
    problems = fixed_weights(model, trace)
    fixed |= problems
    found = build_groups(trace, sizes, fixed, tied)
    linear_maps = [
        replace(one, located_in=tuple(sorted(found.located_in.get(one.weight, ()))))
        for one in _linear_maps(model, trace, problems)
    ]
    insertion_points, not_points = _insertion_points(model, trace, linear_maps, fixed)
    used = {use.weight for use in trace.uses}
    refusals: dict[str, Refusal] = {}  # the first for each place is the one that says most
    for name, why in fixed.items():
        if name in used or name in problems:
            place = _map_name(name)
            refusals.setdefault(place, Refusal(place=place, reason=f"it {why}"))
    for refusal in (*found.refusals, *not_points, *_not_followed(model, trace)):
        if any(refusal.place.startswith(f"{name}.") for name in problems):
            continue  # what a parametrization consists of
        refusals.setdefault(refusal.place, refusal)
    for refusal in _unaccounted(model, trace, found.tensors, refusals):
        refusals.setdefault(refusal.place, refusal)
    return DependencyGraph(
        linear_maps=tuple(linear_maps),
        groups=tuple(found.groups),
        insertion_points=tuple(insertion_points),
        refusals=tuple(refusals.values()),
        guesses=tuple(found.guesses),
    )


def _map_name(weight: str) -> str:
    """Name of a linear map: the module's where the tensor is its `weight`."""
    module, _, key = weight.rpartition(".")
    return module if key == "weight" and module else weight


def fixed_weights(model: nn.Module, trace: TraceRecorder) -> dict[str, str]:
    """Find the weights whose shape must not change.

    Args:
        model: the model.
        trace: of its forward passes.

    Returns:
        By full name, why: a verb phrase that follows the name.
    """
    problems = {}
    # Where entries have labels of their own, an operation other than a linear map reads the weight, too.
    made = {origin.name for origin in trace.record.origins if origin.produces}
    # What only goes along with units (a table of positions, filters of single channels) may be frozen: it is extended
    # by what keeps the function, and its old entries stay as they are.
    read_or_made = made | {use.weight for use in trace.uses}
    for name in {name for name, _ in trace.rows} | read_or_made:
        if name in trace.labeled_in:
            problems[name] = f"has a weight that is also used by {trace.labeled_in[name]}"
        elif name in read_or_made and not get_tensor(model, name).requires_grad:
            problems[name] = "has a frozen weight"
    for path, module in model.named_modules():
        # `weight_norm` and parametrizations make the weight anew at each call: resizing it would have no effect.
        is_layer = isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
        computed = is_layer and "weight" not in module._parameters
        if hasattr(module, "parametrizations") or computed:
            problems[path] = "has a weight that is computed from other tensors (a parametrization)"
    return problems


def shared_memory(model: nn.Module) -> dict[str, str]:
    """Find tensors that share memory with another tensor object.

    Returns:
        Their full names, and the other's name.

    One object under two names is a tied parameter, which surgery resizes as one. Two objects with one memory would
    become two after a resize, so their dimensions are refused.
    """
    names: dict[int, dict[int, str]] = {}  # by memory address, then by object
    for name, module in model.named_modules():
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and tensor.layout is torch.strided:
                full_name = f"{name}.{key}" if name else key
                address = tensor.data_ptr() or id(tensor)  # an empty tensor has address 0
                names.setdefault(address, {}).setdefault(id(tensor), full_name)
    shared = {}
    for objects in names.values():
        for name in objects.values():
            others = [other for other in objects.values() if other != name]
            if others:
                shared[name] = others[0]
    return shared


def _linear_maps(
    model: nn.Module, trace: TraceRecorder, problems: Collection[str]
) -> list[LinearMap]:
    """Linear maps in order of first use."""
    uses_of: dict[str, list[WeightUse]] = {}
    for use in trace.uses:
        uses_of.setdefault(use.weight, []).append(use)
    linear_maps = []
    for weight, uses in uses_of.items():
        first = uses[0]  # several uses agree, or the map has no factors
        # Scoring runs the first pass only: what another one applies beside that has no factors.
        scored = [use for use in uses if use.pass_number == 0]
        module, _, key = weight.rpartition(".")
        has_bias = (
            key == "weight" and model.get_submodule(module)._parameters.get("bias") is not None
        )
        alike = bool(scored) and all(use.in_dim == first.in_dim and use.scored for use in scored)
        # A tied embedding makes units along the dimension in which the head reads them.
        makes_what_it_reads = (weight, first.in_dim) in trace.rows
        plain = (
            not makes_what_it_reads and weight not in problems and weight not in trace.labeled_in
        )
        linear_maps.append(
            LinearMap(
                name=_map_name(weight),
                weight=weight,
                bias=f"{module}.bias".lstrip(".") if has_bias else None,
                out_dim=first.out_dim,
                in_dim=first.in_dim,
                kernel_numel=1 if first.transposed else first.kernel_numel,
                has_factors=alike and plain,
                n_uses=len(scored) or len(uses),
                groups=first.groups,
                transposed=first.transposed,
            )
        )
    return linear_maps


def _insertion_points(
    model: nn.Module, trace: TraceRecorder, linear_maps: list[LinearMap], fixed: Collection[str]
) -> tuple[list[InsertionPoint], list[Refusal]]:
    """Inputs where a layer can be inserted, and refusals of those where it only looks possible."""
    # For inputs that went through no activation: the model's most frequent one is the best guess.
    most_used = Counter(trace.activations.values()).most_common(1)
    usual = most_used[0][0] if most_used else "ReLU"
    times_held = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    last_use = {use.weight: use for use in trace.uses if use.pass_number == 0}
    # In every pass the map must be called as a module, or another path would go past the layer.
    elsewhere = {use.weight for use in trace.uses if use.inside != use.weight.rpartition(".")[0]}
    points, refused = [], []
    for one in linear_maps:
        use = last_use.get(one.weight)
        if use is None or one.weight in elsewhere:
            continue
        path = one.weight.rpartition(".")[0]
        module = model.get_submodule(path)
        # The layer is put into a `Sequential` in the map's place, so the map must be a module that is called once.
        called_once = one.n_uses == 1 and use.scored
        if not called_once or one.groups > 1 or one.weight in fixed:
            continue
        if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            continue
        why = None
        if module is model:
            why = "it is the whole model"
        elif times_held[id(module)] > 1:
            why = "the model holds it under two names"
        elif _read_by_fast_path(model.get_submodule(path.rpartition(".")[0])):
            why = (
                "in eval mode its TransformerEncoderLayer reads its weight directly (the fast path)"
            )
        if why is not None:
            place = path if module is model else one.name
            refused.append(
                Refusal(place=place, reason=f"no layer can be inserted before it: {why}")
            )
            continue
        points.append(
            InsertionPoint(
                module=one.name,
                features=module.weight.shape[1],
                activation=use.activation or usual,
                spatial=_CONVOLUTIONS.index(type(module)) + 1
                if type(module) in _CONVOLUTIONS
                else 0,
            )
        )
    return points, refused


def _read_by_fast_path(parent: nn.Module) -> bool:
    """Return True for a transformer layer that in eval mode runs as one fused kernel."""
    fused = isinstance(parent, nn.TransformerEncoderLayer) and parent.self_attn.batch_first
    return fused and bool(parent.activation_relu_or_gelu)


def _not_followed(model: nn.Module, trace: TraceRecorder) -> list[Refusal]:
    """Modules that no rule understands, and parameters that the forward pass never reaches."""
    refused = [
        Refusal(place=place, reason=reason) for place, reason in trace.not_understood.items()
    ]
    reason = "it is never used in the forward pass"
    unused_modules: set[str] = set()
    for name, module in model.named_modules():
        # One entry for a module that never runs and of which nothing is used, else one for each parameter.
        if name.rpartition(".")[0] in unused_modules:
            unused_modules.add(name)
            continue
        own = dict(module.named_parameters(recurse=False))
        unused = [key for key, parameter in own.items() if id(parameter) not in trace.reached]
        idle = name not in trace.entered and not any(
            id(parameter) in trace.reached for parameter in module.parameters()
        )
        if name and unused and idle:
            unused_modules.add(name)
            refused.append(Refusal(place=name, reason=reason))
            continue
        places = [f"{name}.{key}" if name else key for key in unused]
        refused += [Refusal(place=place, reason=reason) for place in places]
    return refused


def _unaccounted(
    model: nn.Module, trace: TraceRecorder, known: Collection[str], refusals: Collection[str]
) -> list[Refusal]:
    """Weights that neither a group nor a refusal speaks of: none may be passed over in silence."""
    refused = []
    for name, parameter in model.named_parameters():
        place = _map_name(name)
        owners = {name.rpartition(".")[0], place, name}
        covered = name in known or any(
            refusal in owners or (refusal and place.startswith(f"{refusal}."))
            for refusal in refusals
        )
        if parameter.dim() < 2 or covered:
            continue
        if not parameter.requires_grad:
            reason = "it has a frozen weight"
        elif name in trace.labeled_in:
            reason = f"no linear map applies it as it is: it is read by {trace.labeled_in[name]}"
        else:
            reason = "no linear map that is understood applies it"
        refused.append(Refusal(place=place, reason=reason, line=trace.used_at.get(name, "")))
    return refused
