"""Laying out Python expressions as a formatter would: on one line if they fit, otherwise one line for each part."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

COLUMNS = 100
"""Longest line of generated source: it should fit a model card and a notebook's cell."""


@dataclass(frozen=True)
class Bracketed:
    """An expression in brackets: a call, a list, a dictionary.

    Attributes:
        head: text before the parts, with the opening bracket.
        parts: each as (text before it such as `bias=`, expression), in order.
        tail: the closing brackets.
        spread: True to give each part a line of its own in any case.
        notes: number of a part -> comment above it.
    """

    head: str
    parts: Sequence[tuple[str, Bracketed | str]]
    tail: str = field(default=")", kw_only=True)
    spread: bool = field(default=False, kw_only=True)
    notes: Mapping[int, str] = field(default_factory=dict, kw_only=True)

    def flat(self) -> str | None:
        """Return the expression on one line; None if a part must have a line of its own."""
        if self.spread:
            return None
        texts = []
        for before, part in self.parts:
            text = part if isinstance(part, str) else part.flat()
            if text is None:
                return None
            texts.append(before + text)
        return self.head + ", ".join(texts) + self.tail


def format_lines(
    value: Bracketed | str,
    indent: int = 0,
    before: str = "",
    after: str = "",
) -> list[str]:
    """Format an expression over as many lines as it needs.

    Args:
        value: the expression.
        indent: spaces at the beginning of each line.
        before: text in front of the expression (`self.body = `).
        after: text behind it (a comma).

    Returns:
        The lines.

    >>> layers = [("", "nn.Linear(2, 3)"), ("", "nn.ReLU()")]
    >>> format_lines(Bracketed("nn.Sequential(", layers), before="body = ")
    ['body = nn.Sequential(nn.Linear(2, 3), nn.ReLU())']
    >>> format_lines(Bracketed("nn.Sequential(", layers, spread=True))
    ['nn.Sequential(', '    nn.Linear(2, 3),', '    nn.ReLU(),', ')']
    """
    # Depth first: a part gets lines of its own only if what is around it doesn't fit on one.
    space = " " * indent
    flat = value if isinstance(value, str) else value.flat()
    line = f"{space}{before}{flat}{after}"
    if isinstance(value, str) or (flat is not None and len(line) <= COLUMNS):
        return [line]
    lines = [space + before + value.head]
    for number, (name, part) in enumerate(value.parts):
        if number in value.notes:
            lines.append(f"{space}    # {value.notes[number]}")
        # With a comma after the last part too, as formatters write it: adding a layer then changes one line.
        lines += format_lines(part, indent + 4, name, ",")
    return [*lines, space + value.tail + after]


def call(
    name: str,
    positional: Sequence[Bracketed | str],
    keywords: Mapping[str, Bracketed | str] | None = None,
) -> Bracketed:
    """Make the expression `name(positional, ..., keyword=...)`.

    Args:
        name: of the function or class.
        positional: expressions of the positional arguments.
        keywords: expressions by name; None for none.

    Returns:
        The call.

    >>> call("nn.Linear", ["2", "3"], {"bias": "False"}).flat()
    'nn.Linear(2, 3, bias=False)'
    """
    parts = [("", part) for part in positional]
    parts += [(f"{key}=", part) for key, part in (keywords or {}).items()]
    return Bracketed(f"{name}(", parts)


def literal(value: Any) -> str | None:
    """Return the source of a plain value; None if it isn't plain.

    >>> literal((1, "two", float("inf")))
    '(1, "two", float("inf"))'
    """
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # double quotes, as formatters prefer them
    if isinstance(value, float) and not isfinite(value):
        return f'float("{value}")'
    if value is None or isinstance(value, bool | int | float):
        # repr gives the shortest text that reads back as the same float; `:g` would round.
        return repr(value)
    if isinstance(value, tuple | list):
        parts = [literal(item) for item in value]
        plain = [part for part in parts if part is not None]
        if len(plain) < len(parts):
            return None
        comma = "," if len(plain) == 1 else ""
        return f"({', '.join(plain)}{comma})"
    return None
