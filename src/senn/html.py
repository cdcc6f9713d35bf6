"""Small tables and pictures for notebooks: HTML with everything inline, in the colors of the page around it.

All text is escaped, since names of places and columns may contain anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

COLORS = {"widen": "#0d8a7d", "insert": "#6d67f5", "prune": "#c9711c"}
"""Colors of the kinds of changes, legible on light and on dark pages."""

_TALLEST = 84.0  # pixels of the widest layer
_DISTANCE = 44.0  # pixels between layers, if there is room
_WIDTH = 640.0  # pixels of a picture of many layers


class Markup(str):
    """Text that is HTML already, and isn't escaped again."""


def number(value: float | None, digits: int = 3) -> str:
    """Format a number.

    Args:
        value: the number; None and what isn't finite become a dash.
        digits: significant digits.

    >>> number(0.123456), number(float("nan"))
    ('0.123', '-')
    """
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Build an HTML table.

    Args:
        caption: what the table shows.
        head: names of the columns.
        rows: cells as text; `Markup` isn't escaped.
        left: number of columns, from the left, that hold words and are left-aligned.

    Returns:
        The table, or an empty text without rows.
    """
    if not rows:
        return ""
    header = "".join(_cell("th", name, index < left) for index, name in enumerate(head))
    body = ""
    for row in rows:
        cells = "".join(_cell("td", content, index < left) for index, content in enumerate(row))
        body += f"<tr>{cells}</tr>"
    title = f'<caption style="text-align:left;caption-side:top">{escape(caption)}</caption>'
    return f"<table>{title}<thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"


def _cell(tag: str, content: str, is_left: bool) -> str:
    style = f"text-align:{'left' if is_left else 'right'};white-space:nowrap"
    inner = content if isinstance(content, Markup) else escape(content)
    return f'<{tag} style="{style}">{inner}</{tag}>'


def kind(name: str) -> Markup:
    """Format the kind of a change in its color."""
    return Markup(
        f'<span style="color:{COLORS.get(name, "inherit")};font-weight:600">{escape(name)}</span>'
    )


def bar(decrease: float, stderr: float, price: float, most: float, name: str) -> Markup:
    """Draw an expected decrease with its standard error and its price.

    Args:
        decrease: expected decrease of the loss, in nats per sample; negative for pruning.
        stderr: standard error of the decrease.
        price: price of the change, a vertical line.
        most: value at the full length of the bar.
        name: kind of the change, which has a color.
    """

    def x(value: float) -> float:
        # Square roots: decreases of one round differ by orders of magnitude, and small ones must be visible.
        return 90 * math.sqrt(min(1.0, max(0.0, value) / most)) if most > 0 else 0.0

    size = abs(decrease) if name == "prune" else decrease
    low, high = x(size - stderr), x(size + stderr)
    color = COLORS.get(name, "currentColor")
    label = escape(
        f"expected decrease {decrease:.3g}, standard error {stderr:.2g}, price {price:.3g}"
    )
    return Markup(
        f'<svg width="96" height="14" role="img" aria-label="{label}">'
        f'<rect x="1" y="4" width="{x(size):.1f}" height="6" rx="2" fill="{color}"/>'
        f'<path d="M{1 + low:.1f} 7H{1 + high:.1f}" stroke="currentColor"/>'
        f'<path d="M{1 + x(abs(price)):.1f} 1v12" stroke="currentColor" stroke-width="{1.5 if price else 0}"/></svg>'
    )


def network(
    widths: Sequence[int], changed: Sequence[int] = (), color: str = COLORS["widen"]
) -> Markup:
    """Draw hidden layers as columns whose height is their width.

    Args:
        widths: widths of the hidden layers, in order.
        changed: for each layer, how many of its units are new.
        color: color of new units.
    """
    if not widths:
        return Markup("")
    distance = min(_DISTANCE, _WIDTH / len(widths))
    unit = _TALLEST / max(*widths, 1)
    columns, edges = [], []
    for index, width in enumerate(widths):
        x, size = distance * (index + 0.5), max(width * unit, 1.5)
        top = 18 + (_TALLEST - size) / 2
        new = min(changed[index], width) * unit if index < len(changed) else 0.0
        edges.append((x, top, size))
        columns.append(
            f'<path d="M{x:.1f} {top:.1f}v{size - new:.1f}" stroke="currentColor" opacity=".75"/>'
        )
        if new > 0:
            columns.append(
                f'<path d="M{x:.1f} {top + size - new:.1f}v{new:.1f}" stroke="{color}"/>'
            )
        columns.append(
            f'<text x="{x:.1f}" y="{top - 4:.1f}" font-size="11" text-anchor="middle" fill="currentColor" '
            f'stroke="none">{width}</text>'
        )
    ribbons = "".join(_ribbon(*pair) for pair in pairwise(edges))
    label = escape(f"hidden layers of {', '.join(map(str, widths))} units")
    return Markup(
        f'<svg width="{distance * len(widths):.0f}" height="{_TALLEST + 24:.0f}" role="img" aria-label="{label}" '
        f'stroke-width="8" fill="none">{ribbons}{"".join(columns)}</svg>'
    )


def _ribbon(left: tuple[float, float, float], right: tuple[float, float, float]) -> str:
    """Draw the connection of two layers, each given by its x, top and height."""
    (a, t, s), (b, u, v) = left, right
    return (
        f'<path d="M{a + 5:.1f} {t:.1f}L{b - 5:.1f} {u:.1f}v{v:.1f}L{a + 5:.1f} {t + s:.1f}Z" fill="currentColor" '
        'opacity=".12" stroke="none"/>'
    )


def staircase(points: Sequence[tuple[float, float]], label: str) -> Markup:
    """Draw a size over time as steps that start at zero.

    Args:
        points: pairs of time and size, in order of time.
        label: what is drawn, for screen readers.
    """
    if len(points) < 2:
        return Markup("")
    width, height = 320.0, 72.0
    last = max(points[-1][0], 1.0)
    most = max(max(size for _, size in points), 1.0)
    path = f"M0 {height + 4:.1f}"
    for time, size in points:
        # Square root of time: growth happens in the first steps of a run.
        path += f"H{width * math.sqrt(time / last):.1f}V{4 + height * (1 - size / most):.1f}"
    color = COLORS["widen"]
    return Markup(
        f'<svg width="{width + 8:.0f}" height="{height + 8:.0f}" role="img" aria-label="{escape(label)}">'
        f'<path d="{path}H{width:.0f}V{height + 4:.1f}Z" fill="{color}" opacity=".2"/>'
        f'<path d="{path}H{width:.0f}" fill="none" stroke="{color}" stroke-width="2"/></svg>'
    )


def grown(history: Sequence[Mapping[str, Any]], architecture: Sequence[int]) -> Markup:
    """Draw a trained network: its layers, and its number of parameters over time.

    Args:
        history: records of a run.
        architecture: final widths of the hidden layers.
    """
    sizes = [
        (record["step"], record["parameters"])
        for record in history
        if record["event"] in ("start", "epoch")
    ]
    first, last = (sizes[0][1], sizes[-1]) if sizes else (0, (0, 0))
    widths = "-".join(map(str, architecture)) or "none"
    words = escape(f"hidden layers {widths}; {first:,} parameters became {last[1]:,}")
    path = staircase(sizes, f"parameters over {last[0]:,} steps")
    return Markup(f"<div><p>{words}</p>{network(architecture)} {path}</div>")
