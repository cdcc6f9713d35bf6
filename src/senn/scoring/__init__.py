"""One window of looking: the draw, the dormant copy, the moments summed over the batches seen."""

from senn.scoring.batch_statistics import KnownMoment
from senn.scoring.scoring_session import Survey

__all__ = ["KnownMoment", "Survey"]
