"""What goes on changing while a model is trained, for a checkpoint: the model as it is, and any nesting as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from senn._records import reading_state
from senn.checkpoint.describe import describe
from senn.checkpoint.model_files import VERSION, tensors_of
from senn.checkpoint.resize import resize_model
from senn.checkpoint.schema import parse
from senn.errors import SennError

State = dict[str, Any]


def model_state(model: nn.Module) -> State:
    """A model of any size as plain values and copies of its tensors: for a checkpoint that others write.

    Raises:
        SennError: a parameter isn't finite.
        UnsupportedError: the model keeps state that isn't plain tensors.
    """
    description, tensors = describe(model)
    return {"version": VERSION, "description": description, "tensors": tensors}


def load_model_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Make a freshly built model what another of its classes was: widths, inserted layers, repeated blocks, numbers.

    Raises:
        SennError: the state isn't one of a model like it, which then is unchanged.
    """
    with reading_state("this isn't the state of a model"):
        version, described, tensors = state["version"], state["description"], state["tensors"]
        if version != VERSION:
            raise SennError(f"this is a model's state of version {version}; this senn reads {VERSION}")
        description = parse({**described, "version": version, "weights_sha256": "", "extra": {}})
        description.check(tensors)
    resize_model(description, {name: tensor.clone() for name, tensor in tensors.items()}, model)


def packed(state: Any) -> tuple[Any, bytes]:
    """A nesting of plain values and tensors as JSON and a safetensors file; nothing of it is lost.

    Tensors keep the order of their dimensions in memory too, on which the last bit of a product may depend.

    Raises:
        TypeError: it holds something else.
    """
    tensors: dict[str, Tensor] = {}
    document = _packed(state, tensors)
    return document, safetensors.torch.save(tensors)


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if isfinite(value) else {"float": str(value)}
    if isinstance(value, Tensor):
        strides = value.stride()
        order = sorted(range(value.dim()), key=lambda dim: (-strides[dim], dim))
        name = str(len(tensors))
        tensors[name] = value.detach().permute(order).cpu().contiguous().clone()
        return {"tensor": name} if order == sorted(order) else {"tensor": name, "order": order}
    if isinstance(value, list):
        return [_packed(item, tensors) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_packed(item, tensors) for item in value]}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {"items": {key: _packed(item, tensors) for key, item in value.items()}}
        return {"pairs": [[_packed(key, tensors), _packed(item, tensors)] for key, item in value.items()]}
    raise TypeError(f"a {type(value).__name__} is neither a plain value nor a tensor")


def unpacked(document: Any, data: bytes, path: Path) -> Any:
    """What `packed` was given.

    Args:
        document: its JSON.
        data: its file.
        path: for what is said of damage.

    Raises:
        SennError: it isn't what `packed` gave.
    """
    tensors = tensors_of(data, path)
    with reading_state(f"{str(path)!r} is damaged"):
        return _unpacked(document, tensors)


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:  # a copy, since those of a file needn't lie in memory where tensors do
        tensor = tensors[value["tensor"]].clone()
        order = value.get("order", [*range(tensor.dim())])
        return tensor.permute([order.index(dim) for dim in range(tensor.dim())])
    if "float" in value:
        return float(value["float"])
    if "tuple" in value:
        return tuple(_unpacked(item, tensors) for item in value["tuple"])
    if "pairs" in value:
        return {_unpacked(key, tensors): _unpacked(item, tensors) for key, item in value["pairs"]}
    return {key: _unpacked(item, tensors) for key, item in value["items"].items()}
