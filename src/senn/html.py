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
        if most <= 0:
            return 0.0
        # Square roots: decreases of one round differ by orders of magnitude, and small ones must be visible.
        return 90 * math.sqrt(min(1.0, max(0.0, value) / most))

    size = abs(decrease) if name == "prune" else decrease
    low, high = 1 + x(size - stderr), 1 + x(size + stderr)
    color = COLORS.get(name, "currentColor")
    label = f"expected decrease {decrease:.3g}, standard error {stderr:.2g}, price {price:.3g}"
    shapes = [
        _element("rect", x=1, y=4, width=x(size), height=6, rx=2, fill=color),
        _element("path", d=f"M{low:.1f} 7H{high:.1f}", stroke="currentColor"),
        _element(
            "path",
            d=f"M{1 + x(abs(price)):.1f} 1v12",
            stroke="currentColor",
            stroke_width="1.5" if price else "0",
        ),
    ]
    return _svg(shapes, 96, 14, label)


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
        columns += _column(x, top, size, new, color)
        columns.append(
            _element(
                "text",
                str(width),
                x=x,
                y=top - 4,
                font_size=11,
                text_anchor="middle",
                fill="currentColor",
                stroke="none",
            )
        )
    ribbons = [_ribbon(left, right) for left, right in pairwise(edges)]
    label = f"hidden layers of {', '.join(map(str, widths))} units"
    shapes = [_element("g", "".join([*ribbons, *columns]), stroke_width=8, fill="none")]
    return _svg(shapes, distance * len(widths), _TALLEST + 24, label)


def _column(x: float, top: float, size: float, new: float, color: str) -> list[str]:
    """Draw a layer of height `size`, the lowest `new` of it in color."""
    old = f"M{x:.1f} {top:.1f}v{size - new:.1f}"
    column = [_element("path", d=old, stroke="currentColor", opacity=".75")]
    if new > 0:
        path = f"M{x:.1f} {top + size - new:.1f}v{new:.1f}"
        column.append(_element("path", d=path, stroke=color))
    return column


def _ribbon(left: tuple[float, float, float], right: tuple[float, float, float]) -> str:
    """Draw the connection of two layers, each given by its x, top and height."""
    (x, top, size), (next_x, next_top, next_size) = left, right
    path = (
        f"M{x + 5:.1f} {top:.1f}"
        f"L{next_x - 5:.1f} {next_top:.1f}"
        f"v{next_size:.1f}"
        f"L{x + 5:.1f} {top + size:.1f}Z"
    )
    return _element("path", d=path, fill="currentColor", opacity=".12", stroke="none")


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
        x, y = width * math.sqrt(time / last), 4 + height * (1 - size / most)
        path += f"H{x:.1f}V{y:.1f}"
    path += f"H{width:.0f}"
    color = COLORS["widen"]
    area = f"{path}V{height + 4:.1f}Z"
    shapes = [
        _element("path", d=area, fill=color, opacity=".2"),
        _element("path", d=path, fill="none", stroke=color, stroke_width=2),
    ]
    return _svg(shapes, width + 8, height + 8, label)


def _svg(shapes: Sequence[str], width: float, height: float, label: str) -> Markup:
    """Put shapes into a picture of a size in pixels, with a label for screen readers."""
    content = "".join(shapes)
    size = f'width="{width:.0f}" height="{height:.0f}"'
    return Markup(f'<svg {size} role="img" aria-label="{escape(label)}">{content}</svg>')


def _element(tag: str, content: str = "", **attributes: str | float) -> str:
    """Build an element of a picture; numbers are rounded, and underscores of attributes become dashes."""
    text = ""
    for name, value in attributes.items():
        shown = f"{value:.1f}" if isinstance(value, float) else escape(str(value))
        text += f' {name.replace("_", "-")}="{shown}"'
    return f"<{tag}{text}>{escape(content) if tag == 'text' else content}</{tag}>"


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
