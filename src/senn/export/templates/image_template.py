"""Image files as a network's inputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps


def encode(paths: Sequence[str | Path], known: dict[str, Any]) -> torch.Tensor:
    """Return images as standardized (N, C, side, side) numbers.

    Args:
        paths: of the files.
        known: what preprocessing.json holds.
    """
    pixels = np.stack([_square(path, known["side"], known["channels"]) for path in paths])
    mean, std = (torch.tensor(known[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float()
    return (x - 255 * mean) * (1 / (255 * std))


def _square(path: str | Path, side: int, channels: int) -> Any:
    """Return the middle of an image, (side, side, C) bytes: upright, on white if transparent."""
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    image = image.convert("RGB")
    if image.size != (side, side) or channels == 1:
        image = image.convert("L" if channels == 1 else "RGB")
        shrinks = min(image.size) > side
        method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
        image = ImageOps.fit(image, (side, side), method)
    return np.asarray(image).reshape(side, side, channels)
