"""`save` and `load`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from senn.checkpoint.describe import describe
from senn.checkpoint.model_files import read_description, read_weights, write
from senn.checkpoint.resize import resize_model
from senn.checkpoint.schema import parse
from senn.errors import SennError


def save(folder: str | Path, model: nn.Module, extra: dict[str, Any] | None = None) -> None:
    """Write a model to a folder (made if need be), replacing the one that is there.

    Both files are complete before either takes its name.

    Args:
        folder: where `model.safetensors` and `model.json` go.
        model: any module; its parameters must be finite.
        extra: JSON-able, kept in `model.json`; read back with `load_extra`.

    Raises:
        SennError: if a tensor isn't finite, `extra` isn't JSON-able, or the folder can't be written.
        UnsupportedError: if the model keeps state that isn't plain tensors.
    """
    _check_module("save", model)
    try:
        described, tensors = describe(model)
    except RecursionError as error:
        raise SennError(f"a {type(model).__name__} is nested too deeply to be saved") from error
    write(Path(folder), tensors, {**described, "extra": extra or {}})


def load(folder: str | Path, into: nn.Module | None = None) -> nn.Module:
    """Read a model back.

    Args:
        folder: where it was saved.
        into: a freshly built model of the same classes, of any size, that is regrown in place and returned: widths,
            inserted layers and repeated blocks. Its device, mode and settings stay, and what is trained; it takes the
            saved type of numbers. None to rebuild the model (on the CPU, in eval mode) from layers of torch.nn and
            senn.nn alone.

    Raises:
        SennError: if the folder holds no intact model of a known version, or not one like `into`, which then is
            unchanged.
        UnsupportedError: if the model, or something that was added to it, is of a class that only its owner can build.
    """
    if into is not None:
        _check_module("load", into)
    try:
        description = parse(read_description(Path(folder)))
        tensors = read_weights(Path(folder), description.weights_sha256, description.entries)
        description.check(tensors)
        return resize_model(description, tensors, into)
    except RecursionError as error:
        raise SennError(f"the model in {str(folder)!r} is nested too deeply to be read") from error


def _check_module(caller: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise SennError(f"{caller} needs an nn.Module, not a {type(model).__name__}")


def load_extra(folder: str | Path) -> dict[str, Any]:
    """What was saved beside a model.

    Raises:
        SennError: if the folder's description isn't intact.
    """
    return parse(read_description(Path(folder))).extra
