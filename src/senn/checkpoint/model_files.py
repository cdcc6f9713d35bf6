"""The two files: written whole or not at all, believed only if they are what was written."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from senn import atomic_files
from senn.errors import SennError

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
FORMAT, VERSION = "senn-model", 2
READABLE = (1, 2)
"""Versions that are read. 1 knew fewer layers, neither shared modules nor buffers that aren't in the state."""

_HEADER = 1 << 27
"""Bytes of a safetensors header at most."""
_KEYS = {"format", "version", "weights_sha256", "model", "tied", "frozen", "extra", "checksum"}


def write(folder: Path, tensors: dict[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write both files.

    Args:
        folder: made if need be.
        tensors: on the CPU, none sharing memory with another.
        description: all of the JSON that isn't said by the files themselves.

    Raises:
        SennError: if `extra` isn't JSON-able, or the folder can't be written.
    """
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(plain, {"format": "pt"})  # as other libraries ask for
    head = {"format": FORMAT, "version": VERSION, "weights_sha256": atomic_files.bytes_digest(data)}
    try:
        text = atomic_files.write_checksummed_json({**head, **description})
    except (TypeError, ValueError, RecursionError) as error:
        raise SennError(f"extra can't be written as JSON: {error}") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as done:
            for name, content in ((WEIGHTS, data), (DESCRIPTION, text)):
                done.enter_context(atomic_files.atomic_write(folder / name, content))
    except OSError as error:
        raise SennError(f"the model can't be written to {str(folder)!r}: {error.strerror or error}") from error


def read_description(folder: Path) -> dict[str, Any]:
    """The JSON: of a known version, with the right checksum and the right keys. What they hold isn't checked yet."""
    path, data = folder / DESCRIPTION, _read(folder, DESCRIPTION)
    otherwise = "doesn't describe a model that senn saved"
    document = atomic_files.parse_checksummed_json(data, path, FORMAT, READABLE, otherwise)
    keys = _KEYS | {"transient"} if document["version"] > 1 else _KEYS
    if set(document) != keys:
        raise SennError(f"{str(path)!r} is damaged: its content doesn't match its checksum")
    return document


def read_weights(folder: Path, sha256: object, entries: int) -> dict[str, Tensor]:
    """The numbers, if they are those that the description was written for.

    Args:
        folder: of the model.
        sha256: what the description says of the file.
        entries: of all tensors that it tells of together; a file that is longer than these can be isn't read.
    """
    path, data = folder / WEIGHTS, _read(folder, WEIGHTS, most=_HEADER + 16 * entries)
    if atomic_files.bytes_digest(data) != sha256:
        raise SennError(f"{str(path)!r} is damaged: it isn't the file that was saved with {DESCRIPTION}")
    tensors = tensors_of(data, path)
    for name, tensor in tensors.items():
        if has_nan(tensor):
            raise SennError(f"{name!r} in {str(path)!r} holds NaN")
    return tensors


def tensors_of(data: bytes, path: Path) -> dict[str, Tensor]:
    """What the bytes of a safetensors file hold."""
    try:
        return safetensors.torch.load(data)
    except Exception as error:  # whatever its parser makes of foreign bytes
        raise SennError(f"{str(path)!r} is damaged: {' '.join(str(error).split())}") from error


def _read(folder: Path, name: str, most: int = atomic_files.MOST) -> bytes:
    try:
        return atomic_files.read(folder / name, most)
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
