"""Small folders of photos of two kinds."""

import numpy as np
from PIL import Image


def stripes(count, side=12, seed=0):
    """Images (n, side, side, 3) of horizontal (class 0) and vertical (class 1) stripes with noise, and labels."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    wave = 60 * ((np.arange(side) // 2) % 2) + 60
    images = np.where(labels[:, None, None] == 0, wave[None, :, None], wave[None, None, :])[
        ..., None
    ]
    return (images + draw.integers(0, 40, (count, side, side, 3))).astype(np.uint8), labels


def folder_of(root, count=40, **options):
    pixels, labels = stripes(count, **options)
    for name in ("across", "down"):
        (root / name).mkdir(parents=True)
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        Image.fromarray(image).save(root / ("across", "down")[label] / f"{number:03}.png")
    return root
