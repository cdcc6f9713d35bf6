"""Scoring of candidates: statistics of a round's batches, and what each change is worth by them."""

from senn.scoring.data_covariance import DataCovariance
from senn.scoring.scoring_session import ScoringSession

__all__ = [
    "DataCovariance",
    "ScoringSession",
]
