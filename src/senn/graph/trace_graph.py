"""From one labelled forward pass to a structure: what can change size, and what cannot and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from torch import nn

from senn.graph.grouping import build_groups
from senn.graph.tracing.recorded import WeightUse
from senn.graph.tracing.recorder import TraceRecorder
from senn.graph.tracing.tracer import trace_forward
from senn.graph.types import DependencyGraph, InsertionPoint, LinearMap, Refusal, get_tensor
from senn.pytree import Inputs

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def trace_graph(model: nn.Module, inputs: Inputs, ignored: Collection[str] = frozenset()) -> DependencyGraph:
    """Run a model's forward pass once and return the structure that it shows, unproved and without blocks.

    Args:
        model: any module that `input_checks.check_model` accepts; it is left as it was.
        inputs: what its `forward` takes.
        ignored: names of modules whose own weights must keep their shapes.

    Returns:
        The structure. What the forward pass takes for granted without a trace (a constant, a float computed from a
        size) isn't seen: `senn.graph.analyze` finds that by widening a copy.

    Raises:
        SennError: the forward pass fails on these inputs.
        UnsupportedError: the output holds no tensor that could be followed.
    """
    trace, numbers = trace_forward(model, inputs)
    problems = _problems(model, trace)
    fixed: dict[str, str] = {}
    for name in ignored:
        for key, _ in model.get_submodule(name).named_parameters(recurse=False):
            fixed[f"{name}.{key}"] = "is ignored as asked"
    fixed |= problems
    used = {use.weight for use in trace.uses}
    refused = [
        Refusal(place=_short(name), reason=f"it {why}")
        for name, why in fixed.items()
        if name in used or name in problems
    ]
    groups, not_groups = build_groups(trace, numbers, fixed, _tied(model))
    maps = _maps(model, trace, problems)
    insertion_points, without_insertion_point = _insertion_points(model, trace, maps, fixed)
    refused += [*not_groups, *without_insertion_point, *_not_followed(model, trace)]
    first: dict[str, Refusal] = {}
    for refusal in refused:
        first.setdefault(refusal.place, refusal)
    return DependencyGraph(
        linear_maps=tuple(maps),
        groups=tuple(groups),
        insertion_points=tuple(insertion_points),
        refusals=tuple(first.values()),
    )


def _short(weight: str) -> str:
    """A map's name: the module's where the tensor is its weight."""
    module, _, key = weight.rpartition(".")
    return module if key == "weight" and module else weight


def _problems(model: nn.Module, trace: TraceRecorder) -> dict[str, str]:
    """Weights whose shape must not change, by full name, and why."""
    used = {name for name, _ in trace.rows} | {use.weight for use in trace.uses}
    problems = {}
    for name in used:
        parameter = get_tensor(model, name)
        if name in trace.labeled_in:
            problems[name] = f"has a weight that is also used by {trace.labeled_in[name]}"
        elif not parameter.requires_grad:
            problems[name] = "has a frozen weight"
    for path, module in model.named_modules():
        computed = isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and "weight" not in module._parameters
        if hasattr(module, "parametrizations") or computed:
            problems[path] = "has a weight that is computed from other tensors (a parametrization)"
    return problems


def _tied(model: nn.Module) -> dict[str, str]:
    """Parameters and buffers that share their memory with another tensor object: full name to the other's."""
    holders: dict[int, dict[int, str]] = {}
    for name, module in model.named_modules():
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                full = f"{name}.{key}" if name else key
                holders.setdefault(tensor.data_ptr() or id(tensor), {}).setdefault(id(tensor), full)
    shared = [list(names.values()) for names in holders.values() if len(names) > 1]
    return {name: next(other for other in names if other != name) for names in shared for name in names}


def _maps(model: nn.Module, trace: TraceRecorder, problems: dict[str, str]) -> list[LinearMap]:
    """The linear maps in order of first use."""
    uses: dict[str, list[WeightUse]] = {}
    for use in trace.uses:
        uses.setdefault(use.weight, []).append(use)
    found = []
    for weight, several in uses.items():
        first = several[0]
        module, _, _ = weight.rpartition(".")
        bias = model.get_submodule(module)._parameters.get("bias") if weight.endswith("weight") else None
        alike = all((use.in_dim, use.scored) == (first.in_dim, True) for use in several)
        makes_what_it_reads = (weight, first.in_dim) in trace.rows
        plain = not makes_what_it_reads and weight not in problems and weight not in trace.labeled_in
        found.append(
            LinearMap(
                name=_short(weight),
                weight=weight,
                bias=None if bias is None else f"{module}.bias".lstrip("."),
                out_dim=first.out_dim,
                in_dim=first.in_dim,
                kernel_numel=1 if first.transposed else first.kernel_numel,
                has_factors=alike and plain,
                n_uses=len(several),
                groups=first.groups,
                transposed=first.transposed,
            )
        )
    return found


def _insertion_points(
    model: nn.Module, trace: TraceRecorder, maps: list[LinearMap], fixed: Collection[str]
) -> tuple[list[InsertionPoint], list[Refusal]]:
    """Where a layer can be inserted, with the activation that the model uses nearest to it."""
    usual = Counter(trace.activations.values()).most_common(1)[0][0] if trace.activations else "ReLU"
    aliases = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    last = {use.weight: use for use in trace.uses}
    insertion_points, refused = [], []
    for one in maps:
        use = last[one.weight]
        path = one.weight.rpartition(".")[0]
        module = model.get_submodule(path)
        if one.n_uses > 1 or use.inside != path or one.weight in fixed or not use.scored or one.groups > 1:
            continue
        if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            continue
        if module is model:
            refused.append(Refusal(place=path, reason="no layer can be inserted before it: it is the whole model"))
        elif aliases[id(module)] > 1:
            refused.append(
                Refusal(place=one.name, reason="no layer can be inserted before it: the model holds it under two names")
            )
        elif _read_by_fast_path(model.get_submodule(path.rpartition(".")[0])):
            why = "in eval mode its TransformerEncoderLayer reads its weight directly (the fast path)"
            refused.append(Refusal(place=one.name, reason=f"no layer can be inserted before it: {why}"))
        else:
            spatial = _CONVOLUTIONS.index(type(module)) + 1 if type(module) in _CONVOLUTIONS else 0
            insertion_points.append(
                InsertionPoint(
                    module=one.name,
                    features=module.weight.shape[1],
                    activation=use.activation or usual,
                    spatial=spatial,
                )
            )
    return insertion_points, refused


def _read_by_fast_path(parent: nn.Module) -> bool:
    """Whether a module is a transformer layer that in eval mode hands the weights inside it to one fused kernel."""
    fused = isinstance(parent, nn.TransformerEncoderLayer) and parent.self_attn.batch_first
    return fused and bool(parent.activation_relu_or_gelu)


def _not_followed(model: nn.Module, trace: TraceRecorder) -> list[Refusal]:
    """Modules with parameters that no rule understands, and parameters that the forward pass never reaches."""
    refused = [Refusal(place=place, reason=reason) for place, reason in trace.not_understood.items()]
    for name, module in model.named_modules():
        own = {f"{name}.{key}" if name else key: p for key, p in module.named_parameters(recurse=False)}
        unused = [key for key, parameter in own.items() if id(parameter) not in trace.reached]
        if name and unused and len(unused) == len(own):
            refused.append(Refusal(place=name, reason="it is never used in the forward pass"))
        else:
            refused += [Refusal(place=key, reason="it is never used in the forward pass") for key in unused]
    return refused
