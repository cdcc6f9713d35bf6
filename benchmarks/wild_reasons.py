"""Which reasons of refused places are vague: a rule, so that their number can be compared between versions."""

from __future__ import annotations

import re

GENERAL = (
    "isn't understood",
    "in a way that",
    "its units are read differently once it is wider",
    "the outputs depend on the number of",
)
"""Parts of sentences that would be true of anything."""

COMPLETE = (
    r"its units are the model's outputs",
    r"it (has a frozen weight|is ignored as requested|is never used in the forward pass)",
    r"it has a weight that is computed from other tensors \(a parametrization\)",
    r"\S+, which (makes|reads) its units, (has|is) .*",
    r"\S+ shares its memory with \S+",
    r"no linear map reads its units",
    r"its size follows that of \S+, which (can't change|changes by itself)",
    r"no layer can be inserted before it: .*",
    r".* normalizes over its units, and what enters there can't be kept as it was: .*",
    r".* normalizes over its units and has no weight to make up for it: .*",
    r"nothing like it can be put after it: the forward pass doesn't run what stands there",
    r"nothing like it can be put after it: what it adds is normalized, however small it is",
    r"\S+ \(\w+\) mixes its units \(\w+\)",  # in a module of a library, between others of torch
    r"\S+ \(\w+\) normalizes groups of \d+ channels, and where they are joined .*",
)
"""Sentences that say all there is to say without a line of code."""

_SOURCE = re.compile(r"\bat \S+:\d+")


def is_vague(reason: str, line: str) -> bool:
    """Return True if the reason of a refused place leaves open what the cause is, or where in the code it lies.

    Args:
        reason: the sentence.
        line: line of the forward's code that was named beside it; empty if none was.

    >>> is_vague("its units are the model's outputs", "")
    False
    >>> is_vague("its size is fixed by view in encoder (Encoder)", "")
    True
    >>> is_vague("its size is fixed by view in encoder (Encoder)", "encoder.py:12, `x.view(4, 4)`")
    False
    """
    if any(part in reason for part in GENERAL):
        return True
    if any(re.fullmatch(sentence, reason) for sentence in COMPLETE):
        return False
    return not line and _SOURCE.search(reason) is None
