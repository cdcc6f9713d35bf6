"""What is written about a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from senn.checkpoint.constructors import class_name, json_arguments
from senn.checkpoint.model_files import has_infinity, has_nan
from senn.checkpoint.schema import Number, is_plain, is_public, join, own_tensors
from senn.errors import SennError, UnsupportedError


def describe(model: nn.Module, *, numbers: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A model as JSON-able parts of a description, and its numbers: separate tensors on the CPU.

    Args:
        model: any module.
        numbers: False for those of the buffers alone that aren't in the state; the others aren't looked at.

    Raises:
        SennError: a tensor holds NaN, or a parameter infinity.
        UnsupportedError: the model keeps state that isn't plain tensors.
    """
    lengths = {len(module) for module in model.modules() if isinstance(module, nn.Sequential | nn.ModuleList)}
    writer = _ModelDescriber(lengths=lengths, numbers=numbers)
    return {
        "model": writer.module(model, ""),
        "tied": writer.tied,
        "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
        "transient": writer.transient,
    }, writer.tensors


@dataclass(eq=False, kw_only=True)
class _ModelDescriber:
    """Goes through a model.

    Attributes:
        lengths: of all lists of layers in the model.
        numbers: whether those of tensors in the state are taken too.
        tensors: numbers by full name, each tensor once.
        tied: further names of these, and the first.
        transient: buffers that aren't in the state.
        seen: full names by id of modules, and of objects with numbers.
        first: full names by id of tensors.
    """

    lengths: set[int]
    numbers: bool
    tensors: dict[str, Tensor] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    transient: list[str] = field(default_factory=list)
    seen: dict[int, str] = field(default_factory=dict)
    first: dict[int, str] = field(default_factory=dict)

    def module(self, module: nn.Module, path: str) -> dict[str, Any]:
        """The JSON of a module and what is inside it."""
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise UnsupportedError(f"{join(path, '_extra_state')!r} is no plain tensor and can't be saved")
        self.seen[id(module)] = path
        own = {name: tensor for name, tensor in own_tensors(module).items() if self._noted(module, path, name, tensor)}
        attributes, settings = plain_attributes(module)
        node: dict[str, Any] = {
            "class": class_name(module),
            "tensors": {name: list(tensor.shape) for name, tensor in own.items()},
            "attributes": attributes,
            "settings": settings,
            "counts": self._counts(module),
            "children": {},
        }
        arguments = json_arguments(module)
        if arguments is not None:
            node["arguments"] = arguments
        for name, child in module._modules.items():
            if child is not None:
                same = self.seen.get(id(child))
                node["children"][name] = self.module(child, join(path, name)) if same is None else {"same": same}
        return node

    def _noted(self, module: nn.Module, path: str, key: str, tensor: Tensor) -> bool:
        """Note a tensor of a module's own; a buffer outside the state without plain numbers is its owner's to make."""
        name, is_transient = join(path, key), key in module._non_persistent_buffers_set
        if id(tensor) in self.first:
            self.tied[name] = self.first[id(tensor)]
        else:
            if is_transient and (not is_plain(tensor) or tensor.is_meta or has_nan(tensor)):
                return False
            self.first[id(tensor)] = name
            if self.numbers or is_transient:
                _check(name, tensor)
                self.tensors[name] = tensor.detach().cpu().clone()
        if is_transient:
            self.transient.append(name)
        return True

    def _counts(self, module: nn.Module) -> dict[str, int]:
        """Numbers in a module's configuration that may count layers; each configuration is read once."""
        found: dict[str, int] = {}
        for holder, value in vars(module).items():
            inner = getattr(value, "__dict__", None)
            foreign = isinstance(value, Tensor | nn.Module | ModuleType | type) or not is_public(holder)
            if foreign or not isinstance(inner, dict) or id(value) in self.seen:
                continue
            self.seen[id(value)] = holder
            for name, number in inner.items():
                if is_public(name) and type(number) is int and number in self.lengths:
                    found[f"{holder}.{name}"] = number
        return found


def _check(name: str, tensor: Tensor) -> None:
    if not is_plain(tensor):
        raise UnsupportedError(f"{name!r} is no plain tensor but a {type(tensor).__name__} and can't be saved")
    if tensor.is_meta:
        raise UnsupportedError(f"{name!r} is on the meta device: it has no numbers to save")
    # A buffer may well hold infinities (a mask), a parameter can't have any use for them.
    if has_nan(tensor) or (isinstance(tensor, nn.Parameter) and has_infinity(tensor)):
        raise SennError(f"{name!r} holds NaN or infinity; the model is not saved")


def plain_attributes(module: nn.Module) -> tuple[dict[str, Number], dict[str, bool | float]]:
    """A module's numbers: those that growth may rewrite, and the others."""
    attributes: dict[str, Number] = {}
    settings: dict[str, bool | float] = {}
    for name, value in vars(module).items():
        if not is_public(name) or name == "training":
            continue
        if isinstance(value, tuple | list):
            if value and all(type(item) is int for item in value):
                attributes[name] = list(value)
        elif isinstance(value, bool) or (isinstance(value, float) and "eps" not in name):
            if isfinite(value):
                settings[name] = value
        elif isinstance(value, int) or (isinstance(value, float) and isfinite(value)):  # growth rewrites eps too
            attributes[name] = value
    return attributes, settings
