"""The IDX format of MNIST: two zero bytes, a type, a number of dimensions, the sizes, then the bytes."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from senn.data.images.image_arrays import MOST_BYTES, Images, reading
from senn.errors import SennError

_UNSIGNED_BYTE = 8


def read_idx(path: str | Path, dims: int) -> NDArray[np.uint8]:
    """Read the array of an IDX file of unsigned bytes, gzipped or not.

    Args:
        path: of the file.
        dims: number of dimensions that it must have: 1 for labels, 3 for gray images.

    Returns:
        The array, read-only.

    Raises:
        SennError: there is no such file, or it is damaged, or holds anything else.
    """
    path = Path(path)
    with reading(path, "gzipped IDX"), _opened(path) as file:
        magic = file.read(4)
        if magic != bytes([0, 0, _UNSIGNED_BYTE, dims]):
            raise SennError(
                f"{str(path)!r} isn't an IDX file of bytes in {dims} dimension{'s' * (dims > 1)}: "
                f"it begins with {magic.hex() or 'nothing'}, not 0000{_UNSIGNED_BYTE:02x}{dims:02x}"
            )
        header = file.read(4 * dims)
        if len(header) < 4 * dims:
            raise SennError(f"{str(path)!r} is cut short")
        # sizes are big-endian
        shape = tuple(int(size) for size in np.frombuffer(header, ">u4"))
        # in Python's whole numbers: the product of 32-bit sizes overflows numpy's
        declared = math.prod(shape)
        if declared > MOST_BYTES:
            raise SennError(
                f"the header of {str(path)!r} declares {declared:,} bytes, over the limit of {MOST_BYTES:,}"
            )
        # one byte more, to see that the file ends there; gzip checks its sum only at the end
        content = file.read(declared + 1)
    if len(content) != declared:
        found = "more" if len(content) > declared else f"{len(content):,}"
        raise SennError(
            f"the header of {str(path)!r} declares {declared:,} bytes, but {found} follow"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def is_idx(path: Path) -> bool:
    """True if a file begins like an IDX file of gray images."""
    try:
        with _opened(path) as file:
            return file.read(4) == bytes([0, 0, _UNSIGNED_BYTE, 3])
    except (OSError, EOFError, zlib.error):
        return False


def _opened(path: Path) -> gzip.GzipFile | io.BufferedReader:
    with path.open("rb") as file:
        # by its first bytes, not its name: both forms are published under either
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if packed else path.open("rb")


def read_labeled_idx(images: str | Path, labels: str | Path) -> Images:
    """Read gray images from one IDX file, and their labels from another.

    Args:
        images: the file of images.
        labels: the file of labels.

    Returns:
        The images, (N, H, W, 1).

    Raises:
        SennError: a file can't be read, or there are more of one than of the other.
    """
    pixels, numbers = read_idx(images, 3), read_idx(labels, 1)
    if len(pixels) != len(numbers):
        raise SennError(
            f"{str(images)!r} holds {len(pixels):,} images, but {str(labels)!r} holds {len(numbers):,} labels"
        )
    return Images(pixels[..., None], numbers.astype(np.int64))
