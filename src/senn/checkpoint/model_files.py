"""Reading and writing `model.safetensors` and `model.json`: atomically, and with checksums.

The JSON carries the SHA-256 checksum of the file with the numbers and one of itself.
"""

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
"""Format versions that can be read. 1 knew fewer layers, neither shared modules nor buffers outside the state."""

# About 100 bytes describe a tensor, so this is room for a million of them; a forged header can't be longer.
_MOST_HEADER_BYTES = 1 << 27
# complex128, the widest type of numbers
_MOST_BYTES_PER_ENTRY = 16
_KEYS = {"format", "version", "weights_sha256", "model", "tied", "frozen", "extra", "checksum"}


def write(folder: Path, tensors: dict[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write both files of a model.

    Args:
        folder: created if missing.
        tensors: by full name, on the CPU, none sharing memory with another.
        description: entries of the JSON besides its format, version and checksums.

    Raises:
        SennError: `extra` isn't JSON-able, or the folder can't be written.
    """
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    # transformers and others read a safetensors file only if its metadata names the format "pt".
    data = safetensors.torch.save(contiguous, {"format": "pt"})
    head = {"format": FORMAT, "version": VERSION, "weights_sha256": atomic_files.bytes_digest(data)}
    try:
        text = atomic_files.to_checksummed_json({**head, **description})
    except (TypeError, ValueError, RecursionError) as error:
        raise SennError(f"extra can't be written as JSON: {error}") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Both are complete on the disk before either is renamed: an old model is never mixed with a new one.
        with ExitStack() as renames:
            for name, content in ((WEIGHTS, data), (DESCRIPTION, text)):
                renames.enter_context(atomic_files.atomic_write(folder / name, content))
    except OSError as error:
        raise SennError(
            f"the model can't be written to {str(folder)!r}: {error.strerror or error}"
        ) from error


def read_description(folder: Path) -> dict[str, Any]:
    """Read `model.json` and check its version, checksum and keys, but not yet its values.

    Raises:
        SennError: it is missing, damaged, or of a version that can't be read.
    """
    path, data = folder / DESCRIPTION, _read(folder, DESCRIPTION)
    otherwise = "doesn't describe a model that senn saved"
    document = atomic_files.parse_checksummed_json(data, path, FORMAT, READABLE, otherwise)
    keys = _KEYS | {"transient"} if document["version"] > 1 else _KEYS
    if set(document) != keys:
        raise SennError(f"{str(path)!r} is damaged: its content doesn't match its checksum")
    return document


def read_weights(folder: Path, sha256: object, entries: int) -> dict[str, Tensor]:
    """Read `model.safetensors` if it is the file that the description was written for.

    Args:
        folder: that of the model.
        sha256: checksum of the file, from the description.
        entries: number of entries of all described tensors, which limits the size of the file.

    Returns:
        Tensors by full name.

    Raises:
        SennError: it is missing, isn't that file, or holds NaN.
    """
    most = _MOST_HEADER_BYTES + _MOST_BYTES_PER_ENTRY * entries
    path, data = folder / WEIGHTS, _read(folder, WEIGHTS, most)
    if atomic_files.bytes_digest(data) != sha256:
        raise SennError(
            f"{str(path)!r} is damaged: it isn't the file that was saved with {DESCRIPTION}"
        )
    tensors = parse_tensors(data, path)
    for name, tensor in tensors.items():
        if has_nan(tensor):
            raise SennError(f"{name!r} in {str(path)!r} holds NaN")
    return tensors


def parse_tensors(data: bytes, path: Path) -> dict[str, Tensor]:
    """Parse the content of a safetensors file.

    Args:
        data: content of the file.
        path: the file, for errors.

    Returns:
        Tensors by name.

    Raises:
        SennError: it isn't a safetensors file.
    """
    try:
        return safetensors.torch.load(data)
    except Exception as error:  # the parser may raise anything on foreign bytes
        reason = " ".join(str(error).split())
        raise SennError(f"{str(path)!r} is damaged: {reason}") from error


def _read(folder: Path, name: str, most: int = atomic_files.MOST) -> bytes:
    try:
        return atomic_files.read(folder / name, most)
    except (OSError, ValueError) as error:  # a path with a null byte is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise SennError(f"{str(folder)!r} holds no saved model ({name}: {reason})") from error


def has_nan(tensor: Tensor) -> bool:
    """Return True if any entry is NaN, for any type of numbers."""
    return bool(_testable(tensor).isnan().any())


def has_infinity(tensor: Tensor) -> bool:
    """Return True if any entry is infinite, for any type of numbers."""
    return bool(_testable(tensor).isinf().any())


def _testable(tensor: Tensor) -> Tensor:
    # torch has no isnan and isinf for floating-point numbers of one byte (float8)
    is_one_byte = tensor.is_floating_point() and tensor.element_size() == 1
    return tensor.float() if is_one_byte else tensor
