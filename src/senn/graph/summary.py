"""Text summary of a dependency graph."""

from __future__ import annotations

import textwrap
from itertools import zip_longest

from senn.graph.types import NOTHING, DependencyGraph, SummaryTable

WIDTH = 120
"""Most characters of a line."""

GAP = "  "
"""Between two columns."""


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
    """Lay a table out in left-aligned columns, of which the widest are wrapped."""
    rows = [table.head, *table.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    available = WIDTH - len(GAP) * (len(widths) - 1)
    while sum(widths) > available:
        widest = max(widths)
        # Down to the next width below, or as far as it takes: the other columns stay as they are.
        places = [place for place, width in enumerate(widths) if width == widest]
        below = max((width for width in widths if width < widest), default=0)
        needed = widest - (sum(widths) - available + len(places) - 1) // len(places)
        for place in places:
            widths[place] = max(below, needed, 1)
    lines = []
    for row in rows:
        cells = [
            textwrap.wrap(cell, width) or [""] for cell, width in zip(row, widths, strict=True)
        ]
        for parts in zip_longest(*cells, fillvalue=""):
            padded = [part.ljust(width) for part, width in zip(parts, widths, strict=True)]
            lines.append(GAP.join(padded).rstrip())
    return "\n".join(lines)
