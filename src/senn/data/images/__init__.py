"""Sets of labelled images: read safely from their public formats, decoded once, kept memory-mapped."""

from senn.data.images.arrays import Images, ImageSet
from senn.data.images.encoded import decode, read_parquet
from senn.data.images.idx import read_idx, read_labelled_idx
from senn.data.images.sets import SOURCES, load_images
from senn.data.images.tensors import planes

__all__ = [
    "SOURCES",
    "ImageSet",
    "Images",
    "decode",
    "load_images",
    "planes",
    "read_idx",
    "read_labelled_idx",
    "read_parquet",
]
