"""Reading safetensors files: what they hold is known before any of it is read, and read straight into its place.

The format is a whole number of 8 bytes, as many bytes of JSON, which say each tensor's dtype, shape and place, and the
numbers. The library that writes it reads a file as a whole, beside the tensors, and ends the process where memory ends.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

import torch
from torch import Tensor

from senn import atomic_files
from senn._memory import bytes_text, memory_limit
from senn.errors import SennError

MOST_HEADER_BYTES = 1 << 27
"""About 100 bytes describe a tensor, so this is room for a million of them; a forged header can't be longer."""
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}
_PIECE = 1 << 24
"""Numbers that are looked at together when they are checked."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Place of a tensor in a file.

    Attributes:
        dtype: of its numbers.
        shape: its sizes.
        begin: first byte, counted from the end of the header.
        end: byte after its last.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorFile:
    """A safetensors file whose header is read and whose numbers aren't.

    Args:
        file: the open file, at its beginning.

    Attributes:
        stored: what it holds, by name and in the order of the file.

    Raises:
        ValueError: it isn't a safetensors file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MOST_HEADER_BYTES):
            raise ValueError("its header has no sound length")
        self._first = 8 + length
        header = atomic_files.parse(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no table")
        entries = {name: _entry(name, of) for name, of in header.items() if name != "__metadata__"}
        ordered = sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end))
        self.stored: Mapping[str, StoredTensor] = dict(ordered)
        end = 0
        for name, one in ordered:
            if one.begin != end:
                raise ValueError(f"{name!r} doesn't begin where the tensor before it ends")
            end = one.end
        if self._first + end != size:
            raise ValueError("its tensors aren't as long as the file")

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Read one tensor after the other, into memory of its own.

        Raises:
            ValueError: the file ends too soon.
        """
        self.file.seek(self._first)
        for name, one in self.stored.items():
            tensor = torch.empty(one.shape, dtype=one.dtype)
            if tensor.numel():
                into = tensor.reshape(-1).view(torch.uint8).numpy()
                if self.file.readinto(into) != one.end - one.begin:  # type: ignore[attr-defined]
                    raise ValueError("it ends too soon")
            yield name, tensor


def check_memory(size: int) -> None:
    """Refuse a file of tensors that the memory can't hold.

    Args:
        size: bytes of the file.

    Raises:
        SennError: with both sizes.
    """
    most = memory_limit()
    if size > most:
        has = f"this process may use {bytes_text(most)}"
        raise SennError(f"its tensors take {bytes_text(size)} of memory, and {has}")


def _entry(name: str, entry: Any) -> StoredTensor:
    """Check the entry of one tensor in a header."""
    wrong = ValueError(f"its header describes {name!r} wrongly")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise wrong
    dtype = getattr(torch, _DTYPES.get(str(entry["dtype"]), ""), None)
    shape, offsets = entry["shape"], entry["data_offsets"]
    if dtype is None or not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise wrong
    begin, end = offsets
    if end - begin != prod(shape) * dtype.itemsize or max(shape, default=0) > 1 << 62:
        raise wrong
    return StoredTensor(dtype=dtype, shape=tuple(shape), begin=begin, end=end)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)


def has_nan(tensor: Tensor) -> bool:
    """Return True if any entry is NaN, for any type of numbers."""
    return any(bool(piece.isnan().any()) for piece in _testable(tensor))


def has_infinity(tensor: Tensor) -> bool:
    """Return True if any entry is infinite, for any type of numbers."""
    return any(bool(piece.isinf().any()) for piece in _testable(tensor))


def _testable(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the entries in pieces, so that the tests take little memory."""
    # torch has no isnan and isinf for floating-point numbers of one byte (float8)
    is_one_byte = tensor.is_floating_point() and tensor.element_size() == 1
    for piece in torch.split(tensor.reshape(-1), _PIECE):
        yield piece.float() if is_one_byte else piece
