"""State of a scoring session to go back to after an exception."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from senn.scoring.batch_statistics import FoldStatistics
from senn.scoring.data_covariance import CovarianceSnapshot


@dataclass(frozen=True, eq=False, kw_only=True)
class SessionSnapshot:
    """State of a session to go back to, see `ScoringSession.snapshot`."""

    attributes: dict[str, Any]
    fit: FoldStatistics
    held_out: FoldStatistics
    covariances: CovarianceSnapshot
    generator: Tensor


def with_own_tables(attributes: dict[str, Any]) -> dict[str, Any]:
    """Copy the tables among an object's attributes; everything else stays the same object."""
    return {
        name: value.copy() if isinstance(value, dict) else value
        for name, value in attributes.items()
    }
