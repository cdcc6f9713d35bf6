"""Folders of runs: written whole or not at all, read only if intact, and resumed after a kill.

A finished run has its files in the folder itself: the network, `history.jsonl`, `test.json`, `growth.png`, and
`results.json` with the checksums of all. While it goes on, everything is in `unfinished/`: `run.json` (how it was
called, on which data), `history.jsonl` as far as it has come, and the last two of `checkpoint-NNN/`. Whatever has its
own name is complete.
"""

from senn.runs.fit_options import FitOptions
from senn.runs.run_folder import RunFolder, is_at_work
from senn.runs.saved_run import (
    FIGURE,
    HISTORY,
    REPORT,
    RESULTS,
    TEST,
    RunStart,
    SavedRun,
    check,
    complete,
    read,
    read_start,
    read_test,
)

__all__ = [
    "FIGURE",
    "HISTORY",
    "REPORT",
    "RESULTS",
    "TEST",
    "FitOptions",
    "RunFolder",
    "RunStart",
    "SavedRun",
    "check",
    "complete",
    "is_at_work",
    "read",
    "read_start",
    "read_test",
]
