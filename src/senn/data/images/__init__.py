"""Sets of labeled images: read safely from their public formats, decoded once, kept memory-mapped."""

from typing import TYPE_CHECKING

from senn import _deprecated
from senn._extras import importing

with importing("senn.data.images", "cli"):
    from senn.data.images.collection import Collection, collect, is_images
    from senn.data.images.encoded import decode, read_parquet
    from senn.data.images.idx import read_idx, read_labeled_idx
    from senn.data.images.image_arrays import Images, ImageSet
    from senn.data.images.image_encoder import ImageEncoder
    from senn.data.images.known_classes import collect_more, collect_test
    from senn.data.images.known_sets import KNOWN_SETS, load_images
    from senn.data.images.planes import flat, planes

__all__ = [
    "KNOWN_SETS",
    "Collection",
    "ImageEncoder",
    "ImageSet",
    "Images",
    "collect",
    "collect_more",
    "collect_test",
    "decode",
    "flat",
    "is_images",
    "load_images",
    "planes",
    "read_idx",
    "read_labeled_idx",
    "read_parquet",
]

if not TYPE_CHECKING:
    __getattr__ = _deprecated.old_names(__name__)
