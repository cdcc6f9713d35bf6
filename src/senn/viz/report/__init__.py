"""Write runs as one interactive HTML page that needs no other file."""

from typing import TYPE_CHECKING

from senn import _deprecated
from senn.viz.report.downsample import downsample_record
from senn.viz.report.page import RunReport, charting_library, page

__all__ = [
    "RunReport",
    "charting_library",
    "downsample_record",
    "page",
]

if not TYPE_CHECKING:
    __getattr__ = _deprecated.old_names(__name__)
