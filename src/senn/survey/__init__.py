"""One window of looking: the draw, the dormant copy, the moments summed over the batches seen."""

from senn.survey.looks import KnownMoment
from senn.survey.window import Survey

__all__ = ["KnownMoment", "Survey"]
