"""The known sets: in which files they come, what they must hold, and where they are published."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from senn.data.images.encoded import read_parquet_set
from senn.data.images.image_arrays import Expected, ImageSet, reading
from senn.errors import SennError
from senn_reproduce.image_sets.archives import read_cifar_binary, read_idx_set, read_tiny_imagenet
from senn_reproduce.image_sets.download import Download, fetch
from senn_reproduce.image_sets.set_cache import cache_folder, cached

Files = dict[str, tuple[Path, ...]]


@dataclass(frozen=True)
class Form:
    """One format that a set comes in.

    Attributes:
        patterns: for each role that a file has, what its name looks like.
        read: makes the set of the files of each role.
        several: whether a role may have more than one file.
    """

    patterns: Mapping[str, str]
    read: Callable[[Files, Expected], ImageSet]
    several: bool = False


@dataclass(frozen=True)
class Source:
    """A set of images.

    Attributes:
        expected: what it must hold.
        forms: the formats that it is read from, the first being preferred.
        downloads: its public files, which are one of the forms.
    """

    expected: Expected
    forms: tuple[Form, ...]
    downloads: tuple[Download, ...]


_OBJECTS = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_ANIMALS = (
    "n01443537 n01629819 n01641577 n01644900 n01698640 n01742172 n01768244 n01770393 n01774384 n01774750 "
    "n01784675 n01855672 n01882714 n01910747 n01917289 n01944390 n01945685 n01950731 n01983481 n01984695 "
    "n02002724 n02056570 n02058221 n02074367 n02085620 n02094433 n02099601 n02099712 n02106662 n02113799 "
    "n02123045 n02123394 n02124075 n02125311 n02129165 n02132136 n02165456 n02190166 n02206856 n02226429 "
    "n02231487 n02233338 n02236044 n02268443 n02279972 n02281406 n02321529 n02364673 n02395406 n02403003"
)
_MNIST_FORM = Form(
    {
        "train images": "train-images-idx3-ubyte*",
        "train labels": "train-labels-idx1-ubyte*",
        "test images": "t10k-images-idx3-ubyte*",
        "test labels": "t10k-labels-idx1-ubyte*",
    },
    read_idx_set,
)
_MNIST_FILES = {
    "train-images-idx3-ubyte.gz": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "md5:d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "md5:9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "md5:ec29112dd5afa0611ce80d1b7f02629c",
}

SOURCES: dict[str, Source] = {
    "mnist": Source(
        Expected("mnist", (28, 28, 1), {"train": 60_000, "test": 10_000}, tuple("0123456789")),
        (_MNIST_FORM,),
        tuple(
            Download(f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}", md5)
            for name, md5 in _MNIST_FILES.items()
        ),
    ),
    "cifar-10": Source(
        Expected("cifar-10", (32, 32, 3), {"train": 50_000, "test": 10_000}, _OBJECTS),
        (
            Form(
                {"train": "train*.parquet", "test": "test*.parquet"}, read_parquet_set, several=True
            ),
            Form({"archive": "cifar-10-binary*.tar.gz"}, read_cifar_binary),
        ),
        (
            Download(
                "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                "md5:c32a1d4ab5d03f1284b67883e8d87530",
            ),
        ),
    ),
    # Of Tiny-ImageNet the first 50 of the 200 classes, all of them animals.
    "tiny-imagenet": Source(
        Expected(
            "tiny-imagenet", (64, 64, 3), {"train": 25_000, "test": 2_500}, tuple(_ANIMALS.split())
        ),
        (Form({"archive": "tiny-imagenet-200*.zip"}, read_tiny_imagenet),),
        (
            Download(
                "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                "md5:90528d7ca1a48142e341f4ef8d21d0de",
            ),
        ),
    ),
}


def load_images(
    source: str | Source, data_dir: str | Path | None = None, cache_dir: str | Path | None = None
) -> ImageSet:
    """Load a set of labeled images: checked, decoded once, memory-mapped from the cache (its arrays are read-only).

    Args:
        source: "mnist" (28 x 28 x 1), "cifar-10" (32 x 32 x 3) or "tiny-imagenet" (64 x 64 x 3, 50 classes), or
            another source.
        data_dir: a folder with the set's files, or with a sub-folder of the set's name that holds them; else the
            environment variable `SENN_DATA`; if that isn't set either, the set is downloaded into the cache.
        cache_dir: for decoded and downloaded sets; else the environment variable `SENN_CACHE`, or the platform's
            folder for a user's caches.

    Raises:
        SennError: if there is no such set, or its files are missing, damaged, or hold anything else, or a folder
            can't be read or written.
    """
    if isinstance(source, str):
        if source not in SOURCES:
            raise SennError(f"there are no images {source!r}, but {', '.join(map(repr, SOURCES))}")
        source = SOURCES[source]
    name = source.expected.name
    cache = cache_folder() if cache_dir is None else Path(cache_dir)
    given = data_dir or os.environ.get("SENN_DATA")
    if given:
        folder = Path(given).expanduser()
        folder = folder / name if name in _listed(folder) else folder
    else:
        folder = cache / "downloads" / name
        fetch(name, source.downloads, folder)
    form, files = _find(source, folder)
    every = [path for role in form.patterns for path in files[role]]
    for path in every:
        with reading(path, "a file"):
            path.stat()
    return cached(cache, name, every, lambda: form.read(files, source.expected))


def _listed(folder: Path) -> list[str]:
    """Names in a folder, sorted."""
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise SennError(
            f"the data folder {str(folder)!r}, from --data-dir or SENN_DATA, can't be read: {error.strerror}"
        ) from error


def _find(source: Source, folder: Path) -> tuple[Form, Files]:
    """Find the first form of which all files are in the folder, and these."""
    listed = _listed(folder)
    lacking: list[list[str]] = []
    for form in source.forms:
        files = {
            role: tuple(folder / name for name in listed if fnmatch(name, pattern))
            for role, pattern in form.patterns.items()
        }
        lacking.append([pattern for role, pattern in form.patterns.items() if not files[role]])
        if lacking[-1]:
            continue
        for role, found in files.items():
            if len(found) > 1 and not form.several:
                names = ", ".join(path.name for path in found)
                raise SennError(
                    f"{str(folder)!r} has {len(found)} files that could be the {role}: {names}"
                )
        return form, files
    needs = " or ".join(" and ".join(patterns) for patterns in lacking)
    raise SennError(
        f"{str(folder)!r} lacks {needs} for {source.expected.name}; name the folder that holds them in --data-dir "
        "or SENN_DATA, or leave both out to download the set"
    )
