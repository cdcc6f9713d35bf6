"""Tables and images from files, encoded as numbers; nothing here knows of networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from senn._extras import importing
from senn.data.split import split, split_groups, split_last

if TYPE_CHECKING:
    from senn.data.tabular.built_in import BUILT_IN as BUILT_IN
    from senn.data.tabular.read import Table as Table
    from senn.data.tabular.read import read_table as read_table
    from senn.data.tabular.table_encoder import TableEncoder as TableEncoder
    from senn.data.tabular.target import Target as Target
    from senn.data.tabular.target import Task as Task

__all__ = [
    "BUILT_IN",
    "Table",
    "TableEncoder",
    "Target",
    "Task",
    "read_table",
    "split",
    "split_groups",
    "split_last",
]


def __getattr__(name: str) -> Any:
    """Import what needs pandas at first use: training splits rows where pandas may be missing."""
    home: Any = None
    with importing(f"senn.data.{name}", "cli"):
        if name in ("BUILT_IN", "Table", "read_table"):
            from senn.data.tabular import read as home
        elif name == "TableEncoder":
            from senn.data.tabular import table_encoder as home
        elif name in ("Target", "Task"):
            from senn.data.tabular import target as home
    if home is None:
        raise AttributeError(f"module 'senn.data' has no attribute {name!r}")
    return getattr(home, name)
