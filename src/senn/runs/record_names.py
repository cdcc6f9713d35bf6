"""Rename the keys of records that older versions of senn wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from senn._records import current_keys
from senn.events import GrowthEvent, GrowthRound
from senn.policies import Candidate


def current_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the keys of one record of a history, and of its candidates.

    Args:
        record: a record written by any version of senn.

    Returns:
        A new record; keys that are current or unknown are unchanged.
    """
    if record.get("event") == "consideration":  # as senn 0.1 called a round
        record = {**record, "event": "growth_round"}
    if record.get("event") == "growth":
        return current_keys(GrowthEvent, record)
    if record.get("event") != "growth_round":
        return dict(record)
    current = current_keys(GrowthRound, record)
    for name in ("accepted", "refused"):
        if isinstance(current.get(name), list):
            current[name] = [
                current_keys(Candidate, one) if isinstance(one, dict) else one
                for one in current[name]
            ]
    return current
