"""Proof of what a traced forward pass shows: channel groups and residual blocks are tried in a copy of the model.

Tracing reads code, and code can hide a size: in a constant, in a float computed from a width, in a kernel. So nothing
that one forward pass shows is believed. Each group is widened in a perturbed copy, by the same surgery that grows the
model later, and each block is repeated there; what doesn't run, or computes something else, is refused with the reason.
"""

from senn.verification.analysis import analyze, explain
from senn.verification.residual_search import find_residual_blocks
from senn.verification.verify_groups import verify_groups

__all__ = [
    "analyze",
    "explain",
    "find_residual_blocks",
    "verify_groups",
]
