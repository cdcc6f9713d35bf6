"""Pixels of an opened image as upright 8-bit RGB, whatever mode it is stored in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from senn.errors import SennError

# "I" and "F" (32 bits) have no range that could become 0 to 255.
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "La", "RGBa"})
_GRAY_16 = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_STRIP = 1 << 20
"""Pixels that are converted at a time: each takes some 12 bytes on the way, which adds up to gigabytes for a whole
picture of 64 megapixels."""
_BITS, _PHOTOMETRIC, _MOST = 258, 262, 281
"""Tags of TIFF: bits of a value, what zero means, the largest value."""


def upright_rgb(image: Image.Image, where: str) -> NDArray[np.uint8]:
    """Convert an opened image to RGB, turned upright, with transparent parts on white.

    Gray values of 16 bits are scaled from their whole range, or that which a TIFF file names, to 0 to 255.

    Args:
        image: the opened image; changed.
        where: its name, for messages.

    Returns:
        (H, W, 3).

    Raises:
        SennError: its mode has no range.
    """
    if image.mode not in _MODES | _GRAY_16:
        raise SennError(
            f"{where} is an image of mode {image.mode}, whose values have no range to take as 0 to 255"
        )
    white = _white(image) if image.mode in _GRAY_16 else 0
    image.load()
    # cameras store a turned picture as it came, with a tag for the rotation
    ImageOps.exif_transpose(image, in_place=True)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _STRIP // max(1, image.width))
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[top : top + rows] = _gray(strip, white) if white else _rgb(strip)
    return pixels


def _rgb(strip: Image.Image) -> NDArray[Any]:
    if strip.has_transparency_data:
        # convert("RGB") alone would uncover the color below transparent pixels, which is arbitrary.
        layer = strip.convert("RGBA")
        strip = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.asarray(strip.convert("RGB"))


def _white(image: Image.Image) -> int:
    """Return the value that means white, negative where zero does and it means black."""
    tags: Any = getattr(image, "tag_v2", {})
    bits, named = tags.get(_BITS, (16,)), tags.get(_MOST)
    most = int(named[0] if isinstance(named, tuple) else named or 2 ** int(bits[0]) - 1)
    most = min(max(most, 1), 65_535)
    return -most if tags.get(_PHOTOMETRIC) == 0 else most


def _gray(strip: Image.Image, white: int) -> NDArray[Any]:
    """Scale gray values of 16 bits to 0 to 255, rounded."""
    # Pillow's own conversion clips everything above 255 to white.
    values = np.asarray(strip).astype(np.int64)
    most = abs(white)
    scaled = (np.minimum(values, most) * 255 + most // 2) // most
    scaled = 255 - scaled if white < 0 else scaled
    clear = strip.info.get("transparency")
    if isinstance(clear, int):
        scaled = np.where(values == clear, 255, scaled)
    return scaled[..., None]
