"""Labeled images as arrays, and the checks that those of a known set must pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from senn.errors import SennError

MOST_BYTES = 2**31
"""Bytes of pixels in one part of a set, at most: more counts as a damaged or hostile file."""


@dataclass(frozen=True, eq=False)
class Images:
    """Labeled images.

    Attributes:
        pixels: (N, H, W, C) uint8.
        labels: (N,) int64.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, rows: NDArray[np.integer]) -> Images:
        """Copy some rows, into memory and writable."""
        # copies, since a set is memory-mapped and read-only
        return Images(self.pixels[rows].copy(), self.labels[rows].copy())


def duplicate_notes(train: Images, test: Images) -> list[str]:
    """Say which images stand twice, pixel by pixel: in two classes, or on both sides of the test.

    Args:
        train: images to train on.
        test: those to test on, of the same side.

    Returns:
        A sentence for each finding.
    """
    classes: dict[bytes, set[int]] = {}
    for one, label in zip(train.pixels, train.labels.tolist(), strict=True):
        classes.setdefault(_digest(one), set()).add(label)
    notes = []
    if several := sum(len(found) > 1 for found in classes.values()):
        which = f"{several:,} images" if several > 1 else "1 image"
        notes.append(f"{which} to train on can be found, pixel by pixel, in more than one class")
    shared = sum(_digest(one) in classes for one in test.pixels) / max(len(test), 1)
    if shared:
        notes.append(f"{shared:.0%} of the test images also stand among the training images")
    return notes


def _digest(pixels: NDArray[np.uint8]) -> bytes:
    return sha256(pixels.tobytes()).digest()


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A set of labeled images in its parts.

    Attributes:
        name: of the set.
        form: the format that it was read from; two forms of a set can differ in their pixels.
        classes: names, by label.
        train: training images, in the order of the file (which may be by class).
        test: test images; of Tiny-ImageNet its labeled validation images, as its test images have no labels.
        validation: images held out of training, None until `hold_out`.
    """

    name: str
    form: str
    classes: tuple[str, ...]
    train: Images
    test: Images
    validation: Images | None = None

    def hold_out(self, count: int, seed: int) -> ImageSet:
        """Hold out training images for validation.

        Args:
            count: how many.
            seed: decides which.

        Returns:
            A set whose training and validation images are shuffled copies.

        Raises:
            SennError: that leaves no image in either part, or some are held out already.
        """
        if self.validation is not None:
            raise SennError(f"{len(self.validation):,} images of {self.name} are held out already")
        if not 0 < count < len(self.train):
            raise SennError(
                f"{count:,} images can't be held out of {len(self.train):,} of {self.name}"
            )
        # shuffled, as sets may be stored by class
        order = np.random.default_rng(seed).permutation(len(self.train))
        return replace(
            self, train=self.train.take(order[count:]), validation=self.train.take(order[:count])
        )


@dataclass(frozen=True)
class Expected:
    """Counts, shapes and classes that a known set must have.

    Attributes:
        name: of the set.
        shape: (H, W, C) of every image.
        counts: images in "train" and "test".
        classes: names by label.
    """

    name: str
    shape: tuple[int, int, int]
    counts: Mapping[str, int]
    classes: tuple[str, ...]

    def check_count(self, part: str, count: int, where: str) -> None:
        """Check the number of images.

        Args:
            part: "train" or "test".
            count: images in it.
            where: name of their source, for messages.

        Raises:
            SennError: the set has another number of them.
        """
        if count != self.counts[part]:
            raise SennError(
                f"{where} holds {count:,} {part} images, but {self.name} has {self.counts[part]:,} of them"
            )

    def check(self, part: str, images: Images, where: str) -> None:
        """Check the counts, shapes and labels of images.

        Args:
            part: "train" or "test".
            images: its images.
            where: name of their source, for messages.

        Raises:
            SennError: the set has others.
        """
        self.check_count(part, len(images), where)
        if images.pixels.shape[1:] != self.shape:
            raise SennError(
                f"{where} holds images of {shown(images.pixels.shape[1:])}, but {self.name} has {shown(self.shape)}"
            )
        check_labels(images, len(self.classes), where)


def check_labels(images: Images, classes: int, where: str) -> None:
    """Check that each image has a label from 0 to classes - 1.

    Args:
        images: with their labels.
        classes: number of classes.
        where: name of their source, for messages.

    Raises:
        SennError: one hasn't; the first wrong row is named, counted from 1.
    """
    if len(images.labels) != len(images):
        raise SennError(f"{where} holds {len(images):,} images but {len(images.labels):,} labels")
    # the first wrong row is named, so all are looked for at once
    wrong = np.flatnonzero((images.labels < 0) | (images.labels >= classes))
    if len(wrong):
        label = images.labels[wrong[0]]
        raise SennError(
            f"{where}, row {wrong[0] + 1}: label {label} is none of the {classes} classes 0...{classes - 1}"
        )


def shown(shape: tuple[int, ...]) -> str:
    """Write a shape as `28 x 28 x 1`."""
    return " x ".join(map(str, shape))


@contextmanager
def reading(path: Path, form: str) -> Iterator[None]:
    """Turn any error of a reader on a missing, unreadable or damaged file into one sentence.

    Args:
        path: the file.
        form: its format, for messages.

    Raises:
        SennError: from any error inside; the file is named.
    """
    try:
        yield
    except SennError:
        raise
    except EOFError as error:
        raise SennError(f"{str(path)!r} is cut short") from error
    except Exception as error:
        # the system's reason is a sentence; a parser's is shortened
        if isinstance(error, OSError) and error.strerror:
            raise SennError(f"{str(path)!r} can't be read: {error.strerror}") from error
        raise SennError(f"{str(path)!r} can't be read as {form}: {in_short(error)}") from error


def in_short(error: Exception) -> str:
    """Shorten a library's message about a damaged file, which may quote much of it, to its first line."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 160 else f"{line[:157]}..."
