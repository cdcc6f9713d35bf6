"""A run as a page to look at and to click through: one HTML file that needs nothing else."""

from senn.report.compact import downsample_record
from senn.report.page import RunReport, charting_library, page

__all__ = ["Told", "compact", "library", "page"]
