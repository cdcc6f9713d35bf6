"""A user's own images: files of mixed sizes, cut to squares of one side; unreadable ones are left out, by name."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from senn.data.images.encoded import decode, open_image
from senn.data.images.image_arrays import MOST_BYTES
from senn.errors import SennError

SIDES = (32, 64)
"""Least and largest side that is chosen automatically; images that are all of one smaller square size keep theirs.

Below 32 pixels, photographs lose what tells them apart; at 128 an epoch costs four times as much as at 64.
"""

MOST_PIXELS = 2**26
"""Pixels of one image, at most: photographs from cameras have fewer."""

MOST_FILE_BYTES = 2**27
"""Bytes of one image file, at most."""

_PARTS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})


@dataclass(frozen=True)
class Entry:
    """Encoded image.

    Attributes:
        name: for messages and results.
        content: bytes of the image, or the file that holds them.
    """

    name: str
    content: bytes | Path

    @property
    def where(self) -> str:
        """Name of the image in a message."""
        return repr(self.name) if isinstance(self.content, Path) else self.name

    def read(self) -> bytes:
        """Read the bytes.

        Raises:
            SennError: the file can't be read or is too large.
        """
        if isinstance(self.content, bytes):
            return self.content
        try:
            # before it is read into memory
            if self.content.stat().st_size > MOST_FILE_BYTES:
                raise SennError(f"{self.name!r} has more than {MOST_FILE_BYTES:,} bytes")
            return self.content.read_bytes()
        except OSError as error:
            raise SennError(f"{self.name!r} can't be read: {error.strerror or error}") from error


@dataclass(frozen=True)
class LeftOut:
    """Image that couldn't be read, with the reason as a sentence."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class Squares:
    """Images of one side.

    Attributes:
        pixels: (n, side, side, channels) uint8.
        rows: (n,) which of the entries these are.
        left_out: the other entries.
    """

    pixels: NDArray[np.uint8]
    rows: NDArray[np.int64]
    left_out: tuple[LeftOut, ...]


def square(image: NDArray[np.uint8], side: int, channels: int = 3) -> NDArray[np.uint8]:
    """Cut the middle square out of an image and resize it.

    Args:
        image: (H, W, 1 or 3).
        side: of the result.
        channels: of the result, 1 (gray) or 3.

    Returns:
        (side, side, channels); averaged over boxes where it shrinks.
    """
    if image.shape == (side, side, channels):
        return image
    source = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    mode = "L" if channels == 1 else "RGB"
    source = source if source.mode == mode else source.convert(mode)  # a copy takes as much again
    # boxes average all pixels where an image shrinks; where it grows they would be visible
    method = Image.Resampling.BOX if min(source.size) > side else Image.Resampling.BILINEAR
    # Cut, not squeezed: squeezing would turn circles into ellipses.
    return np.asarray(ImageOps.fit(source, (side, side), method)).reshape(side, side, channels)


def squares(
    entries: Sequence[Entry], side: int, channels: int = 3, most_pixels: int = MOST_PIXELS
) -> Squares:
    """Decode images of any sizes, turn them upright, cut and resize them.

    Args:
        entries: the encoded images.
        side: of the squares.
        channels: 1 (gray) or 3.
        most_pixels: limit for one image, before it is resized.

    Returns:
        The squares; images that can't be read are left out, by name.

    Raises:
        SennError: together they exceed `MOST_BYTES`.
    """
    size = side * side * channels
    if len(entries) * size > MOST_BYTES:
        raise SennError(
            f"{len(entries):,} images of {side} x {side} are over the limit of {MOST_BYTES:,} bytes; "
            "a smaller --image-size fits"
        )
    # one array for all, filled from the front: unreadable ones leave no gap
    pixels = np.empty((len(entries), side, side, channels), np.uint8)
    rows: list[int] = []
    left_out: list[LeftOut] = []
    for row, entry in enumerate(entries):
        try:
            pixels[len(rows)] = square(
                decode(entry.read(), entry.where, most_pixels), side, channels
            )
            rows.append(row)
        except SennError as error:
            left_out.append(LeftOut(entry.name, str(error)))
    return Squares(pixels[: len(rows)], np.array(rows, np.int64), tuple(left_out))


def common_side(sizes: Iterable[tuple[int, int]]) -> int:
    """Choose a side for images of these widths and heights.

    Their own, if all are squares of one size that isn't above the larger of `SIDES`; otherwise the median of the
    shorter sides, rounded to a multiple of four and kept within `SIDES`.

    Raises:
        SennError: there are none.
    """
    found = list(sizes)
    if not found:
        raise SennError("there is no image that can be read")
    # the shorter sides, since squares are cut from the middle
    shorter = [min(size) for size in found]
    low, high = SIDES
    if len(set(found)) == 1 and found[0][0] == found[0][1] <= high:
        return shorter[0]
    # A multiple of four can be halved twice by pooling without a remainder.
    return min(max(4 * round(float(np.median(shorter)) / 4), low), high)


