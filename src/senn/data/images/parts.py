"""Parts of a set of images in folders of their own: train, validation and test, each with a folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from senn.data.images.folders import Entry, files_in, is_foreign
from senn.errors import SennError

_NAMES = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PartFolders:
    """Folders of the parts of a set.

    Attributes:
        train: folder of the training images.
        validation: folder of the images that decide when to stop; None for none.
        test: folder of the test images; None for none.
    """

    train: Path
    validation: Path | None = None
    test: Path | None = None


def part_folders(root: Path) -> PartFolders | None:
    """Find the parts of a set in a folder: `train` beside `val`, `valid`, `validation` or `test`, in any case.

    Args:
        root: the folder.

    Returns:
        The parts; None where the folder is laid out otherwise.

    Raises:
        SennError: two folders are the same part.
    """
    found: dict[str, Path] = {}
    for path in _folders(root):
        part = _NAMES.get(path.name.lower())
        if part is None:
            return None
        if part in found:
            raise SennError(
                f"{str(root)!r} has two folders for one part, {found[part].name!r} and {path.name!r}"
            )
        found[part] = path
    if "train" not in found or len(found) < 2 or not _folders(found["train"]):
        return None
    return PartFolders(**found)


def _folders(root: Path) -> list[Path]:
    try:
        inside = sorted(path for path in root.iterdir() if path.is_dir())
    except OSError as error:
        raise SennError(
            f"the folder {str(root)!r} can't be read: {error.strerror or error}"
        ) from error
    return [path for path in inside if not is_foreign(path.name)]


def part_entries(folder: Path, classes: Sequence[str]) -> tuple[list[Entry], list[int]]:
    """List the files of a part, by classes that are known from the training images.

    Args:
        folder: with a folder for each class; classes may be missing.
        classes: names by label.

    Returns:
        The files, and the label of each; none if there are no folders, as in an unlabeled part.

    Raises:
        SennError: a folder is of no known class.
    """
    entries: list[Entry] = []
    labels: list[int] = []
    for place in _folders(folder):
        if place.name not in classes:
            raise SennError(
                f"class {place.name!r} in {str(folder)!r} isn't among those to train on: "
                f"{', '.join(map(repr, classes[:8]))}"
            )
        files = files_in(place)
        entries += [Entry(str(path.relative_to(folder.parent)), path) for path in files]
        labels += [classes.index(place.name)] * len(files)
    return entries, labels
