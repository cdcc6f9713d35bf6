"""Decoded sets on disk: arrays that are memory-mapped, made anew when their source or they themselves have changed."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from senn.data.images.image_arrays import Images, ImageSet, check_labels
from senn.errors import SennError

VERSION = 1
"""To be raised when the same files would be decoded otherwise."""

_INDEX = "set.json"
_NEW = ".new-"
_ABANDONED = 3600  # seconds after which what another run was writing isn't being written any more


def cache_folder() -> Path:
    """Return the folder for decoded and downloaded sets: `SENN_CACHE`, or the platform's own for a user's caches.

    Raises:
        SennError: if there is neither.
    """
    if os.environ.get("SENN_CACHE"):
        return Path(os.environ["SENN_CACHE"]).expanduser()
    try:
        import pooch
    except ImportError as error:
        raise SennError(
            "without the environment variable SENN_CACHE, images need pooch: install senn[reproduce]"
        ) from error
    return Path(pooch.os_cache("senn"))


def cached(
    folder: Path, name: str, files: Sequence[Path], make: Callable[[], ImageSet]
) -> ImageSet:
    """Return the set that `make` reads from files, from the cache if it is there; memory-mapped and read-only.

    An entry belongs to the paths of the files, and holds for their sizes and times; its arrays must have the sums
    that were noted when they were written. Any other entry is replaced.

    Args:
        folder: of the cache.
        name: of the set.
        files: what it is read from.
        make: reads it.

    Raises:
        SennError: from `make`, or if the cache can't be written.
    """
    paths = [path.resolve() for path in files]
    entry = folder / "images" / f"{name}-{hashlib.sha256(repr(paths).encode()).hexdigest()[:16]}"
    key = [VERSION, *([str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths)]
    found = _open(entry, key)
    if found is None:
        made = make()
        try:
            _write(entry, key, made)
        except OSError as error:
            reason = error.strerror or error
            raise SennError(
                f"the cache {str(entry)!r} can't be written ({reason}); "
                "name another folder in the environment variable SENN_CACHE"
            ) from error
        found = _open(entry, key)
    if found is None:
        raise SennError(
            f"the cache {str(entry)!r} changed while it was written; load the images again"
        )
    return found


def _open(entry: Path, key: list[Any]) -> ImageSet | None:
    """Open the set of an entry; None if it isn't there, stale or damaged."""
    try:
        index = json.loads((entry / _INDEX).read_text())
        if index["key"] != key:
            return None
        parts = {
            part: Images(*(_array(entry, array) for array in arrays))
            for part, arrays in index["parts"].items()
        }
        for images in parts.values():
            check_labels(images, len(index["classes"]), str(entry))
        return ImageSet(index["name"], index["form"], tuple(index["classes"]), **parts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _array(entry: Path, array: dict[str, str]) -> NDArray[Any]:
    path = entry / Path(array["file"]).name
    if _sum(path) != array["sha256"]:
        raise ValueError
    found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return found


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(entry: Path, key: list[Any], made: ImageSet) -> None:
    """Write each file under a new name, then rename it; the index last, so that no entry is incomplete."""
    entry.mkdir(parents=True, exist_ok=True)
    for left in entry.glob(f"{_NEW}*"):
        if time.time() - left.stat().st_mtime > _ABANDONED:
            left.unlink(missing_ok=True)
    parts: dict[str, list[dict[str, str]]] = {}
    for part, images in (("train", made.train), ("test", made.test)):
        parts[part] = [
            _put(entry, f"{part}-{what}.npy", array)
            for what, array in (("pixels", images.pixels), ("labels", images.labels))
        ]
    index = {
        "key": key,
        "name": made.name,
        "form": made.form,
        "classes": made.classes,
        "parts": parts,
    }
    _put(entry, _INDEX, json.dumps(index, indent=1).encode())


def _put(entry: Path, name: str, content: NDArray[Any] | bytes) -> dict[str, str]:
    handle, new = tempfile.mkstemp(dir=entry, prefix=_NEW)
    try:
        with os.fdopen(handle, "wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                np.save(file, content, allow_pickle=False)
        described = {"file": name, "sha256": _sum(Path(new))}
        os.replace(new, entry / name)
    except BaseException:
        Path(new).unlink(missing_ok=True)
        raise
    return described
