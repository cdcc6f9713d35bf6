"""Images as arrays of planes, channels first, as a network reads them, or flat, as a linear model does."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from senn.data.images.image_arrays import Images


def planes(images: Images, side: int | None = None) -> NDArray[np.uint8]:
    """Convert images to planes.

    Args:
        images: (N, H, W, C).
        side: to resize them to, averaged over boxes; None to keep their size.

    Returns:
        (N, C, side, side).
    """
    pixels = images.pixels
    if side is None or pixels.shape[1:3] == (side, side):
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    kept = np.empty((len(pixels), pixels.shape[3], side, side), np.uint8)
    for row, image in enumerate(pixels):
        source = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        # boxes, as in `folders.square`: each pixel counts
        resized = np.asarray(source.resize((side, side), Image.Resampling.BOX))
        kept[row] = resized[None] if resized.ndim == 2 else resized.transpose(2, 0, 1)
    return kept


def flat(images: Images) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return pixels (N, numbers) from 0 to 1 and classes, for linear models.

    Args:
        images: (N, H, W, C).
    """
    pixels = images.pixels.reshape(len(images.pixels), -1)
    return pixels.astype(np.float32) / 255, np.asarray(images.labels)
