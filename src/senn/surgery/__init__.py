"""Carries decisions out: new Parameters, optimizer state by position, verification, rollback, undo."""

from senn.surgery.carry import apply_moves
from senn.surgery.moves import Append, Insert, Move, Prune, Widen
from senn.surgery.operate import Receipt, transaction
from senn.surgery.plan import new_parameters, parameters_per_unit
from senn.surgery.repeat import function_preserving_copy
from senn.surgery.undo import UndoLog
from senn.surgery.verify import calibrate_batch_norm

__all__ = [
    "Append",
    "Insert",
    "Journal",
    "Move",
    "Prune",
    "Receipt",
    "Widen",
    "calibrate",
    "carry_out",
    "new_parameters",
    "operate",
    "parameters_per_unit",
    "silent_copy",
]
