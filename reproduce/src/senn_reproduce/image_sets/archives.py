"""Sets as they are published: MNIST's IDX files, CIFAR-10's binary tar, Tiny-ImageNet's zip.

Entries of archives are read by name; nothing is unpacked.
"""

from __future__ import annotations

import gzip
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from senn.data.images.encoded import decode_all
from senn.data.images.idx import read_labeled_idx
from senn.data.images.image_arrays import Expected, Images, ImageSet, reading
from senn.errors import SennError

MOST_ENTRY_BYTES = 2**24
"""Bytes of one text or image in a zip, at most."""

_RECORDS = 10_000
_CIFAR = {"train": tuple(f"data_batch_{n}.bin" for n in range(1, 6)), "test": ("test_batch.bin",)}


def check_names(path: Path, names: list[str]) -> None:
    """Refuse an archive with entries that would lie outside it, or two of one name.

    Args:
        path: of the archive.
        names: of its entries.

    Raises:
        SennError: naming the first such entry.
    """
    seen: set[str] = set()
    for name in names:
        if (
            name.startswith("/")
            or "\\" in name
            or "\0" in name
            or ".." in name.split("/")
            or re.match(r"\w:", name)
        ):
            raise SennError(f"{str(path)!r} has an entry that leads out of it, {name!r}")
        if name in seen:
            raise SennError(f"{str(path)!r} has two entries named {name!r}")
        seen.add(name)


def read_cifar_binary(files: dict[str, tuple[Path, ...]], expected: Expected) -> ImageSet:
    """Read CIFAR-10 in its binary version, `cifar-10-binary.tar.gz`: records of a label and three planes of bytes.

    Args:
        files: paths of the files by role.
        expected: what the set must hold.

    Returns:
        The set.

    Raises:
        SennError: if the file can't be read or holds anything else than what is expected.
    """
    (path,) = files["archive"]
    height, width, channels = expected.shape
    record = 1 + height * width * channels
    found: dict[str, bytes] = {}
    with (
        reading(path, "a gzipped tar"),
        gzip.open(path) as stream,
        tarfile.open(fileobj=stream, mode="r:") as archive,
    ):
        for member in archive:
            check_names(path, [member.name])
            name = PurePosixPath(member.name).name
            if name not in (*_CIFAR["train"], *_CIFAR["test"]):
                continue
            if (
                not member.isreg()
                or name in found
                or member.size > _RECORDS * record
                or member.size % record
            ):
                raise SennError(
                    f"entry {member.name!r} of {str(path)!r} isn't a batch of images of {expected.name}"
                )
            content = archive.extractfile(member)
            found[name] = content.read() if content else b""
        while stream.read(2**20):  # to the end, where the sum over all of it is checked
            pass
    parts = {}
    for part, names in _CIFAR.items():
        missing = [name for name in names if name not in found]
        if missing:
            raise SennError(f"{str(path)!r} has no entry {missing[0]!r}")
        rows = np.frombuffer(b"".join(found.pop(name) for name in names), np.uint8).reshape(
            -1, record
        )
        pixels = rows[:, 1:].reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
        parts[part] = Images(np.ascontiguousarray(pixels), rows[:, 0].astype(np.int64))
        expected.check(part, parts[part], repr(str(path)))
    return ImageSet(expected.name, "binary", expected.classes, **parts)


class _Zip:
    """Entries of a zip below its one top folder."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self._archive = path, archive
        check_names(path, archive.namelist())
        roots = {name.split("/")[0] for name in archive.namelist()}
        if len(roots) != 1:
            raise SennError(f"{str(path)!r} has {len(roots)} entries at its top, not one folder")
        (self._root,) = roots
        self._info = {
            info.filename.removeprefix(f"{self._root}/"): info for info in archive.infolist()
        }

    def read(self, name: str) -> bytes:
        """Read the bytes of an entry."""
        info = self._info.get(name)
        if info is None:
            raise SennError(f"{str(self.path)!r} has no entry {self._root}/{name}")
        if info.file_size > MOST_ENTRY_BYTES:
            raise SennError(
                f"entry {info.filename!r} of {str(self.path)!r} has {info.file_size:,} bytes, over the limit of "
                f"{MOST_ENTRY_BYTES:,}"
            )
        return self._archive.read(info)

    def lines(self, name: str) -> list[list[str]]:
        """Read the lines of a text, cut at tabs."""
        return [line.split("\t") for line in self.read(name).decode().splitlines() if line.strip()]

    def images(self, names: list[str]) -> Iterator[tuple[str, bytes]]:
        """Description and bytes of each entry."""
        for name in names:
            yield f"entry {name!r} of {str(self.path)!r}", self.read(name)

    def names(self, pattern: str) -> list[tuple[str, str]]:
        """Entries that match a regular expression of one group, sorted, with what the group matched."""
        found = ((name, re.fullmatch(pattern, name)) for name in sorted(self._info))
        return [(name, match[1]) for name, match in found if match]


def read_tiny_imagenet(files: dict[str, tuple[Path, ...]], expected: Expected) -> ImageSet:
    """Read the expected classes of Tiny-ImageNet, from a zip of all 200 or of fewer.

    `expected.classes` are WordNet ids; the set's are words. Training images come class by class.

    Args:
        files: paths of the files by role.
        expected: what the set must hold.

    Returns:
        The set.

    Raises:
        SennError: if the file can't be read or holds anything else than what is expected.
    """
    (path,) = files["archive"]
    with reading(path, "a zip"), zipfile.ZipFile(path) as archive:
        entries = _Zip(path, archive)
        words = {line[0]: line[-1].split(",")[0] for line in entries.lines("words.txt")}
        label = {wnid: at for at, wnid in enumerate(expected.classes)}
        named = {
            "train": entries.names(r"train/(n\d+)/images/[^/]+\.JPEG"),
            "test": [
                (f"val/images/{line[0]}", line[1])
                for line in entries.lines("val/val_annotations.txt")
            ],
        }
        parts = {}
        for part, pairs in named.items():
            kept = [(name, label[wnid]) for name, wnid in pairs if wnid in label]
            expected.check_count(part, len(kept), repr(str(path)))
            pixels = decode_all(
                entries.images([name for name, _ in kept]), len(kept), expected.shape
            )
            parts[part] = Images(pixels, np.array([at for _, at in kept], np.int64))
            expected.check(part, parts[part], repr(str(path)))
    return ImageSet(
        expected.name, "zip", tuple(words.get(wnid, wnid) for wnid in expected.classes), **parts
    )


def read_idx_set(files: dict[str, tuple[Path, ...]], expected: Expected) -> ImageSet:
    """Read a set in four IDX files.

    Args:
        files: paths of the files by role.
        expected: what the set must hold.

    Returns:
        The set.

    Raises:
        SennError: if a file can't be read or holds anything else than what is expected.
    """
    parts = {}
    for part in ("train", "test"):
        (images,), (labels,) = files[f"{part} images"], files[f"{part} labels"]
        parts[part] = read_labeled_idx(images, labels)
        expected.check(part, parts[part], repr(str(images)))
    return ImageSet(expected.name, "IDX", expected.classes, **parts)
