"""Public sets of labeled images: found in a folder or downloaded, checked, decoded once, memory-mapped."""

from senn_reproduce.image_sets.sources import SOURCES, load_images

__all__ = ["SOURCES", "load_images"]
