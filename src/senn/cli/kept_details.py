"""What a run keeps of its test beside the scores (`test.json`): for pictures in the report, and for `senn evaluate`."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from senn.cli.baselines import Guess, LinearModel
from senn.cli.score_lines import CONSTANT, LINEAR
from senn.cli.scorer import Scorer
from senn.events.run_schema import TestDetails, WrongImage

MOST_PAIRS = 1000
"""Test rows whose numbers are kept to be drawn."""
MOST_IMAGES = 12
"""Wrong images that are kept."""
MOST_WEIGHTS = 100_000
"""Numbers of a linear model that is kept, at most: JSON has some twenty bytes for each."""
_SIDE = 96
"""Pixels of the side of an image that is kept, at most."""
_PLAIN_BYTES = 4096
"""Bytes up to which an image is kept without loss."""


def kept_details(
    scorer: Scorer,
    predictions: NDArray[Any],
    truth: NDArray[Any],
    guesses: Mapping[str, Guess],
    pixels: NDArray[np.uint8] | None,
    mean: float = 0.0,
) -> TestDetails:
    """Choose what is kept of a test.

    Args:
        scorer: of the run.
        predictions: (rows, classes) probabilities, or (rows, 1) standardized numbers.
        truth: encoded targets of the rows.
        guesses: baselines by name.
        pixels: (rows, side, side, channels) the images that were tested; None for a table.
        mean: of the training rows' targets, for numbers.

    Returns:
        JSON-able record.
    """
    details: TestDetails = {
        "pairs": None,
        "wrong": None,
        "wrongest": [],
        "constant": guesses[CONSTANT](np.zeros((1, 1)))[0].tolist(),
        "linear": None,
    }
    linear = guesses.get(LINEAR)
    if isinstance(linear, LinearModel) and linear.weight.size <= MOST_WEIGHTS:
        details["linear"] = linear.to_dict()  # type: ignore[typeddict-item]
    if scorer.task == "regression":
        chosen = np.unique(
            np.linspace(0, len(truth) - 1, min(len(truth), MOST_PAIRS)).round().astype(np.intp)
        )
        both = np.concatenate([truth, predictions], axis=1)[chosen].astype(np.float64)
        details["pairs"] = [(a, b) for a, b in (both * scorer.scale + mean).tolist()]
    else:
        details["wrong"] = int((predictions.argmax(axis=1) != truth).sum())
    if pixels is not None:
        details["wrongest"] = _wrongest(predictions, truth, pixels)
    return details


def _wrongest(
    chances: NDArray[Any], truth: NDArray[Any], pixels: NDArray[np.uint8]
) -> list[WrongImage]:
    """Return the images that were taken for another class with the least probability of their own."""
    own = chances[np.arange(len(truth)), truth]
    wrong = np.flatnonzero(chances.argmax(axis=1) != truth)
    order = wrong[np.argsort(own[wrong], kind="stable")][:MOST_IMAGES]
    return [
        {
            "image": data_uri(pixels[at]),
            "true": int(truth[at]),
            "taken_for": int(chances[at].argmax()),
            "probability": float(chances[at].max()),
        }
        for at in order
    ]


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """Encode an image as a data URI: PNG, or JPEG where that would be large.

    Args:
        pixels: (height, width, channels) with 1 or 3 channels.
    """
    from PIL import Image

    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.thumbnail((_SIDE, _SIDE))
    kind, content = "png", _encoded(image, "PNG")
    if len(content) > _PLAIN_BYTES:
        kind, content = "jpeg", _encoded(image, "JPEG", quality=80)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _encoded(image: Any, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
