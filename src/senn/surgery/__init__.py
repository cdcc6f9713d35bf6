"""Carries moves out on a model, its optimizer and its averages: all or nothing, verified, reversible.

Why this is hard. Changing a width means replacing tensors, and a model's tensors are known to many: to the modules that
hold them (under two names where they are tied), to the optimizer's groups and to its state, to averaged copies, to
recurrent layers' own lists, to hooks that users registered, to schedulers that wrap `optimizer.step`. Whoever is
forgotten goes on training the old tensor, without an error. So

- old Parameters are never written to. New objects are made first and exchanged at once (`apply`), each exchange is an
  entry of an `UndoLog`, and undoing means putting the old objects back.
- sizes, unit numbers and columns of all moves of one call refer to the model before that call (`plan`); where each
  position goes is index arithmetic (`index_maps`), the same for a parameter, its gradient and its optimizer state.
- an optimizer's state is migrated without knowing the optimizer: what a new entry starts with is read off a blank copy
  that takes one step (`optimizer_state`).
- outputs are compared before and after (`outputs`), and any failure rolls everything back (`transaction`).
"""

from typing import TYPE_CHECKING

from senn import _deprecated
from senn.surgery.apply import apply_moves
from senn.surgery.grown_outputs import add_outputs, resize_token_embeddings
from senn.surgery.moves import Append, Insert, Move, Prune, Widen
from senn.surgery.outputs import calibrate_batch_norm
from senn.surgery.plan import new_parameters, parameters_per_unit
from senn.surgery.repeat import function_preserving_copy, make_plain, shuffle_weights
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
    "add_outputs",
    "apply_moves",
    "calibrate_batch_norm",
    "function_preserving_copy",
    "make_plain",
    "new_parameters",
    "parameters_per_unit",
    "resize_token_embeddings",
    "shuffle_weights",
    "transaction",
]

if not TYPE_CHECKING:
    __getattr__ = _deprecated.old_names(__name__)
