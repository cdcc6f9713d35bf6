"""Names that fields of records had in senn 0.1, as run folders and checkpoints of that version have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

RENAMED: Mapping[str, str] = {
    "after": "width_after",
    "agreed": "cross_fold_gain",
    "before": "width_before",
    "bound": "gain_lower_bound",
    "error": "held_out_stderr",
    "heldout": "held_out_gain",
    "limit": "score_limit",
    "looked_at": "n_samples_seen",
    "nat": "loss_per_nat",
    "promise": "expected_decrease",
    "promised": "expected_decrease",
    "realised": "realized_decrease",
    "which": "removed_units",
}
"""Names that figures of events, rounds and candidates had in senn 0.1, with those of today.

Run folders and checkpoints keep these names as keys. `with_current_names` is all that reads the old ones.
"""


def with_current_names(cls: type[Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the keys of a record that senn 0.1 may have written.

    Args:
        cls: the record's class; only names that it has are made out of old ones.
        record: by the names of its time.
    """
    own = {one.name for one in fields(cls)}
    today = own | {name for name, one in vars(cls).items() if isinstance(one, property)}
    names = {key: new for key, new in RENAMED.items() if key not in own and new in today}
    return {names.get(key, key): value for key, value in record.items()}
