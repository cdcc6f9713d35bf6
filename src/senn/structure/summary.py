"""A structure in words."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from senn import drawn
from senn.batch import Inputs
from senn.structure.analysis import analyse
from senn.structure.spaces import Slot, Structure

_NOTHING = "Nothing in this model can change size."

Table = tuple[str, tuple[str, ...], Sequence[tuple[str, ...]]]
"""What it shows, the names of its columns, its rows."""


class Explanation(str):
    """Plain text; tables in notebooks."""

    tables: list[Table]

    def _repr_html_(self) -> str:
        """The same as HTML tables, and a picture of the widths."""
        widths = [int(row[1]) for row in self.tables[0][2]]
        parts = [drawn.table(caption, head, rows, left=len(head)) for caption, head, rows in self.tables]
        return drawn.network(widths) + "".join(parts) if any(parts) else f"<p>{_NOTHING}</p>"


def explain(structure: Structure | nn.Module, inputs: Inputs | None = None) -> Explanation:
    """A plain text table of the spaces, the sites, the blocks that can be repeated, and what can't change and why.

    Takes a structure, or a model and a few of its inputs.
    A consumer that owns k > 1 columns per unit is shown as `name x k`.
    """
    if isinstance(structure, nn.Module):
        structure = analyse(structure, inputs)
    spaces = [
        (
            space.name,
            str(space.width),
            _modules(space.of("producer")),
            _modules(space.of("carrier")) or "-",
            _modules(space.of("consumer")),
        )
        for space in structure.spaces
    ]
    sites = [(site.module, str(site.features), site.activation) for site in structure.sites]
    blocks = [(one.module, ", ".join(name[len(one.module) + 1 :] for name in one.silent)) for one in structure.blocks]
    refused = [(refusal.place or "(the model)", refusal.reason) for refusal in structure.refused]
    tables: list[Table] = [
        ("Hidden dimensions", ("space", "units", "made by", "carried by", "read by"), spaces),
        ("Where a layer can be inserted", ("layer before", "features", "activation"), sites),
        ("Blocks", ("can be repeated", "silent where zero"), blocks),
        ("What stays as it is", ("cannot change", "because"), refused),
    ]
    texts = [_table(head, rows) for _, head, rows in tables]
    explanation = Explanation("\n\n".join(text for text in texts if text) or _NOTHING)
    explanation.tables = tables
    return explanation


def _modules(slots: Sequence[Slot]) -> str:
    """The modules of some slots, each once."""
    columns = {slot.module or slot.tensor: slot.index.shape[1] for slot in slots}
    return ", ".join(name if k == 1 else f"{name} x {k}" for name, k in columns.items())


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Left-aligned columns; empty without rows."""
    if not rows:
        return ""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    return "\n".join(line.rstrip() for line in lines)
