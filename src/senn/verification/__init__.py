"""The proof of what a forward pass shows: groups and blocks are tried in a copy of the model, by surgery itself."""

from senn.verification.analysis import analyze, explain
from senn.verification.residual_search import find_residual_blocks
from senn.verification.verify_groups import verify_groups

__all__ = [
    "analyze",
    "explain",
    "find_residual_blocks",
    "verify_groups",
]
