"""Model states and other nested values for checkpoints that are written in the middle of training."""

from __future__ import annotations

import io
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
from torch import Tensor, nn

from senn._records import reading_state
from senn.checkpoint.describe import describe
from senn.checkpoint.model_files import VERSION, reading_tensors
from senn.checkpoint.resize import resize_model
from senn.checkpoint.schema import parse
from senn.checkpoint.tensor_files import TensorFile
from senn.errors import SennError

State = dict[str, Any]


def model_state(model: nn.Module) -> State:
    """Return a model of any size as plain values and copies of its tensors.

    Returns:
        The format version, the description, and the tensors by full name, for `load_model_state`.

    Raises:
        SennError: a parameter isn't finite.
        UnsupportedError: the model keeps state that isn't plain tensors.
    """
    description, tensors = describe(model)
    return {"version": VERSION, "description": description, "tensors": tensors}


def load_model_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Resize a fresh model to match a saved one, and load its numbers.

    Widths, inserted layers and repeated blocks become those of the saved model.

    Args:
        model: freshly built, of the same classes.
        state: from `model_state`.

    Raises:
        SennError: the state isn't one of a model like it, which is unchanged then.
        UnsupportedError: the saved model had a module that only its owner can build; the model is unchanged.
    """
    with reading_state("this isn't the state of a model"):
        version, described, tensors = state["version"], state["description"], state["tensors"]
        if version != VERSION:
            raise SennError(
                f"this is a model's state of version {version}; this senn reads {VERSION}"
            )
        description = parse({**described, "version": version, "weights_sha256": "", "extra": {}})
        description.check({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    # Copies: the model's parameters must not share memory with a state that may be loaded once more.
    resize_model(description, {name: tensor.clone() for name, tensor in tensors.items()}, model)


def packed(state: Any) -> tuple[Any, bytes]:
    """Pack nested plain values and tensors into JSON and a safetensors file, without loss.

    Tuples, infinities and keys that aren't strings survive. So does the order of a tensor's dimensions in memory
    (channels last), on which the last bit of a product may depend.

    Args:
        state: None, numbers, strings, tensors, and lists, tuples and mappings of them.

    Returns:
        The JSON, and the content of the file.

    Raises:
        TypeError: it holds something else.
    """
    tensors: dict[str, Tensor] = {}
    document = _packed(state, tensors)
    return document, safetensors.torch.save(tensors)


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    # JSON has no infinities, which a best loss so far begins with.
    if isinstance(value, float):
        return value if isfinite(value) else {"float": str(value)}
    if isinstance(value, Tensor):
        return _packed_tensor(value, tensors)
    if isinstance(value, list):
        return [_packed(item, tensors) for item in value]
    # Optimizers and generators compare with tuples, which would come back as lists.
    if isinstance(value, tuple):
        return {"tuple": [_packed(item, tensors) for item in value]}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {"items": {key: _packed(item, tensors) for key, item in value.items()}}
        # The state of an optimizer has whole numbers for keys, which JSON would turn into strings.
        pairs = [[_packed(key, tensors), _packed(item, tensors)] for key, item in value.items()]
        return {"pairs": pairs}
    raise TypeError(f"a {type(value).__name__} is neither a plain value nor a tensor")


def _packed_tensor(value: Tensor, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Add a tensor to those of the file.

    safetensors stores contiguous tensors, so the dimensions are sorted by their strides and the order is noted.
    """
    strides = value.stride()
    order = sorted(range(value.dim()), key=lambda dim: (-strides[dim], dim))
    name = str(len(tensors))
    tensors[name] = value.detach().permute(order).cpu().contiguous().clone()
    return {"tensor": name} if order == sorted(order) else {"tensor": name, "order": order}


def unpacked(document: Any, file: BinaryIO | bytes, path: Path) -> Any:
    """Unpack the nested values that `packed` packed.

    Args:
        document: the JSON.
        file: the open file, or its content.
        path: its name, for errors.

    Returns:
        The nested values; tensors are on the CPU.

    Raises:
        SennError: `packed` made no such JSON or file.
    """
    with reading_tensors(path):
        tensors = dict(TensorFile(io.BytesIO(file) if isinstance(file, bytes) else file).tensors())
    with reading_state(f"{str(path)!r} is damaged"):
        return _unpacked(document, tensors)


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        # A copy: a forged document may name one tensor twice.
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
