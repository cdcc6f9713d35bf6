"""From one labelled forward pass to the structure of a model: what can change size, and what cannot and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.utils import _pytree as pytree

from senn.errors import SennError, UnsupportedError
from senn.structure.build import Builder
from senn.structure.spaces import LinearMap, Refusal, Site, Structure
from senn.structure.trace import Inputs, Trace, run
from senn.structure.trial import tried

_OUTPUT = "its units are the model's outputs"


def analyse(
    model: nn.Module, inputs: Tensor | tuple[Any, ...], ignore: Iterable[str] = (), proven: Structure | None = None
) -> Structure:
    """Find what in a model can change size.

    Runs the model's own forward once in eval mode, without gradients, and follows which unit each entry of each
    tensor belongs to (`senn.structure.rules`). Then a copy of the model, widened by one unit in every space, is run
    in the same way: a space whose size the forward pass takes for granted is refused too. The model itself is left as
    it was: parameters, buffers, gradients, hooks, training flags, random number generators.

    Args:
        model: any module. Linear maps (`nn.Linear`), pointwise operations, BatchNorm, and everything that only moves
            entries are understood; what isn't is refused by name, and the rest of the model still counts.
        inputs: the positional arguments of `forward`, a tensor or a tuple: a small batch.
        ignore: names of modules whose linear maps must keep their shapes, those inside them included.
        proven: the structure of the same modules at other widths: its spaces need no second trial, and what it refuses
            stays refused.

    Returns:
        The structure. It may hold no space and no site at all.

    Raises:
        SennError: the inputs don't fit the model, or a name in `ignore` is no module of it.
        UnsupportedError: the model or its output is of a kind that can't be followed.
    """
    arguments = _checked(model, inputs)
    ignored = _ignored(model, ignore)
    structure = _read(model, arguments, ignored)
    if proven is not None:
        names = {space.name for space in proven.spaces}
        spaces = tuple(space for space in structure.spaces if space.name in names)
        return replace(structure, spaces=spaces, refused=proven.refused)
    return tried(model, arguments, structure, lambda copy, example: _read(copy, example, ignored))


def _checked(model: nn.Module, inputs: Any) -> Inputs:
    if not isinstance(model, nn.Module):
        raise SennError(f"analyse needs an nn.Module, not a {type(model).__name__}.")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise SennError(f"The parameter {name} has no shape yet: run the model once before it is analysed.")
    if not isinstance(inputs, Tensor | tuple):
        raise SennError(f"The example inputs must be a tensor or a tuple of arguments, not a {type(inputs).__name__}.")
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    tensors = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor)]
    if not tensors or any(tensor.numel() == 0 for tensor in tensors):
        raise SennError("The example inputs hold no sample.")
    return arguments


def _ignored(model: nn.Module, ignore: Iterable[str]) -> frozenset[str]:
    """Names of all modules in or under those in `ignore`."""
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    chosen = {ignore} if isinstance(ignore, str) else set(ignore)
    for name in sorted(chosen - set(names)):
        raise SennError(f"The model has no module named {name!r} to ignore.")
    return frozenset(name for name in names if any(name == top or name.startswith(f"{top}.") for top in chosen))


def _read(model: nn.Module, inputs: Inputs, ignored: frozenset[str]) -> Structure:
    """The structure as one forward pass shows it."""
    trace = run(model, inputs)
    for tensor in _outputs(trace):
        if trace.is_labelled(tensor):
            trace.record.refuse(trace.labels(tensor), _OUTPUT)
    tied = _tied(model)
    problems = _problems(model, trace, tied)
    fixed = problems | {name: "is ignored as asked" for name in ignored if name not in problems}
    refused = [Refusal(name, f"it {problem}") for name, problem in fixed.items() if _is_linear(model, name)]
    spaces, not_spaces = Builder(model, trace, fixed, tied).build()
    linears = tuple(dict.fromkeys(use.linear for use in trace.uses if use.linear not in problems))
    sites, without_site = _sites(model, trace, [name for name in linears if name not in ignored])
    refused += [*not_spaces, *without_site, *_not_followed(model, trace)]
    first: dict[str, Refusal] = {}
    for refusal in refused:
        first.setdefault(refusal.place, refusal)
    return Structure(tuple(_map(model, name) for name in linears), tuple(spaces), tuple(sites), tuple(first.values()))


def _map(model: nn.Module, name: str) -> LinearMap:
    biased = model.get_submodule(name)._parameters.get("bias") is not None
    prefix = f"{name}." if name else ""
    return LinearMap(name, f"{prefix}weight", f"{prefix}bias" if biased else None)


def _is_linear(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name), nn.Linear)


def _outputs(trace: Trace) -> list[Tensor]:
    """The tensors that the model returned."""
    leaves = pytree.tree_leaves(trace.output)
    for leaf in leaves:
        if not isinstance(leaf, Tensor | int | float | bool | str | None):
            raise UnsupportedError(
                f"The model returns a {type(leaf).__name__}; only tensors, and tuples, lists and dicts of them, "
                "are understood."
            )
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _problems(model: nn.Module, trace: Trace, tied: dict[str, str]) -> dict[str, str]:
    """Linear maps whose shape must not change and that have no factors, and why."""
    calls = Counter(use.linear for use in trace.uses)
    outside = {use.linear for use in trace.uses if not use.inside}
    problems = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        weight = module._parameters.get("weight")
        full_name = f"{name}.weight" if name else "weight"
        if weight is None:
            problems[name] = "has a weight that is computed from other tensors (a parametrization)"
        elif full_name in tied:
            problems[name] = f"shares its weight with {tied[full_name]}"
        elif calls[name] > 1:
            problems[name] = f"is called {calls[name]} times in one forward pass"
        elif name in trace.misuses:
            problems[name] = f"has a weight that is also used by {trace.misuses[name]}"
        elif name in outside:
            problems[name] = "has a weight that is used outside its own forward"
        elif type(module).forward is not nn.Linear.forward:
            problems[name] = f"has a forward of its own ({type(module).__name__})"
        elif not weight.requires_grad:
            problems[name] = "has a frozen weight"
    return problems


def _tied(model: nn.Module) -> dict[str, str]:
    """Parameters and buffers whose memory another one shares: full name to the other's full name."""
    holders: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                holders.setdefault(tensor.data_ptr() or id(tensor), []).append(f"{name}.{key}" if name else key)
    shared = [names for names in holders.values() if len(names) > 1]
    return {name: next(other for other in names if other != name) for names in shared for name in names}


def _sites(model: nn.Module, trace: Trace, names: list[str]) -> tuple[list[Site], list[Refusal]]:
    """Where a layer can be inserted, with the activation that the model uses nearest to it."""
    usual = Counter(trace.activations.values()).most_common(1)[0][0] if trace.activations else "ReLU"
    aliases = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    nearest = {use.linear: use.activation or usual for use in trace.uses}
    sites, refused = [], []
    for name in names:
        module = model.get_submodule(name)
        if module is model:
            refused.append(Refusal(name, "no layer can be inserted before it: it is the whole model"))
        elif aliases[id(module)] > 1:
            refused.append(Refusal(name, "no layer can be inserted before it: the model holds it under two names"))
        else:
            sites.append(Site(name, module.get_parameter("weight").shape[1], nearest[name]))
    return sites, refused


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
