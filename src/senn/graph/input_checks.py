"""What can be analysed at all: one clear sentence for what can't."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from senn import pytree
from senn.errors import SennError, UnsupportedError
from senn.pytree import Inputs

_WRAPPERS = {
    "DataParallel": "give the module inside (`.module`)",
    "DistributedDataParallel": "give the module inside (`.module`) and wrap it anew after growth",
    "FullyShardedDataParallel": "give the module before it is wrapped",
    "OptimizedModule": "give the module inside (`._orig_mod`): it compiles anew by itself after growth",
}
"""Modules that hold another one and remember its parameters, and what to do."""


def check_module(model: object) -> None:
    """Refuse what can't be changed in place.

    Raises:
        SennError: it is no module.
        UnsupportedError: it is compiled by TorchScript.
    """
    if not isinstance(model, nn.Module):
        raise SennError(f"the model must be a torch.nn.Module, not a {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedError("the model is compiled by TorchScript and can't change its size: give its original")


def check_model(model: object) -> None:
    """Refuse what isn't a module whose parts can be exchanged.

    Raises:
        SennError: it is none, or one without shapes yet.
        UnsupportedError: it is wrapped, compiled, quantised, or has parameters of a kind that can't be resized.
    """
    if not isinstance(model, nn.Module):
        raise SennError(f"analyse needs an nn.Module, not a {type(model).__name__}.")
    for name, module in model.named_modules():
        place = f"The module {name}" if name else "The model"
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedError(f"{place} is compiled by TorchScript and can't change its size: give its original.")
        if (advice := _WRAPPERS.get(type(module).__name__)) is not None:
            raise UnsupportedError(f"{place} is a {type(module).__name__}: {advice}.")
        if "quantized" in type(module).__module__ or type(module).__module__.startswith("torch.ao."):
            raise UnsupportedError(
                f"{place} is quantised or prepared for it ({type(module).__name__}): grow the model before that."
            )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        _check_tensor(name, tensor)


def _check_tensor(name: str, tensor: Tensor) -> None:
    if isinstance(tensor, UninitializedParameter):
        raise SennError(f"The parameter {name} has no shape yet: run the model once before it is analysed.")
    if tensor.is_meta:
        raise SennError(f"{name} is on the meta device and has no values: give the model its weights before.")
    if tensor.is_quantized or tensor.layout is not torch.strided:
        kind = "quantised" if tensor.is_quantized else "sparse"
        raise UnsupportedError(f"{name} is {kind}, which can't be resized.")
    if is_traceable_wrapper_subclass(tensor):
        kind = type(tensor).__name__
        raise UnsupportedError(f"{name} is a {kind}: grow the model before its tensors are sharded or wrapped.")


def check_inputs(model: nn.Module, inputs: Inputs) -> None:
    """Refuse example inputs that hold no tensor or no sample, or that lie elsewhere than the model.

    Raises:
        SennError: one of these.
    """
    tensors = pytree.tensor_leaves(inputs)
    if not tensors:
        raise SennError(f"The example inputs, a {type(inputs).__name__}, hold no tensor.")
    if any(tensor.numel() == 0 for tensor in tensors):
        raise SennError("The example inputs hold no sample.")
    places = {parameter.device for parameter in model.parameters()}
    for tensor in tensors:
        if len(places) == 1 and tensor.device not in places and tensor.dim():
            (place,) = places
            raise SennError(f"The example inputs are on {tensor.device}, the model is on {place}.")


def ignored_modules(model: nn.Module, ignore: Iterable[str]) -> frozenset[str]:
    """Return the names of all modules in or under those in `ignore`.

    Raises:
        SennError: the model has no module of such a name.
    """
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    chosen = {ignore} if isinstance(ignore, str) else set(ignore)
    for name in sorted(chosen - set(names)):
        raise SennError(f"The model has no module named {name!r} to ignore.")
    return frozenset(name for name in names if any(name == top or name.startswith(f"{top}.") for top in chosen))
