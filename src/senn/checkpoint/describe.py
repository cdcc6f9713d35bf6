"""Describing a model for `model.json`: a tree of JSON-able nodes, and its tensors by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from senn.checkpoint.construct import json_arguments
from senn.checkpoint.constructors import class_name
from senn.checkpoint.schema import Number, is_plain, is_public, join, own_tensors
from senn.checkpoint.tensor_files import has_infinity, has_nan
from senn.errors import SennError, UnsupportedError


def describe(model: nn.Module, *, numbers: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Describe a model as JSON-able entries of `model.json`, and collect its tensors.

    Args:
        model: any module.
        numbers: True to collect (and check) all tensors; False to collect only the buffers outside the state.

    Returns:
        The entries, and separate copies of the tensors on the CPU, by full name.

    Raises:
        SennError: a tensor holds NaN, or a parameter holds infinity.
        UnsupportedError: the model keeps state that isn't plain tensors.
    """
    lists = [
        module for module in model.modules() if isinstance(module, nn.Sequential | nn.ModuleList)
    ]
    lengths = {len(module) for module in lists}
    describer = _ModelDescriber(lengths=lengths, numbers=numbers)
    root = describer.describe_module(model, "")
    return {
        "model": root,
        "tied": describer.tied,
        "frozen": [
            name for name, parameter in model.named_parameters() if not parameter.requires_grad
        ],
        "transient": describer.transient,
    }, describer.tensors


@dataclass(eq=False, kw_only=True)
class _ModelDescriber:
    """Walk over a model's modules, each once.

    Attributes:
        lengths: numbers of children of all lists of layers in the model.
        numbers: True if tensors of the state are collected too.
        tensors: collected tensors by full name, each once.
        tied: further full names of a tensor -> its first one.
        transient: full names of buffers outside the state.
        paths: id of a module, or of an object with configuration -> its first path.
        first_names: id of a tensor -> its first full name.
    """

    lengths: set[int]
    numbers: bool
    tensors: dict[str, Tensor] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    transient: list[str] = field(default_factory=list)
    paths: dict[int, str] = field(default_factory=dict)
    first_names: dict[int, str] = field(default_factory=dict)

    def describe_module(self, module: nn.Module, path: str) -> dict[str, Any]:
        """Describe a module and all inside it."""
        # Extra state can be anything, a pickle for one: safetensors can't hold it, and nothing may get lost silently.
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise UnsupportedError(
                f"{join(path, '_extra_state')!r} is no plain tensor and can't be saved"
            )
        self.paths[id(module)] = path
        shapes: dict[str, list[int]] = {}
        for name, tensor in own_tensors(module).items():
            if self._collect(module, path, name, tensor):
                shapes[name] = list(tensor.shape)
        attributes, settings = plain_attributes(module)
        node: dict[str, Any] = {
            "class": class_name(module),
            "tensors": shapes,
            "attributes": attributes,
            "settings": settings,
            "counts": self._layer_counts(module),
        }
        # The children come last: a module that stands in two places is described where it stands first.
        node["children"] = self._children(module, path)
        arguments = json_arguments(module)
        if arguments is not None:
            node["arguments"] = arguments
        return node

    def _children(self, module: nn.Module, path: str) -> dict[str, Any]:
        """Describe the children of a module; one that was described elsewhere is `{"same": its path}`."""
        children: dict[str, Any] = {}
        for name, child in module._modules.items():
            if child is None:
                continue
            same = self.paths.get(id(child))
            if same is None:
                children[name] = self.describe_module(child, join(path, name))
            else:
                children[name] = {"same": same}
        return children

    def _collect(
        self,
        module: nn.Module,
        path: str,
        key: str,
        tensor: Tensor,
    ) -> bool:
        """Collect a tensor of a module's own.

        Returns:
            False for a buffer that is left out: it is outside the state and has no plain numbers, so that its owner's
            code has to make it.
        """
        name, is_transient = join(path, key), key in module._non_persistent_buffers_set
        if id(tensor) in self.first_names:
            self.tied[name] = self.first_names[id(tensor)]
        else:
            if is_transient and (not is_plain(tensor) or tensor.is_meta or has_nan(tensor)):
                return False
            self.first_names[id(tensor)] = name
            if self.numbers or is_transient:
                _check_tensor(name, tensor)
                # A clone: views share memory with others, which safetensors refuses, and training goes on meanwhile.
                self.tensors[name] = tensor.detach().cpu().clone()
        if is_transient:
            self.transient.append(name)
        return True

    def _layer_counts(self, module: nn.Module) -> dict[str, int]:
        """Find numbers in a module's configuration that may count layers (`config.num_layers`).

        Growth in depth makes a list longer, and its owner's forward may read the number of layers from there. Which
        number counts which list isn't known: any that equals the length of some list may.
        """
        counts: dict[str, int] = {}
        for holder, value in vars(module).items():
            inner = getattr(value, "__dict__", None)
            is_foreign = isinstance(value, Tensor | nn.Module | ModuleType | type)
            if is_foreign or not is_public(holder) or not isinstance(inner, dict):
                continue
            if id(value) in self.paths:
                continue
            # All modules of a transformers model share one configuration, which is read once.
            self.paths[id(value)] = holder
            for name, number in inner.items():
                if is_public(name) and type(number) is int and number in self.lengths:
                    counts[f"{holder}.{name}"] = number
        return counts


def _check_tensor(name: str, tensor: Tensor) -> None:
    if not is_plain(tensor):
        raise UnsupportedError(
            f"{name!r} is no plain tensor but a {type(tensor).__name__} and can't be saved"
        )
    if tensor.is_meta:
        raise UnsupportedError(f"{name!r} is on the meta device: it has no numbers to save")
    # A buffer may well hold infinities (an attention mask); a parameter that does is broken.
    if has_nan(tensor) or (isinstance(tensor, nn.Parameter) and has_infinity(tensor)):
        raise SennError(f"{name!r} holds NaN or infinity; the model is not saved")


def plain_attributes(module: nn.Module) -> tuple[dict[str, Number], dict[str, bool | float]]:
    """Collect a module's public numbers.

    Returns:
        Those that growth may rewrite: whole numbers, rows of them, and every `eps`, which a norm over more units
        changes. Then the others: switches and floats, which are only compared.
    """
    attributes: dict[str, Number] = {}
    settings: dict[str, bool | float] = {}
    for name, value in vars(module).items():
        # The mode belongs to whoever loads the model.
        if not is_public(name) or name == "training":
            continue
        # `normalized_shape`, `kernel_size`, ...; rows of anything else aren't sizes
        if isinstance(value, tuple | list):
            if value and all(type(item) is int for item in value):
                attributes[name] = list(value)
        elif isinstance(value, bool) or (isinstance(value, float) and "eps" not in name):
            if isfinite(value):
                settings[name] = value
        elif isinstance(value, int) or (isinstance(value, float) and isfinite(value)):
            attributes[name] = value
    return attributes, settings
