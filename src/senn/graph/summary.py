"""Text summary of a dependency graph."""

from __future__ import annotations

from senn.graph.types import NOTHING, DependencyGraph, SummaryTable


class Explanation(str):
    """Text summary of a dependency graph; in notebooks, tables and a sketch of the widths.

    Attributes:
        graph: the graph.
    """

    graph: DependencyGraph

    def _repr_html_(self) -> str:
        return self.graph._repr_html_()


def render(graph: DependencyGraph) -> Explanation:
    """Render a dependency graph as plain text tables; nothing is analyzed.

    Returns:
        The groups, the insertion points, the blocks that can be repeated and the refusals. A consumer that owns k > 1
        columns for each unit is shown as `name x k`.
    """
    # A table without rows says nothing that its absence doesn't.
    texts = [_aligned(table) for table in graph.as_tables() if table.rows]
    explanation = Explanation("\n\n".join(texts) or NOTHING)
    explanation.graph = graph
    return explanation


def _aligned(table: SummaryTable) -> str:
    """Lay a table out in left-aligned columns."""
    rows = [table.head, *table.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
