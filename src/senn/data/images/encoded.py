"""Encoded images (JPEG, PNG and others), one by one and in rows of parquet files; never more pixels than a limit."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from senn._extras import importing
from senn.data.images.image_arrays import (
    MOST_BYTES,
    Expected,
    Images,
    ImageSet,
    in_short,
    reading,
    shown,
)
from senn.data.images.rgb import upright_rgb
from senn.errors import SennError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats that are read: Pillow knows dozens, some by rarely tested code. Of several frames the first one counts."""

MOST_PIXELS = 2**24
"""Pixels of one image, at most: a header of a few bytes can claim a picture of gigabytes."""

# Encoded rows of one batch: at 100 kB each they take 100 MB, twice as many 200 MB.
_AT_ONCE = 1000


_COPIES = {"WEBP": 2}
"""Formats whose decoders take so many times the memory of others."""
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


def open_image(source: Path | BinaryIO) -> Image.Image:
    """Open an image of one of the `FORMATS`, or HEIC if the package for it is installed; reads its header.

    Args:
        source: the file, or a stream at its beginning.

    Raises:
        SennError: it is HEIC, and the package isn't installed.
        OSError, ValueError and others: whatever a decoder makes of damaged bytes.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            head = file.read(12)
    else:
        head = source.read(12)
        source.seek(0)
    if head[4:8] != b"ftyp" or head[8:12] not in _HEIF_BRANDS:
        return Image.open(source, formats=FORMATS)
    with importing("an image in HEIC", "heic"):
        from pillow_heif import register_heif_opener
    register_heif_opener()
    return Image.open(source, formats=("HEIF",))


def decode(encoded: bytes, where: str, most_pixels: int = MOST_PIXELS) -> NDArray[np.uint8]:
    """Decode an image of one of the `FORMATS`, upright, with transparent parts on white.

    Args:
        encoded: content of the image file.
        where: name of the image, for messages.
        most_pixels: limit of H times W, checked before any pixel is decoded.

    Returns:
        (H, W, 3) RGB.

    Raises:
        SennError: it is damaged, of another format or mode, or larger than the limit.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes, for which the limit here is lower, and of odd headers
            warnings.simplefilter("ignore")
            return _decoded(encoded, where, most_pixels)
    except SennError:
        raise
    except Exception as error:  # any error of the decoder on damaged bytes
        unknown = isinstance(error, UnidentifiedImageError)
        reason = f"it is none of {', '.join(FORMATS)}" if unknown else in_short(error)
        raise SennError(f"{where} can't be decoded as an image: {reason}") from error


def _decoded(encoded: bytes, where: str, most_pixels: int) -> NDArray[np.uint8]:
    with open_image(io.BytesIO(encoded)) as image:
        # before any pixel is decoded: the size is in the header
        most = most_pixels // _COPIES.get(image.format or "", 1)
        if image.width * image.height > most:
            raise SennError(
                f"{where} is an image of {image.width:,} x {image.height:,} pixels, over the limit of "
                f"{most:,} in all"
            )
        return upright_rgb(image, where)


def decode_all(
    encoded: Iterable[tuple[str, bytes]],
    count: int,
    shape: tuple[int, int, int],
    most_pixels: int = MOST_PIXELS,
) -> NDArray[np.uint8]:
    """Decode images of one size.

    Args:
        encoded: for each image its name, for messages, and its bytes.
        count: how many there are.
        shape: (H, W, 3) that each must have.
        most_pixels: limit for one image.

    Returns:
        (count, H, W, 3).

    Raises:
        SennError: an image can't be decoded or has another shape, or all of them exceed `MOST_BYTES`.
    """
    # before the array is allocated: counts come from the file
    if count * math.prod(shape) > MOST_BYTES:
        raise SennError(
            f"{count:,} images of {shown(shape)} are over the limit of {MOST_BYTES:,} bytes"
        )
    pixels = np.empty((count, *shape), np.uint8)
    for row, (where, content) in enumerate(encoded):
        image = decode(content, where, most_pixels)
        if image.shape != shape:
            raise SennError(
                f"{where} is an image of {shown(image.shape)} where {shown(shape)} is expected"
            )
        pixels[row] = image
    return pixels


