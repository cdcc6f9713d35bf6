"""A run as a page to look at and to click through: one HTML file that needs nothing else."""

from senn.report.compact import compact
from senn.report.page import Told, library, page

__all__ = ["Told", "compact", "library", "page"]
