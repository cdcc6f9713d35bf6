"""Reading and writing `model.safetensors` and `model.json`: atomically, and with checksums.

The JSON carries the SHA-256 checksum of the file with the numbers and one of itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from senn import atomic_files
from senn.checkpoint.tensor_files import MOST_HEADER_BYTES, TensorFile, check_memory, has_nan
from senn.errors import SennError

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
FORMAT, VERSION = "senn-model", 2
READABLE = (1, 2)
"""Format versions that can be read. 1 knew fewer layers, neither shared modules nor buffers outside the state."""

_MOST_BYTES_PER_ENTRY = 16
"""Bytes of the widest type of numbers, complex128."""
Shape = tuple[int, ...]
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


def read_weights(folder: Path, sha256: object, described: Mapping[str, Shape]) -> TensorFile:
    """Open `model.safetensors` if it is the file that the description was written for, without reading its numbers.

    Args:
        folder: that of the model.
        sha256: checksum of the file, from the description.
        described: shapes of all tensors by full name, which limit the size of the file.

    Returns:
        The open file.

    Raises:
        SennError: it is missing, isn't that file, or is too large for the memory.
    """
    path = folder / WEIGHTS
    most = MOST_HEADER_BYTES + _MOST_BYTES_PER_ENTRY * sum(map(prod, described.values()))
    try:
        file = atomic_files.open_regular(path)
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(None, "longer than it can be")
    except (OSError, ValueError) as error:
        raise _missing(folder, WEIGHTS, error) from error
    with reading_tensors(path):
        check_memory(size)
        if atomic_files.digest_of(file) != sha256:
            raise SennError(
                f"{str(path)!r} is damaged: it isn't the file that was saved with {DESCRIPTION}"
            )
        return TensorFile(file)


def read_numbers(file: TensorFile, path: Path) -> dict[str, Tensor]:
    """Read all tensors of a model.

    Args:
        file: from `read_weights`.
        path: its name, for errors.

    Returns:
        Tensors by full name.

    Raises:
        SennError: one holds NaN, or the file ends too soon.
    """
    with reading_tensors(path):
        tensors = dict(file.tensors())
    for name, tensor in tensors.items():
        if has_nan(tensor):
            raise SennError(f"{name!r} in {str(path)!r} holds NaN")
    return tensors


@contextmanager
def reading_tensors(path: Path) -> Iterator[None]:
    """Context that turns what is no safetensors file into a sentence.

    Args:
        path: the file, for the sentence.

    Raises:
        SennError: it isn't one, or can't be read.
    """
    try:
        yield
    except SennError as error:
        if str(path) in str(error) or WEIGHTS in str(error):
            raise
        raise SennError(f"{str(path)!r} can't be read: {error}") from error
    except (ValueError, OSError) as error:
        raise SennError(f"{str(path)!r} is damaged: {error}") from error


def _read(folder: Path, name: str, most: int = atomic_files.MOST) -> bytes:
    try:
        return atomic_files.read(folder / name, most)
    except (OSError, ValueError) as error:  # a path with a null byte is a ValueError
        raise _missing(folder, name, error) from error


def _missing(folder: Path, name: str, error: Exception) -> SennError:
    reason = getattr(error, "strerror", None) or error
    return SennError(f"{str(folder)!r} holds no saved model ({name}: {reason})")
