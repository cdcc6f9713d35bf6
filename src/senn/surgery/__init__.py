"""Carries decisions out: new Parameters, optimizer state by position, verification, rollback, undo."""

from typing import TYPE_CHECKING

from senn import _deprecated
from senn.surgery.apply import apply_moves
from senn.surgery.moves import Append, Insert, Move, Prune, Widen
from senn.surgery.outputs import calibrate_batch_norm
from senn.surgery.plan import new_parameters, parameters_per_unit
from senn.surgery.repeat import function_preserving_copy
from senn.surgery.transaction import Receipt, transaction
from senn.surgery.undo import UndoLog

__all__ = [
    "Append",
    "Insert",
    "Move",
    "Prune",
    "Receipt",
    "UndoLog",
    "Widen",
    "apply_moves",
    "calibrate_batch_norm",
    "function_preserving_copy",
    "new_parameters",
    "parameters_per_unit",
    "transaction",
]

if not TYPE_CHECKING:
    __getattr__ = _deprecated.old_names(__name__)
