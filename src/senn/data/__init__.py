"""Tables from files, and their columns as numbers; nothing here knows of networks."""

from senn.data.encoder import TableEncoder
from senn.data.split import split
from senn.data.tables import BUILT_IN, Table, read_table
from senn.data.target import Target, Task

__all__ = ["BUILT_IN", "Table", "TableEncoder", "Target", "Task", "read_table", "split"]
