"""The two files: written whole or not at all, believed only if they are what was written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import safetensors.torch
from torch import Tensor

from senn.errors import SennError

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
FORMAT, VERSION = "senn-model", 2
READABLE = (1, 2)
"""Versions that are read. 1 knew fewer layers, neither shared modules nor buffers that aren't in the state."""

_KEYS = {"format", "version", "weights_sha256", "model", "tied", "frozen", "extra", "checksum"}


def write(folder: Path, tensors: dict[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write both files.

    Args:
        folder: made if need be.
        tensors: contiguous, on the CPU, none sharing memory with another.
        description: all of the JSON that isn't said by the files themselves.

    Raises:
        SennError: if `extra` isn't JSON-able, or the folder can't be written.
    """
    data = safetensors.torch.save(tensors, {"format": "pt"})  # as other libraries ask for
    head = {"format": FORMAT, "version": VERSION, "weights_sha256": hashlib.sha256(data).hexdigest()}
    try:
        # As it will be read: keys become strings, tuples lists.
        document = json.loads(json.dumps({**head, **description}, allow_nan=False))
        document["checksum"] = _checksum(document)
        text = json.dumps(document, indent=1, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise SennError(f"extra can't be written as JSON: {error}") from error
    _replace(folder, {WEIGHTS: data, DESCRIPTION: text})


def _replace(folder: Path, files: dict[str, bytes]) -> None:
    """Write all files under temporary names, then give them their own."""
    temporary = {folder / f".{name}.{os.getpid()}.tmp": folder / name for name in files}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, data in zip(temporary, files.values(), strict=True):
            path.write_bytes(data)
        for path, final in temporary.items():
            path.replace(final)
    except OSError as error:
        raise SennError(f"the model can't be written to {str(folder)!r}: {error.strerror or error}") from error
    finally:
        for path in temporary:
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _checksum(document: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in document.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, allow_nan=False).encode()).hexdigest()


def read_description(folder: Path) -> dict[str, Any]:
    """The JSON: of a known version, with the right checksum and the right keys. What they hold isn't checked yet."""
    path, data = folder / DESCRIPTION, _read(folder, DESCRIPTION)
    try:
        document = json.loads(data, parse_constant=_no_number)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise SennError(f"{str(path)!r} doesn't describe a model that senn saved")
        version = document.get("version")
        if type(version) is not int or version not in READABLE:
            readable = " and ".join(map(str, READABLE))
            raise SennError(f"{str(path)!r} has format version {version!r}; this senn reads {readable}")
        keys = _KEYS | {"transient"} if version > 1 else _KEYS
        if set(document) != keys or document["checksum"] != _checksum(document):
            raise SennError(f"{str(path)!r} is damaged: its content doesn't match its checksum")
    except SennError:
        raise
    except (ValueError, RecursionError) as error:
        raise SennError(f"{str(path)!r} is damaged: it isn't JSON") from error
    return document


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def read_weights(folder: Path, sha256: object) -> dict[str, Tensor]:
    """The numbers, if they are those that the description was written for."""
    path, data = folder / WEIGHTS, _read(folder, WEIGHTS)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise SennError(f"{str(path)!r} is damaged: it isn't the file that was saved with {DESCRIPTION}")
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:  # whatever its parser makes of foreign bytes
        raise SennError(f"{str(path)!r} is damaged: {' '.join(str(error).split())}") from error
    for name, tensor in tensors.items():
        if has_nan(tensor):
            raise SennError(f"{name!r} in {str(path)!r} holds NaN")
    return tensors


def _read(folder: Path, name: str) -> bytes:
    path = folder / name
    try:
        if path.exists() and not path.is_file():
            raise OSError(None, "not a file")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SennError(f"{str(folder)!r} holds no saved model ({name}: {reason})") from error


def has_nan(tensor: Tensor) -> bool:
    """Whether any entry is NaN, for every type of numbers."""
    return bool(_asked(tensor).isnan().any())


def has_infinity(tensor: Tensor) -> bool:
    """Whether any entry is infinite, for every type of numbers."""
    return bool(_asked(tensor).isinf().any())


def _asked(tensor: Tensor) -> Tensor:
    """Floating-point numbers of one byte can't be asked themselves."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor
