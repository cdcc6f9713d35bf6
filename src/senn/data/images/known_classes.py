"""Labeled images whose classes are known: those of a test, and those that a network goes on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from senn.data.images.collection import Collection, collect, is_flat, read_part
from senn.data.images.folders import innermost, square
from senn.data.images.image_arrays import Images
from senn.errors import SennError


def collect_test(source: str, classes: Sequence[str], side: int, channels: int = 3) -> Collection:
    """Read labeled images to test on, whose classes are known; some of them may be missing.

    Args:
        source: a folder with a sub-folder for each class, or with IDX or parquet files, or such a file.
        classes: names by label.
        side: of the squares.
        channels: 1 (gray) or 3.

    Returns:
        The images, as `train`.

    Raises:
        SennError: a class isn't among those, or there is no image.
    """
    path = Path(source)
    if not path.exists():
        raise SennError(f"there is no file or folder {source!r}")
    if path.is_dir() and not is_flat(path):
        inner = innermost(path)
        if inner != path and inner.relative_to(path).parts[0] not in classes:
            path = inner
        found = read_part(path, classes, side, channels)
        if found is None:
            raise SennError(
                f"{source!r} has no sub-folders; the images of each class belong in a sub-folder of its own"
            )
        images, left_out = found
        if not len(images):
            raise SennError(f"{source!r} holds no image that can be read")
        return Collection(name=path.name, classes=tuple(classes), train=images, left_out=left_out)
    read = collect(source, side)
    strange = [name for name in read.classes if name not in classes]
    if strange:
        raise SennError(f"class {strange[0]!r} of {source!r} isn't among those to train on")
    return replace(_renumbered(read, classes, side, channels), test=None)


def collect_more(
    source: str, classes: Sequence[str], side: int, channels: int = 3, data_dir: Path | None = None
) -> Collection:
    """Read labeled images for a network that is there.

    Args:
        source: as of `collect`.
        classes: names of the network's classes, by label.
        side: of the squares.
        channels: 1 (gray) or 3.
        data_dir: as of `collect`.

    Returns:
        The images. Known classes have the numbers that they had; new ones come after them, in sorted order.

    Raises:
        SennError: as of `collect`.
    """
    read = collect(source, side, data_dir)
    new = [name for name in read.classes if name not in classes]
    return _renumbered(read, (*classes, *new), side, channels)


def _renumbered(read: Collection, classes: Sequence[str], side: int, channels: int) -> Collection:
    """Give images the numbers that their classes have in a list, and so many channels."""
    numbers = np.array([classes.index(name) for name in read.classes])

    def renumbered(images: Images | None) -> Any:
        if images is None:
            return None
        pixels = images.pixels
        if pixels.shape[-1] != channels:
            pixels = np.stack([square(image, side, channels) for image in pixels])
        return Images(pixels, numbers[images.labels].astype(np.int64))

    return replace(
        read,
        classes=tuple(classes),
        train=renumbered(read.train),
        validation=renumbered(read.validation),
        test=renumbered(read.test),
    )