def read_parquet(
    paths: Sequence[str | Path],
    shape: tuple[int, int, int],
    image: str = "img",
    label: str = "label",
) -> Images:
    """Read labeled images of one size from parquet files, laid out as on the Hugging Face hub.

    Args:
        paths: the files, in the order of their rows.
        shape: (H, W, 3) of every image.
        image: column of encoded images, binary or a struct with the field `bytes`.
        label: column of whole numbers.

    Returns:
        The images, in the order of the files.

    Raises:
        SennError: a file isn't such a table, or an image is damaged or of another shape; rows count from 1.
    """
    files = [Path(path) for path in paths]
    count = sum(count_rows(path, image, label) for path in files)
    labels: list[int] = []

    def rows() -> Iterator[tuple[str, bytes]]:
        for path in files:
            for where, content, number in encoded_rows(path, image, label):
                if content is None:
                    raise SennError(f"{where} has no image")
                labels.append(number)
                yield where, content

    pixels = decode_all(rows(), count, shape)
    return Images(pixels, np.array(labels, np.int64))


def count_rows(path: Path, image: str = "img", label: str = "label") -> int:
    """Count the rows of a parquet file, and check that it has encoded images and labels.

    Args:
        path: the file.
        image: column of encoded images.
        label: column of whole numbers.

    Returns:
        The number of rows.

    Raises:
        SennError: it can't be read, or lacks a column.
    """
    with reading(path, "parquet"), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        for name in (image, label):
            if schema.get_field_index(name) < 0:
                raise SennError(
                    f"{str(path)!r} has no column {name!r}, but {', '.join(map(repr, schema.names))}"
                )
        kind = schema.field(image).type
        if not _is_encoded(kind):
            raise SennError(f"column {image!r} of {str(path)!r} holds {kind}, not encoded images")
        if not pa.types.is_integer(schema.field(label).type):
            raise SennError(
                f"column {label!r} of {str(path)!r} holds {schema.field(label).type}, not whole numbers"
            )
        return int(file.metadata.num_rows)


def encoded_rows(
    path: Path, image: str, label: str | None
) -> Iterator[tuple[str, bytes | None, int]]:
    """Read the rows of a parquet file one by one.

    Args:
        path: the file.
        image: column of encoded images.
        label: column of labels, or None.

    Yields:
        For each row its name, for messages, the bytes of its image or None, and its label or -1.

    Raises:
        SennError: the file can't be read, or a row has no label.
    """
    row = 0
    # pyarrow checks sums of pages only on request; a flipped bit could pass as another label.
    with reading(path, "parquet"), pq.ParquetFile(path, page_checksum_verification=True) as file:
        for batch in file.iter_batches(
            _AT_ONCE, columns=[image] if label is None else [image, label]
        ):
            if label is not None and batch.column(label).null_count:
                raise SennError(f"{str(path)!r} has rows without a label")
            labels = [-1] * len(batch) if label is None else batch.column(label).to_pylist()
            cells = batch.column(image)
            cells = cells.field("bytes") if pa.types.is_struct(cells.type) else cells
            for cell, number in zip(cells, labels, strict=True):
                row += 1
                yield f"row {row:,} of {str(path)!r}", cell.as_py(), number


def image_columns(path: Path, labeled: bool = True) -> tuple[str, str | None] | None:
    """Find the columns of encoded images and of labels in a parquet file.

    Labels are whole numbers: the column `label`, or the only one of whole numbers.

    Args:
        path: the file.
        labeled: True if there must be labels.

    Returns:
        Names of both columns (None for labels that may be absent); None if the file has no such columns.
    """
    try:
        schema = pq.read_schema(path)
    except Exception:  # whatever a parser makes of another file
        return None
    images = [field.name for field in schema if _is_encoded(field.type)]
    whole = [field.name for field in schema if pa.types.is_integer(field.type)]
    label = "label" if "label" in whole else whole[0] if len(whole) == 1 else None
    return None if not images or (labeled and label is None) else (images[0], label)


def _is_encoded(kind: pa.DataType) -> bool:
    """True if a column's type is binary, or a struct with a binary field `bytes`."""
    if pa.types.is_struct(kind):
        kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def read_parquet_set(files: dict[str, tuple[Path, ...]], expected: Expected) -> ImageSet:
    """Read a known set from parquet files.

    Args:
        files: files of each part.
        expected: counts, shapes and classes of the set.

    Returns:
        The set.

    Raises:
        SennError: a file can't be read, or holds anything else than expected.
    """
    where = {part: ", ".join(repr(str(path)) for path in paths) for part, paths in files.items()}
    for part, paths in files.items():  # before minutes of decoding
        expected.check_count(part, sum(map(count_rows, paths)), where[part])
    parts = {part: read_parquet(paths, expected.shape) for part, paths in files.items()}
    for part, images in parts.items():
        expected.check(part, images, where[part])
    return ImageSet(expected.name, "parquet", expected.classes, **parts)
