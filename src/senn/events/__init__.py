"""What happened to a network: records of changes and of rounds, with their text and tables."""

from typing import TYPE_CHECKING

from senn import _deprecated
from senn.events.event_records import Decision, GrowthEvent, GrowthRound
from senn.events.event_tables import CandidateList
from senn.events.frontier_records import Frontier, FrontierPoint
from senn.events.network_state import NetworkState

__all__ = [
    "CandidateList",
    "Decision",
    "Frontier",
    "FrontierPoint",
    "GrowthEvent",
    "GrowthRound",
    "NetworkState",
]

if not TYPE_CHECKING:
    __getattr__ = _deprecated.old_names(__name__)
