"""Comparing a model that generated source builds with the one that it was generated from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from senn.checkpoint.schema import join
from senn.export.class_source import KNOWN, helper_name, parts
from senn.export.signatures import is_layer, source_arguments

PARAMETER_LISTS = (nn.ParameterList, nn.ParameterDict)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, *PARAMETER_LISTS)


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a model's state by name; extra state is left out."""
    return {
        name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)
    }


def differing_modules(twin: nn.Module, model: nn.Module, path: str = "") -> list[str]:
    """List the paths of modules that differ from the model's; of nested ones the outermost.

    Args:
        twin: what the source builds.
        model: the model, or a part of it.
        path: of the part; empty for the model.

    Returns:
        Paths in the model.
    """
    if path and not _is_alike(twin, model):
        return [path]
    made, wanted = parts(twin), parts(model)
    # The order of the names counts too: a Sequential calls its children in it.
    if _own_shapes(twin) != _own_shapes(model) or list(made) != list(wanted):
        return [path or type(model).__name__]
    paths: list[str] = []
    for name, child in wanted.items():
        paths += differing_modules(made[name], child, join(path, name))
    return paths


def _own_shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in module._parameters.items() if tensor is not None}


def _is_alike(twin: nn.Module, model: nn.Module) -> bool:
    """Return True if both are of one class and were constructed alike, whatever is inside them."""
    # The source has a class of its own for each of senn's networks: only its name can be compared.
    if type(model) in KNOWN:
        return type(twin).__name__ == helper_name(model)
    if type(twin) is not type(model):
        return False
    # What a container holds is compared child by child.
    if not is_layer(model) or type(model) in CONTAINERS:
        return True
    return _own_arguments(twin) == _own_arguments(model)


def _own_arguments(layer: nn.Module) -> dict[str, Any]:
    """Read back a layer's arguments without those that are layers, which are compared for themselves."""
    arguments = source_arguments(layer).items()
    return {key: value for key, value in arguments if not isinstance(value, nn.Module)}


def differing_tensors(twin: nn.Module, model: nn.Module) -> list[str]:
    """List the names of tensors that only one of the states has, or of which shape or dtype differ.

    Args:
        twin: what the source builds.
        model: the model.

    Returns:
        Full names.
    """
    made, wanted = _shapes_and_dtypes(twin), _shapes_and_dtypes(model)
    return [name for name in {**wanted, **made} if made.get(name) != wanted.get(name)]


def _shapes_and_dtypes(model: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in state_tensors(model).items()}
