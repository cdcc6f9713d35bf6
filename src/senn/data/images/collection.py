"""Labeled images from any source: a folder for each class, IDX or parquet files, or a known set by name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from senn.data.images.encoded import encoded_rows, image_columns
from senn.data.images.folders import (
    Entry,
    LeftOut,
    check_classes,
    class_folders,
    common_side,
    innermost,
    side_of,
    square,
    squares,
)
from senn.data.images.idx import is_idx, read_labeled_idx
from senn.data.images.image_arrays import Images, reading
from senn.data.images.known_sets import KNOWN_SETS, load_images
from senn.data.images.parts import PartFolders, part_entries, part_folders
from senn.errors import SennError

_TABLES = (".csv", ".tsv", ".npz")
# t10k is what MNIST calls its 10,000 test images.
_TRAIN, _TEST = re.compile(r"^train", re.I), re.compile(r"^(t10k|test)", re.I)


@dataclass(frozen=True, eq=False, kw_only=True)
class Collection:
    """Labeled images, squares of one side.

    Attributes:
        name: of the set, or of its folder or file.
        classes: names, by label.
        train: training images; all, if the source has no test images.
        test: test images of the source; None if it has none.
        validation: images of the source that decide when to stop; None if it has none.
        left_out: images that couldn't be read.
        notes: remarks, one sentence each.
    """

    name: str
    classes: tuple[str, ...]
    train: Images
    test: Images | None = None
    validation: Images | None = None
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()


def is_images(source: str) -> bool:
    """True if a source counts as images: a known set, a folder, an IDX file, or parquet with encoded images."""
    path = Path(source)
    if source in KNOWN_SETS or path.is_dir():
        return True
    if not path.is_file() or path.suffix.lower() in _TABLES:
        return False
    return image_columns(path) is not None if path.suffix.lower() == ".parquet" else is_idx(path)


def collect(source: str, side: int | None = None, data_dir: Path | None = None) -> Collection:
    """Read labeled images.

    Args:
        source: a known set's name, a folder with a sub-folder for each class, or with IDX or parquet files, or such a
            file.
        side: of the squares; None for one that suits the images (`common_side`).
        data_dir: folder with the files of a known set; None to search for it.

    Returns:
        The images.

    Raises:
        SennError: there aren't two classes of two images each, or a source is damaged as a whole.
    """
    if source in KNOWN_SETS:
        loaded = load_images(source, data_dir)
        return _resized(
            Collection(name=source, classes=loaded.classes, train=loaded.train, test=loaded.test),
            side,
        )
    path = Path(source)
    files = sorted(path.iterdir()) if path.is_dir() and is_flat(path) else [path]
    name = path.resolve().name if path.is_dir() else path.name.partition(".")[0]
    # parquet first: a folder of it may hold other files as well
    if any(file.suffix.lower() == ".parquet" for file in files):
        return _checked(
            _parquet(name, [file for file in files if file.suffix.lower() == ".parquet"], side)
        )
    idx = [file for file in files if file.is_file() and is_idx(file)]
    if idx:
        return _checked(_resized(_idx(name, idx), side))
    root = innermost(path) if path.is_dir() else path
    parts = part_folders(root) if root.is_dir() else None
    found = _checked(_folder(root, side) if parts is None else _folders(root, parts, side))
    if root == path:
        return found
    note = f"the images are those in {str(root.relative_to(path))!r}, the only folder"
    return replace(found, name=name, notes=(note, *found.notes))


def is_flat(folder: Path) -> bool:
    """True if a folder has no sub-folders, but files that hold many images each.

    Args:
        folder: that exists.
    """
    try:
        inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError:
        return False
    many = any(
        path.suffix.lower() == ".parquet" or (path.is_file() and is_idx(path)) for path in inside
    )
    return many and not any(path.is_dir() for path in inside)


def _checked(found: Collection) -> Collection:
    """Check that there are two classes of two images each."""
    if len(found.classes) < 2:
        raise SennError(
            f"{found.name!r} holds a single class ({found.classes[0]!r}); at least two are needed"
        )
    check_classes(found.classes, found.train.labels, found.left_out)
    return found


def _folder(root: Path, side: int | None) -> Collection:
    classes, n_loose = class_folders(root)
    entries = [
        Entry(str(path.relative_to(root)), path) for files in classes.values() for path in files
    ]
    labels = np.repeat(np.arange(len(classes)), [len(files) for files in classes.values()])
    images, left_out = _decoded(entries, labels, side)
    plural = "s" * (n_loose > 1)
    notes = (
        (f"{n_loose:,} file{plural} beside the folders of the classes left alone",)
        if n_loose
        else ()
    )
    return Collection(
        name=root.resolve().name,
        classes=tuple(classes),
        train=images,
        left_out=left_out,
        notes=notes,
    )


def _folders(root: Path, parts: PartFolders, side: int | None) -> Collection:
    """Read a set whose parts lie in folders of their own."""
    found = _folder(parts.train, side)
    side = found.train.pixels.shape[1]
    left_out, notes = [*found.left_out], [*found.notes]
    read: dict[str, Any] = {}
    for name, folder in (("validation", parts.validation), ("test", parts.test)):
        made = None if folder is None else read_part(folder, found.classes, side)
        if made is not None and len(made[0]):
            read[name] = made[0]
            left_out += made[1]
        elif folder is not None:
            notes.append(
                f"{folder.name!r} is left alone: it holds no images in folders of the classes"
            )
    return replace(
        found,
        name=root.resolve().name,
        validation=read.get("validation"),
        test=read.get("test"),
        left_out=tuple(left_out),
        notes=tuple(notes),
    )


def read_part(
    folder: Path, classes: Sequence[str], side: int, channels: int = 3
) -> tuple[Images, tuple[LeftOut, ...]] | None:
    """Read the images of one part.

    Args:
        folder: with a sub-folder for each class.
        classes: names by label; others are refused.
        side: of the squares.
        channels: 1 (gray) or 3.

    Returns:
        The images, and those left out; None if the folder has no folders of classes.
    """
    entries, labels = part_entries(folder, classes)
    if not entries:
        return None
    return _decoded(entries, np.array(labels, np.int64), side, channels)


def _decoded(
    entries: Sequence[Entry], labels: NDArray[np.int64], side: int | None, channels: int = 3
) -> tuple[Images, tuple[LeftOut, ...]]:
    made = squares(entries, side_of(entries) if side is None else side, channels)
    return Images(made.pixels, labels[made.rows].astype(np.int64)), made.left_out


def _resized(found: Collection, side: int | None) -> Collection:
    """Resize images, which all have one size, to squares."""
    height, width, channels = found.train.pixels.shape[1:]
    side = common_side([(width, height)]) if side is None else side
    if (height, width) == (side, side):
        return found

    def resize(images: Images) -> Images:
        return Images(
            np.stack([square(image, side, channels) for image in images.pixels]), images.labels
        )

    return replace(
        found, train=resize(found.train), test=None if found.test is None else resize(found.test)
    )


def _named(
    parts: Sequence[NDArray[np.int64]], names: Sequence[str] | None
) -> tuple[tuple[str, ...], list[Any]]:
    """Name the classes, and number the labels of each part from 0 in their order."""
    # labels may start at 1 or have gaps; a network's outputs are 0 to C - 1
    numbers = np.unique(parts[0])
    for labels in parts[1:]:
        strange = sorted(set(np.unique(labels)) - set(numbers))
        if strange:
            raise SennError(
                f"class {strange[0]} is in the test images but not in those to train on"
            )
    known = names is not None and len(numbers) and numbers[0] >= 0 and numbers[-1] < len(names)
    found = tuple(names[number] if known and names else str(number) for number in numbers)
    return found, [np.searchsorted(numbers, labels).astype(np.int64) for labels in parts]


# -- IDX


def _idx(name: str, images: list[Path]) -> Collection:
    """Read files of images, each with one of labels next to it; test files are recognized by their names."""
    pairs = [(path, _labels_of(path)) for path in images]
    parts = _split_by_name(images)
    read = [
        read_labeled_idx(*next(pair for pair in pairs if pair[0] == files[0])) for files in parts
    ]
    # a network reads one size, and two files may be of different sets
    if len({images.pixels.shape[1:] for images in read}) > 1:
        raise SennError(f"the training and test images of {name!r} differ in size")
    if not len(read[0]):
        raise SennError(f"{str(parts[0][0])!r} holds no images")
    classes, labels = _named([images.labels for images in read], None)
    made = [Images(images.pixels, numbers) for images, numbers in zip(read, labels, strict=True)]
    test = made[1] if len(made) > 1 else None
    return Collection(name=name, classes=classes, train=made[0], test=test)


def _labels_of(images: Path) -> Path:
    """Find the file of labels next to one of images: "labels" for "images" in its name, 1 dimension for 3."""
    name = images.name.replace("images", "labels").replace("idx3", "idx1")
    for path in (
        images.with_name(name),
        images.with_name(name.removesuffix(".gz")),
        images.with_name(f"{name}.gz"),
    ):
        if path != images and path.is_file():
            return path
    raise SennError(f"{str(images)!r} holds images, but there are no labels in {name!r} beside it")


def _split_by_name(files: Sequence[Path]) -> list[list[Path]]:
    """Divide files into training and test files by name; without both, all are for training (IDX: a single one)."""
    train = [path for path in files if _TRAIN.match(path.name)]
    test = [path for path in files if _TEST.match(path.name)]
    # all or none: a file that is neither would silently be left out
    if train and test and len(train) + len(test) == len(files):
        return [train, test]
    if len(files) > 1 and files[0].suffix.lower() != ".parquet":
        names = ", ".join(path.name for path in files)
        raise SennError(
            f"there are {len(files)} files of images, not told apart as train and test by name: {names}"
        )
    return [list(files)]


# -- parquet


def _parquet(name: str, files: Sequence[Path], side: int | None) -> Collection:
    parts = [list(_labeled_rows(part)) for part in _split_by_name(files)]
    classes, labels = _named(
        [np.array([label for _, label in part], np.int64) for part in parts], _class_names(files)
    )
    if not parts[0]:
        raise SennError(f"{str(files[0])!r} holds no images")
    entries = [[entry for entry, _ in part] for part in parts]
    # the training images decide, so that test images can't change the network
    side = side_of(entries[0]) if side is None else side
    made = [_decoded(one, numbers, side) for one, numbers in zip(entries, labels, strict=True)]
    left_out = tuple(one for _, group in made for one in group)
    test = made[1][0] if len(made) > 1 else None
    return Collection(name=name, classes=classes, train=made[0][0], test=test, left_out=left_out)


def _labeled_rows(files: Sequence[Path]) -> Iterator[tuple[Entry, int]]:
    for path in files:
        columns = image_columns(path)
        if columns is None:
            raise SennError(
                f"{str(path)!r} has no column of encoded images beside one of whole numbers, the labels"
            )
        yield from (
            (Entry(name, content or b""), label)
            for name, content, label in encoded_rows(path, *columns)
        )


def _class_names(files: Sequence[Path]) -> list[str] | None:
    """Read the names of the classes from the metadata that the Hugging Face hub writes."""
    with reading(files[0], "parquet"):
        metadata = pq.read_schema(files[0]).metadata or {}
    columns = image_columns(files[0])
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][
            columns[1] if columns else ""
        ]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return names if isinstance(names, list) and all(isinstance(one, str) for one in names) else None
