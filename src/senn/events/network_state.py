"""Figures of a network at one moment, which events compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NetworkState:
    """Figures of a network before or after the changes of a round.

    Attributes:
        eta: its expansion score.
        loss: its loss on the probe batch, in the loss's own unit.
        widths: its widths by channel group, in order of use.
    """

    eta: float
    loss: float
    widths: Mapping[str, int]
