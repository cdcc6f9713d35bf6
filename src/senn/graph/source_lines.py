"""Lines of a model's own code."""

from __future__ import annotations

import linecache
import os
import sys
from pathlib import Path

import torch

# Frames of these aren't the model's own code: torch, senn, and views by einops.
_LIBRARIES = (os.path.dirname(torch.__file__), str(Path(__file__).parents[1]))
_BETWEEN = ("/einops/", "<frozen", "<string>")


def is_own(filename: str) -> bool:
    """Return True for a file of the model's own code."""
    return not filename.startswith(_LIBRARIES) and not any(part in filename for part in _BETWEEN)


def running_line() -> str:
    """Return the line of the model's own code that runs now; empty outside of a traced forward pass."""
    frame = sys._getframe()
    while frame.f_back is not None:
        # What calls the traced pass isn't the model any more.
        if frame.f_code.co_name == "trace_forward":
            return ""
        code = frame.f_code
        if is_own(code.co_filename):
            name = os.path.basename(code.co_filename)
            text = linecache.getline(code.co_filename, frame.f_lineno).strip()
            return f"{name}:{frame.f_lineno}" + (f", `{text}`" if text else "")
        frame = frame.f_back
    return ""
