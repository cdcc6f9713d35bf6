"""Small pictures and tables for notebooks: HTML with everything inline, in the colours of the page around it.

All text is escaped: names of places and columns may be anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

COLORS = {"widen": "#0d8a7d", "insert": "#6d67f5", "prune": "#c9711c"}
"""Of what may happen to a network; readable on light and on dark."""

_TALL, _APART = 84.0, 44.0


def number(value: float | None, digits: int = 3) -> str:
    """A number for people; a dash for none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """An HTML table; empty without rows.

    Args:
        caption: what it shows.
        head: names of the columns.
        rows: cells as text; those that `html` made are taken as they are.
        left: how many columns are words, and begin at the left.
    """
    if not rows:
        return ""

    def cell(tag: str, at: int, content: str) -> str:
        style = f"text-align:{'left' if at < left else 'right'};white-space:nowrap"
        return f'<{tag} style="{style}">{content if isinstance(content, Markup) else escape(content)}</{tag}>'

    lines = [[cell("th", at, name) for at, name in enumerate(head)]]
    lines += [[cell("td", at, content) for at, content in enumerate(row)] for row in rows]
    body = "".join(f"<tr>{''.join(line)}</tr>" for line in lines[1:])
    title = f'<caption style="text-align:left;caption-side:top">{escape(caption)}</caption>'
    return f"<table>{title}<thead><tr>{''.join(lines[0])}</tr></thead><tbody>{body}</tbody></table>"


class Markup(str):
    """Text that is HTML already."""


def kind(name: str) -> Markup:
    """The kind of a change, in its colour."""
    return Markup(f'<span style="color:{COLORS.get(name, "inherit")};font-weight:600">{escape(name)}</span>')


def bar(promise: float, error: float, price: float, most: float, name: str) -> Markup:
    """A promise with its standard error beside its price, by their square roots, as a share of the largest."""

    def x(value: float) -> float:
        return 90 * math.sqrt(min(1.0, max(0.0, value) / most)) if most > 0 else 0.0

    size = abs(promise) if name == "prune" else promise  # a removal promises what it costs, less than nothing
    low, high = x(size - error), x(size + error)
    color = COLORS.get(name, "currentColor")
    words = f"promised {promise:.3g}, standard error {error:.2g}, price {price:.3g}"
    return Markup(
        f'<svg width="96" height="14" role="img" aria-label="{escape(words)}">'
        f'<rect x="1" y="4" width="{x(size):.1f}" height="6" rx="2" fill="{color}"/>'
        f'<path d="M{1 + low:.1f} 7H{1 + high:.1f}" stroke="currentColor"/>'
        f'<path d="M{1 + x(abs(price)):.1f} 1v12" stroke="currentColor" stroke-width="{1.5 if price else 0}"/></svg>'
    )


def network(widths: Sequence[int], changed: Sequence[int] = (), color: str = COLORS["widen"]) -> Markup:
    """Layers as columns as tall as they are wide.

    Args:
        widths: of the hidden layers, in order.
        changed: for each the number of units, of those that it has, that are new.
        color: of these.
    """
    if not widths:
        return Markup("")
    apart = min(_APART, 640 / len(widths))
    unit = _TALL / max(*widths, 1)
    columns, edges = [], []
    for at, width in enumerate(widths):
        x, size = apart * (at + 0.5), max(width * unit, 1.5)
        top, new = 18 + (_TALL - size) / 2, min(changed[at], width) * unit if at < len(changed) else 0.0
        edges.append((x, top, size))
        columns.append(f'<path d="M{x:.1f} {top:.1f}v{size - new:.1f}" stroke="currentColor" opacity=".75"/>')
        if new > 0:
            columns.append(f'<path d="M{x:.1f} {top + size - new:.1f}v{new:.1f}" stroke="{color}"/>')
        columns.append(
            f'<text x="{x:.1f}" y="{top - 4:.1f}" font-size="11" text-anchor="middle" fill="currentColor" '
            f'stroke="none">{width}</text>'
        )
    ribbons = "".join(
        f'<path d="M{a + 5:.1f} {t:.1f}L{b - 5:.1f} {u:.1f}v{v:.1f}L{a + 5:.1f} {t + s:.1f}Z" fill="currentColor" '
        'opacity=".12" stroke="none"/>'
        for (a, t, s), (b, u, v) in pairwise(edges)
    )
    label = escape(f"hidden layers of {', '.join(map(str, widths))} units")
    return Markup(
        f'<svg width="{apart * len(widths):.0f}" height="{_TALL + 24:.0f}" role="img" aria-label="{label}" '
        f'stroke-width="8" fill="none">{ribbons}{"".join(columns)}</svg>'
    )


def staircase(points: Sequence[tuple[float, float]], label: str) -> Markup:
    """A size over time, stepped, beginning at zero.

    Args:
        points: pairs of time and size, in order of time.
        label: what is drawn, for those who can't see it.
    """
    if len(points) < 2:
        return Markup("")
    wide, tall = 320.0, 72.0
    last, most = max(points[-1][0], 1.0), max(max(size for _, size in points), 1.0)
    path, height = f"M0 {tall + 4:.1f}", tall + 4
    for time, size in points:
        x, height = wide * math.sqrt(time / last), 4 + tall * (1 - size / most)
        path += f"H{x:.1f}V{height:.1f}"
    return Markup(
        f'<svg width="{wide + 8:.0f}" height="{tall + 8:.0f}" role="img" aria-label="{escape(label)}">'
        f'<path d="{path}H{wide:.0f}V{tall + 4:.1f}Z" fill="{COLORS["widen"]}" opacity=".2"/>'
        f'<path d="{path}H{wide:.0f}" fill="none" stroke="{COLORS["widen"]}" stroke-width="2"/></svg>'
    )


def grown(history: Sequence[Mapping[str, Any]], architecture: Sequence[int]) -> Markup:
    """A trained network: its layers, and its parameters over time.

    Args:
        history: records of a run.
        architecture: widths of the hidden layers at the end.
    """
    sizes = [(one["step"], one["parameters"]) for one in history if one["event"] in ("start", "epoch")]
    first, last = (sizes[0][1], sizes[-1]) if sizes else (0, (0, 0))
    words = f"hidden layers {'-'.join(map(str, architecture)) or 'none'}; {first:,} parameters became {last[1]:,}"
    path = staircase(sizes, f"parameters over {last[0]:,} steps")
    return Markup(f"<div><p>{escape(words)}</p>{network(architecture)} {path}</div>")