def side_of(entries: Sequence[Entry]) -> int:
    """Choose a side for encoded images by their headers, as of `common_side`.

    Raises:
        SennError: none of them can be read; it says why not the first.
    """
    found = list(sizes(entries))
    if entries and not found:
        try:
            decode(entries[0].read(), entries[0].where)
        except SennError as error:
            raise SennError(f"there is no image that can be read: {error}") from error
    return common_side(found)


def sizes(entries: Iterable[Entry]) -> Iterator[tuple[int, int]]:
    """Yield width and height, as stored, of each image whose header can be read."""
    for entry in entries:
        size = _stored_size(entry)
        if size is not None:
            yield size


def _stored_size(entry: Entry) -> tuple[int, int] | None:
    source: Path | io.BytesIO = (
        entry.content if isinstance(entry.content, Path) else io.BytesIO(entry.content)
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_image(source) as image:
                return image.size
    except Exception:  # any error of the decoder on a damaged file, which is named when it is read
        return None


def is_foreign(name: str) -> bool:
    """Return True for what systems leave in folders: hidden files, and what macOS adds to archives."""
    return name.startswith(".") or name == "__MACOSX"


def files_in(folder: Path) -> list[Path]:
    """List the files in a folder and its sub-folders, sorted, without hidden ones.

    Raises:
        SennError: a folder can't be read.
    """
    found: list[Path] = []

    def refuse(error: OSError) -> None:
        raise SennError(
            f"the folder {str(error.filename)!r} can't be read: {error.strerror}"
        ) from error

    for place, folders, names in os.walk(folder, onerror=refuse):
        # in place: `os.walk` then doesn't enter these
        folders[:] = [name for name in folders if not is_foreign(name)]
        paths = [Path(place, name) for name in names if not name.startswith(".")]
        found += [path for path in paths if path.is_file()]
    return sorted(found)


def innermost(root: Path) -> Path:
    """Follow folders that hold nothing but one other folder of folders, as archives unpack to.

    Raises:
        SennError: a folder can't be read.
    """
    try:
        while True:
            inside = [
                path for path in root.iterdir() if path.is_dir() and not is_foreign(path.name)
            ]
            if len(inside) != 1 or inside[0].is_symlink():
                return root
            if not any(path.is_dir() and not is_foreign(path.name) for path in inside[0].iterdir()):
                return root
            root = inside[0]
    except OSError as error:
        raise SennError(
            f"the folder {str(root)!r} can't be read: {error.strerror or error}"
        ) from error


def class_folders(root: Path) -> tuple[dict[str, list[Path]], int]:
    """Find the files of each class in a folder with a sub-folder per class.

    Returns:
        The files by class, and the number of files next to the sub-folders.

    Raises:
        SennError: there aren't at least two sub-folders with files in them.
    """
    try:
        inside = sorted(path for path in root.iterdir() if not is_foreign(path.name))
    except OSError as error:
        raise SennError(
            f"the folder {str(root)!r} can't be read: {error.strerror or error}"
        ) from error
    folders = [path for path in inside if path.is_dir()]
    n_loose = len(inside) - len(folders)
    if not inside:
        raise SennError(f"the folder {str(root)!r} is empty")
    if not folders:
        raise SennError(
            f"{str(root)!r} has no sub-folders; the images of each class belong in a sub-folder of its own"
        )
    names = [path.name for path in folders]
    # else the classes would be named train and test
    if {name.lower() for name in names} <= _PARTS and any(
        path.is_dir() for top in folders for path in top.iterdir()
    ):
        raise SennError(
            f"the sub-folders of {str(root)!r} are {', '.join(map(repr, names))}, which are parts of a set, not "
            "classes, and there is no 'train' among them that holds a folder for each class"
        )
    if len(folders) == 1:
        raise SennError(
            f"{str(root)!r} holds a single class ({names[0]!r}); at least two are needed"
        )
    found = {path.name: files_in(path) for path in folders}
    for name, files in found.items():
        if not files:
            raise SennError(f"the folder of class {name!r} in {str(root)!r} holds no files")
    return found, n_loose


def check_classes(
    names: Sequence[str], labels: NDArray[np.int64], left_out: Sequence[LeftOut]
) -> None:
    """Check that two images of each class could be read: one to learn from, one to test on.

    Args:
        names: of the classes.
        labels: (n,) of the images that could be read.
        left_out: the others.

    Raises:
        SennError: a class has fewer; the first one is named.
    """
    counts = np.bincount(labels, minlength=len(names))
    for name, count in zip(names, counts, strict=True):
        if count < 2:
            # an entry's name begins with its class folder
            reasons = [one.reason for one in left_out if one.name.startswith(f"{name}{os.sep}")]
            why = f" ({reasons[0]})" if reasons and not count else ""
            has = "a single image" if count else "no image"
            raise SennError(
                f"class {name!r} has {has} that can be read{why}; at least two are needed, to learn from and to test on"
            )
