"""Fingerprints of the rows that a network was trained on, by which `senn evaluate` knows them again."""

from __future__ import annotations

import base64
import binascii
import hashlib

import numpy as np
from numpy.typing import NDArray

from senn.errors import SennError

MOST = 1 << 16
"""Fingerprints that are kept: the smallest, which are a random sample of all rows and of any others."""
_BYTES = 5
_FEWEST_SHARE = 0.01


def kept_fingerprints(x: NDArray[np.generic], y: NDArray[np.generic]) -> str:
    """Return what is kept of the training rows.

    Args:
        x: (rows, features) encoded rows.
        y: their encoded targets.

    Returns:
        The smallest fingerprints, five bytes each, in order, as base64.
    """
    kept = np.unique(_fingerprints(x, y))[:MOST]
    content = kept.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 8 - _BYTES :]
    return base64.b64encode(content.tobytes()).decode("ascii")


def share_trained_on(kept: str, x: NDArray[np.generic], y: NDArray[np.generic]) -> float | None:
    """Estimate which share of some rows are equal to rows that a network was trained on.

    Args:
        kept: what the run keeps of its training rows.
        x: (rows, features) encoded rows.
        y: their encoded targets.

    Returns:
        The share; None where the sample that is kept is too small to tell.

    Raises:
        SennError: what is kept is damaged.
    """
    known, found = _decoded(kept), _fingerprints(x, y)
    if len(known) >= MOST:
        found = found[found <= known[-1]]
    return float(np.isin(found, known).mean()) if len(found) and len(known) else None


def trained_rows_note(share: float | None, unit: str) -> list[str]:
    """Say that rows are scored which the network was trained on.

    Args:
        share: of all rows, as `share_trained_on` gives it.
        unit: what a row is called, "row" or "image".

    Returns:
        One sentence, or none.

    >>> trained_rows_note(0.8, "row")
    ['80% of the rows stand among those that the network was trained on, so these scores say little of new rows']
    """
    if share is None or share < _FEWEST_SHARE:
        return []
    return [
        f"{share:.0%} of the {unit}s stand among those that the network was trained on, so these scores say little of "
        f"new {unit}s"
    ]


def _fingerprints(x: NDArray[np.generic], y: NDArray[np.generic]) -> NDArray[np.uint64]:
    rows, targets = np.ascontiguousarray(x), np.ascontiguousarray(y)
    pairs = zip(rows, targets, strict=True)
    digests = b"".join(
        hashlib.blake2b(row.tobytes() + target.tobytes(), digest_size=_BYTES).digest()
        for row, target in pairs
    )
    return _numbers(digests)


def _numbers(content: bytes) -> NDArray[np.uint64]:
    parts = np.frombuffer(content, np.uint8).reshape(-1, _BYTES)
    padded = np.zeros((len(parts), 8), np.uint8)
    padded[:, 8 - _BYTES :] = parts
    return padded.reshape(-1).view(">u8").astype(np.uint64)


def _decoded(kept: str) -> NDArray[np.uint64]:
    try:
        content = base64.b64decode(kept, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SennError("the run's record of its training rows is damaged") from error
    if len(content) % _BYTES or len(content) > _BYTES * MOST:
        raise SennError("the run's record of its training rows is damaged")
    return np.sort(_numbers(content))
