"""Checks of a model and its example inputs: one clear sentence for what can't be analyzed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from senn import pytree
from senn.errors import SennError, UnsupportedError
from senn.pytree import Inputs

# Modules that hold another one and remember its parameters, and what to do instead.
_WRAPPERS = {
    "DataParallel": "give the module inside (`.module`)",
    "DistributedDataParallel": "give the module inside (`.module`) and wrap it anew after growth",
    "FullyShardedDataParallel": "give the module before it is wrapped",
}


def check_module(model: object) -> None:
    """Refuse what can't be changed in place.

    Raises:
        SennError: it is no module.
        UnsupportedError: it is compiled by TorchScript.
    """
    if not isinstance(model, nn.Module):
        raise SennError(f"the model must be a torch.nn.Module, not a {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedError(
            "the model is compiled by TorchScript and can't change its size: give its original"
        )


def check_model(model: object) -> None:
    """Refuse what isn't a module whose parts can be exchanged.

    Raises:
        SennError: it is no module, or one whose parameters have no shapes yet.
        UnsupportedError: it is wrapped, compiled, quantized, or has parameters of a kind that can't be resized.
    """
    if not isinstance(model, nn.Module):
        raise SennError(f"analyze needs an nn.Module, not a {type(model).__name__}")
    reason = opaque_reason(model)
    if reason is not None:
        raise UnsupportedError(f"the model {reason}")
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind in _WRAPPERS:
            place = f"the module {name}" if name else "the model"
            raise UnsupportedError(f"{place} is a {kind}: {_WRAPPERS[kind]}")
        for child, _ in module.named_children():
            # The attribute of the class is found first, and `get_submodule` fails.
            if hasattr(type(module), child):
                path = f"{name}.{child}" if name else child
                raise UnsupportedError(
                    f"the submodule {path} has a name that {kind} has as an attribute of its class, "
                    "so that it can't be found by name: rename it"
                )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if isinstance(tensor, UninitializedParameter):
            raise SennError(
                f"the parameter {name} has no shape yet: run the model once before it is analyzed"
            )
        if tensor.is_meta:
            raise SennError(
                f"{name} is on the meta device and has no values: give the model its weights before"
            )
        if is_traceable_wrapper_subclass(tensor):  # DTensor, float8 and the like
            kind = type(tensor).__name__
            raise UnsupportedError(
                f"{name} is a {kind}: grow the model before its tensors are sharded or wrapped"
            )


def opaque_reason(module: nn.Module) -> str | None:
    """Say why a module can't be looked into; None if it can.

    Args:
        module: any module. Its own tensors count, not those of modules inside it.

    Returns:
        The rest of a sentence that begins with the module.
    """
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "is compiled by TorchScript and can't change its size: give its original"
    # Modules of torch's quantization keep integer weights and scales beside each other.
    if "quantized" in kind.__module__ or kind.__module__.startswith("torch.ao."):
        return f"is quantized or prepared for it ({kind.__name__}): grow the model before that"
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    for name, tensor in own:
        if isinstance(tensor, UninitializedParameter):
            continue
        if tensor.is_quantized or tensor.layout is not torch.strided:
            sort = "quantized" if tensor.is_quantized else "sparse"
            return f"holds {name}, which is {sort} and can't be resized"
        if is_traceable_wrapper_subclass(tensor):  # DTensor, float8 and the like
            sort = type(tensor).__name__
            return (
                f"holds {name}, a {sort}: grow the model before its tensors are sharded or wrapped"
            )
    return None


def check_inputs(model: nn.Module, inputs: Inputs) -> None:
    """Refuse example inputs without tensors or samples, or on another device than the model.

    Args:
        model: the model.
        inputs: arguments of its `forward`.

    Raises:
        SennError: one of these.
    """
    tensors = pytree.tensor_leaves(inputs)
    if not tensors:
        raise SennError(f"the example inputs, a {type(inputs).__name__}, hold no tensor")
    if all(tensor.numel() == 0 for tensor in tensors):
        raise SennError("the example inputs hold no sample")
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1:  # a model spread over devices knows itself where its inputs belong
        return
    (device,) = devices
    for tensor in tensors:
        # A scalar may stay on the CPU: torch moves it by itself.
        if tensor.dim() and tensor.device != device:
            raise SennError(f"the example inputs are on {tensor.device}, the model is on {device}")


def ignored_modules(model: nn.Module, ignore: Iterable[str]) -> frozenset[str]:
    """Resolve the names of modules to leave alone.

    Args:
        model: the model.
        ignore: names of modules, as in `model.named_modules`; a string is one name.

    Returns:
        Names of these modules and of all inside them.

    Raises:
        SennError: the model has no module of such a name.
    """
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    chosen = {ignore} if isinstance(ignore, str) else set(ignore)
    for name in sorted(chosen.difference(names)):
        raise SennError(f"the model has no module named {name!r} to ignore")
    inside = tuple(f"{name}." for name in chosen)
    return frozenset(name for name in names if name in chosen or name.startswith(inside))
