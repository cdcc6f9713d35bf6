"""Public image sets that are known by name; the package `senn_reproduce` reads them."""

from __future__ import annotations

from pathlib import Path

from senn._extras import reproduce_module
from senn.data.images.image_arrays import ImageSet

KNOWN_SETS = ("mnist", "cifar-10", "tiny-imagenet")


def load_images(
    source: str, data_dir: str | Path | None = None, cache_dir: str | Path | None = None
) -> ImageSet:
    """Load a public set of labeled images: checked, decoded once, memory-mapped (its arrays are read-only).

    Needs `pip install 'senn[reproduce]'`.

    Args:
        source: "mnist" (28 x 28 x 1), "cifar-10" (32 x 32 x 3) or "tiny-imagenet" (64 x 64 x 3, 50 classes).
        data_dir: a folder with the set's files, or with a sub-folder of the set's name that holds them; else the
            environment variable `SENN_DATA`; if that isn't set either, the set is downloaded into the cache.
        cache_dir: for decoded and downloaded sets; else the environment variable `SENN_CACHE`, or the platform's
            folder for a user's caches.

    Returns:
        The training and test images.

    Raises:
        SennError: if `senn_reproduce` isn't installed, there is no such set, its files are missing, damaged, or hold
            anything else, or a folder can't be read or written.
    """
    found: ImageSet = reproduce_module("image_sets", f"the image set {source!r}").load_images(
        source, data_dir, cache_dir
    )
    return found
