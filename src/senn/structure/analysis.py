"""From one labelled forward pass to the structure of a model: what can change size, and what cannot and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import replace

from torch import nn

from senn.batch import Inputs
from senn.errors import SennError
from senn.structure.blocks import residual_blocks
from senn.structure.grouping import Builder
from senn.structure.input_checks import check_inputs, check_model
from senn.structure.spaces import LinearMap, Refusal, Site, Structure, tensor_of
from senn.structure.summary import Explanation, render
from senn.structure.tracing.recorded import Use
from senn.structure.tracing.recorder import Trace
from senn.structure.tracing.tracer import run
from senn.structure.trial import tried

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def analyse(model: nn.Module, inputs: Inputs, ignore: Iterable[str] = (), proven: Structure | None = None) -> Structure:
    """Find what in a model can change size.

    Runs the model's own forward once in eval mode, without gradients, and follows which unit each entry of each
    tensor belongs to (`senn.structure.tracing`) and what the forward's Python code computes with sizes
    (`senn.structure.sizes`). Then a copy of the model, widened by one unit in every space, is run in the same way: a
    space whose size the forward pass takes for granted is refused. Residual blocks are found by trying, in another
    copy, which modules can give back what they are given (`senn.structure.blocks`). The model itself is left as it was:
    parameters, buffers, gradients, hooks, training flags, random number generators.

    Args:
        model: any module. What isn't understood is refused by name, and the rest of the model still counts.
        inputs: what `forward` takes, a small batch: a tensor, a tuple of positional arguments, a mapping of keyword
            arguments, or `senn.Arguments`.
        ignore: names of modules whose linear maps must keep their shapes, those inside them included.
        proven: the structure of the same modules at other widths: its spaces and blocks need no second trial, and what
            it refuses stays refused.

    Returns:
        The structure. It may hold no space and no site at all.

    Raises:
        SennError: the inputs don't fit the model, or a name in `ignore` is no module of it.
        UnsupportedError: the model or its output is of a kind that can't be followed.
    """
    check_model(model)
    check_inputs(model, inputs)
    ignored = _ignored(model, ignore)
    structure = _read(model, inputs, ignored)
    if proven is not None:
        names = {space.name for space in proven.spaces}
        spaces = tuple(space for space in structure.spaces if space.name in names)
        return replace(structure, spaces=spaces, refused=proven.refused, blocks=proven.blocks)
    structure = tried(model, inputs, structure, lambda copy, example: _read(copy, example, ignored))
    blocks, without = residual_blocks(model, inputs, structure.maps, ignored)
    return replace(structure, blocks=tuple(blocks), refused=(*structure.refused, *without))


def explain(structure: Structure | nn.Module, inputs: Inputs | None = None) -> Explanation:
    """Explain in plain text what in a model can change size, and what can't and why.

    Args:
        structure: a structure, or a model, which is analysed.
        inputs: a few inputs of the model; None for a structure.

    Returns:
        Plain text tables of the spaces, the sites, the blocks that can be repeated, and the refusals. A consumer that
        owns k > 1 columns per unit is shown as `name x k`.
    """
    return render(analyse(structure, inputs) if isinstance(structure, nn.Module) else structure)


def _ignored(model: nn.Module, ignore: Iterable[str]) -> frozenset[str]:
    """Names of all modules in or under those in `ignore`."""
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    chosen = {ignore} if isinstance(ignore, str) else set(ignore)
    for name in sorted(chosen - set(names)):
        raise SennError(f"The model has no module named {name!r} to ignore.")
    return frozenset(name for name in names if any(name == top or name.startswith(f"{top}.") for top in chosen))


def _read(model: nn.Module, inputs: Inputs, ignored: frozenset[str]) -> Structure:
    """The structure as one forward pass shows it."""
    trace, numbers = run(model, inputs)
    problems = _problems(model, trace)
    fixed = {**dict.fromkeys(_weights_in(model, ignored), "is ignored as asked"), **problems}
    used = {use.weight for use in trace.uses}
    refused = [Refusal(_short(name), f"it {why}") for name, why in fixed.items() if name in used or name in problems]
    spaces, not_spaces = Builder(trace, numbers, fixed, _tied(model)).build()
    maps = _maps(model, trace, problems)
    sites, without_site = _sites(model, trace, maps, fixed)
    refused += [*not_spaces, *without_site, *_not_followed(model, trace)]
    first: dict[str, Refusal] = {}
    for refusal in refused:
        first.setdefault(refusal.place, refusal)
    return Structure(tuple(maps), tuple(spaces), tuple(sites), tuple(first.values()))


def _short(weight: str) -> str:
    """A map's name: the module's where the tensor is its weight."""
    module, _, key = weight.rpartition(".")
    return module if key == "weight" and module else weight


def _weights_in(model: nn.Module, modules: frozenset[str]) -> list[str]:
    return [f"{name}.{key}" for name in modules for key, _ in model.get_submodule(name).named_parameters(recurse=False)]


def _problems(model: nn.Module, trace: Trace) -> dict[str, str]:
    """Weights whose shape must not change, by full name, and why."""
    used = {name for name, _ in trace.rows} | {use.weight for use in trace.uses}
    problems = {}
    for name in used:
        parameter = tensor_of(model, name)
        if name in trace.labelled_in:
            problems[name] = f"has a weight that is also used by {trace.labelled_in[name]}"
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


def _maps(model: nn.Module, trace: Trace, problems: dict[str, str]) -> list[LinearMap]:
    """The linear maps in order of first use."""
    uses: dict[str, list[Use]] = {}
    for use in trace.uses:
        uses.setdefault(use.weight, []).append(use)
    found = []
    for weight, several in uses.items():
        first = several[0]
        module, _, _ = weight.rpartition(".")
        bias = model.get_submodule(module)._parameters.get("bias") if weight.endswith("weight") else None
        alike = all((use.in_dim, use.scored) == (first.in_dim, True) for use in several)
        makes_what_it_reads = (weight, first.in_dim) in trace.rows
        plain = not makes_what_it_reads and weight not in problems and weight not in trace.labelled_in
        scored = alike and plain
        found.append(
            LinearMap(
                _short(weight), weight, None if bias is None else f"{module}.bias".lstrip("."), first.out_dim,
                first.in_dim, 1 if first.transposed else first.taps, scored, len(several), first.groups,
                first.transposed,
            )
        )  # fmt: skip
    return found


def _sites(
    model: nn.Module, trace: Trace, maps: list[LinearMap], fixed: Collection[str]
) -> tuple[list[Site], list[Refusal]]:
    """Where a layer can be inserted, with the activation that the model uses nearest to it."""
    usual = Counter(trace.activations.values()).most_common(1)[0][0] if trace.activations else "ReLU"
    aliases = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    last = {use.weight: use for use in trace.uses}
    sites, refused = [], []
    for one in maps:
        use = last[one.weight]
        path = one.weight.rpartition(".")[0]
        module = model.get_submodule(path)
        if one.uses > 1 or use.inside != path or one.weight in fixed or not use.scored or one.groups > 1:
            continue
        if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            continue
        if module is model:
            refused.append(Refusal(path, "no layer can be inserted before it: it is the whole model"))
        elif aliases[id(module)] > 1:
            refused.append(Refusal(one.name, "no layer can be inserted before it: the model holds it under two names"))
        elif _read_by_fast_path(model.get_submodule(path.rpartition(".")[0])):
            why = "in eval mode its TransformerEncoderLayer reads its weight directly (the fast path)"
            refused.append(Refusal(one.name, f"no layer can be inserted before it: {why}"))
        else:
            spatial = _CONVOLUTIONS.index(type(module)) + 1 if type(module) in _CONVOLUTIONS else 0
            sites.append(Site(one.name, module.weight.shape[1], use.activation or usual, spatial))
    return sites, refused


def _read_by_fast_path(parent: nn.Module) -> bool:
    """Whether a module is a transformer layer that in eval mode hands the weights inside it to one fused kernel."""
    fused = isinstance(parent, nn.TransformerEncoderLayer) and parent.self_attn.batch_first
    return fused and bool(parent.activation_relu_or_gelu)


def _not_followed(model: nn.Module, trace: Trace) -> list[Refusal]:
    """Modules with parameters that no rule understands, and parameters that the forward pass never reaches."""
    refused = [Refusal(place, reason) for place, reason in trace.not_understood.items()]
    for name, module in model.named_modules():
        own = {f"{name}.{key}" if name else key: p for key, p in module.named_parameters(recurse=False)}
        unused = [key for key, parameter in own.items() if id(parameter) not in trace.reached]
        if name and unused and len(unused) == len(own):
            refused.append(Refusal(name, "it is never used in the forward pass"))
        else:
            refused += [Refusal(key, "it is never used in the forward pass") for key in unused]
    return refused
