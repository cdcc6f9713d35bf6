"""Encoded images (JPEG, PNG), one by one and in the rows of parquet files; never more pixels than a limit."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from senn.data.images.image_arrays import MOST_BYTES, Expected, Images, ImageSet, in_short, reading, shown
from senn.errors import SennError

MOST_PIXELS = 2**24
"""Pixels of one image, at most: a few bytes can claim to be a picture of gigabytes."""

_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
_AT_ONCE = 1000


def decode(encoded: bytes, where: str, most_pixels: int = MOST_PIXELS) -> NDArray[np.uint8]:
    """A JPEG or PNG image as (H, W, 3) uint8 RGB, upright, with what is transparent on white.

    Args:
        encoded: the content of the image file.
        where: what to call it in an error.
        most_pixels: limit of H times W, checked before any pixel is decoded.

    Raises:
        SennError: if it is damaged, of another format or mode, or larger than the limit.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, for which the limit here is lower, and of odd headers
            with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG")) as image:
                if image.width * image.height > most_pixels:
                    raise SennError(
                        f"{where} is an image of {image.width:,} x {image.height:,} pixels, over the limit of "
                        f"{most_pixels:,} in all"
                    )
                return _pixels(image, where)
    except SennError:
        raise
    except Exception as error:  # whatever the decoder makes of damaged bytes
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "it is neither JPEG nor PNG" if unknown else in_short(error)
        raise SennError(f"{where} can't be decoded as an image: {reason}") from error


def _pixels(image: Image.Image, where: str) -> NDArray[np.uint8]:
    if image.mode not in _MODES:
        raise SennError(f"{where} is an image of mode {image.mode}, which can't be taken as 8-bit RGB without loss")
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.asarray(upright.convert("RGB"))


def decode_all(
    encoded: Iterable[tuple[str, bytes]], count: int, shape: tuple[int, int, int], most_pixels: int = MOST_PIXELS
) -> NDArray[np.uint8]:
    """Images of one size as (count, H, W, 3).

    Args:
        encoded: for each image what to call it in an error, and its bytes.
        count: how many there are.
        shape: (H, W, 3) that each must have.
        most_pixels: limit for one image.

    Raises:
        SennError: at the first image that can't be decoded or has another shape.
    """
    if count * math.prod(shape) > MOST_BYTES:
        raise SennError(f"{count:,} images of {shown(shape)} are over the limit of {MOST_BYTES:,} bytes")
    pixels = np.empty((count, *shape), np.uint8)
    for row, (where, content) in enumerate(encoded):
        image = decode(content, where, most_pixels)
        if image.shape != shape:
            raise SennError(f"{where} is an image of {shown(image.shape)} where {shown(shape)} is expected")
        pixels[row] = image
    return pixels


def read_parquet(
    paths: Sequence[str | Path], shape: tuple[int, int, int], image: str = "img", label: str = "label"
) -> Images:
    """Labelled images of one size in the rows of parquet files, as the Hugging Face hub lays them out.

    Args:
        paths: the files, in the order of their rows.
        shape: (H, W, 3) of every image.
        image: column of encoded images, binary or a struct with the field `bytes`.
        label: column of whole numbers.

    Raises:
        SennError: if a file isn't such a table, or an image is damaged or of another shape; rows count from 1.
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
    """Rows of a parquet file, after a check that it has a column of encoded images and one of labels.

    Raises:
        SennError: if it can't be read or hasn't.
    """
    with reading(path, "parquet"), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        for name in (image, label):
            if schema.get_field_index(name) < 0:
                raise SennError(f"{str(path)!r} has no column {name!r}, but {', '.join(map(repr, schema.names))}")
        kind = schema.field(image).type
        if not _is_encoded(kind):
            raise SennError(f"column {image!r} of {str(path)!r} holds {kind}, not encoded images")
        if not pa.types.is_integer(schema.field(label).type):
            raise SennError(f"column {label!r} of {str(path)!r} holds {schema.field(label).type}, not whole numbers")
        return int(file.metadata.num_rows)


def encoded_rows(path: Path, image: str, label: str | None) -> Iterator[tuple[str, bytes | None, int]]:
    """For each row of a parquet file what to call it, the bytes of its image, if it has one, and its label (or -1).

    Raises:
        SennError: if the file can't be read, or a row has no label.
    """
    row = 0
    with reading(path, "parquet"), pq.ParquetFile(path, page_checksum_verification=True) as file:
        for batch in file.iter_batches(_AT_ONCE, columns=[image] if label is None else [image, label]):
            if label is not None and batch.column(label).null_count:
                raise SennError(f"{str(path)!r} has rows without a label")
            labels = [-1] * len(batch) if label is None else batch.column(label).to_pylist()
            cells = batch.column(image)
            cells = cells.field("bytes") if pa.types.is_struct(cells.type) else cells
            for cell, number in zip(cells, labels, strict=True):
                row += 1
                yield f"row {row:,} of {str(path)!r}", cell.as_py(), number


def image_columns(path: Path, labeled: bool = True) -> tuple[str, str | None] | None:
    """The columns of encoded images and of labels in a parquet file; None if there is no such file with both.

    Labels are whole numbers: the column `label`, or the only one of whole numbers.

    Args:
        path: the file.
        labeled: whether there must be labels.
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
    """Whether a column's type is binary, or a struct with the field `bytes` that is."""
    if pa.types.is_struct(kind):
        kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def read_parquet_set(files: dict[str, tuple[Path, ...]], expected: Expected) -> ImageSet:
    """The set in parquet files.

    Raises:
        SennError: if a file can't be read or holds anything else than what is expected.
    """
    where = {part: ", ".join(repr(str(path)) for path in paths) for part, paths in files.items()}
    for part, paths in files.items():  # before minutes of decoding
        expected.check_count(part, sum(map(count_rows, paths)), where[part])
    parts = {part: read_parquet(paths, expected.shape) for part, paths in files.items()}
    for part, images in parts.items():
        expected.check(part, images, where[part])
    return ImageSet(expected.name, "parquet", expected.classes, **parts)
