"""Text summary of a structure."""

from __future__ import annotations

from senn.graph.types import NOTHING, DependencyGraph, SummaryTable


class Explanation(str):
    """Text summary of a structure; tables and a picture of the widths in notebooks."""

    graph: DependencyGraph

    def _repr_html_(self) -> str:
        return self.graph._repr_html_()


def render(graph: DependencyGraph) -> Explanation:
    """Render a structure as plain text tables: spaces, sites, blocks that can be repeated, refusals.

    Nothing is analysed: `senn.explain` does that where it is given a model.
    """
    texts = [_aligned(table) for table in graph.as_tables() if table.rows]
    explanation = Explanation("\n\n".join(texts) or NOTHING)
    explanation.graph = graph
    return explanation


def _aligned(table: SummaryTable) -> str:
    """Lay a table out in left-aligned columns."""
    rows = [table.head, *table.rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
