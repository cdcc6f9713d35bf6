"""What a grower is asked: the moves that may happen, a model that can change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from senn.errors import SennError, UnsupportedError
from senn.policy import Kind

MOVES: dict[str, Kind] = {"width": "widen", "depth": "insert", "prune": "prune"}
"""What may happen, and the kind of candidate that does it."""


def allowed(moves: Sequence[str] | None, every: Sequence[str]) -> tuple[str, ...]:
    """Those of the moves that are allowed; all of these for None."""
    unknown = [move for move in moves or () if move not in MOVES]
    if unknown:
        raise SennError(f"moves may hold {', '.join(MOVES)}, and {unknown[0]!r} is none of them")
    return tuple(every) if moves is None else tuple(move for move in moves if move in every)


def check_model(model: object) -> None:
    """Refuse what isn't a module whose parts can be exchanged."""
    if not isinstance(model, nn.Module):
        raise SennError(f"the model must be a torch.nn.Module, not a {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedError("the model is compiled by TorchScript and can't change its size: give its original")
