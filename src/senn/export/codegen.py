"""Python expressions laid out as a formatter would: on one line if they fit, otherwise a line for each part."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

COLUMNS = 100


@dataclass(frozen=True)
class Group:
    """Something in brackets.

    Attributes:
        head: what stands before the parts, with the opening bracket.
        parts: each with what stands before it (`bias=`), in order.
        tail: the closing brackets.
        spread: whether each part has a line of its own in any case.
        notes: comments above parts, by their number.
    """

    head: str
    parts: Sequence[tuple[str, Group | str]]
    tail: str = field(default=")", kw_only=True)
    spread: bool = field(default=False, kw_only=True)
    notes: Mapping[int, str] = field(default_factory=dict, kw_only=True)

    def flat(self) -> str | None:
        """On one line; None if a part wants lines of its own."""
        if self.spread:
            return None
        texts = []
        for before, part in self.parts:
            text = part if isinstance(part, str) else part.flat()
            if text is None:
                return None
            texts.append(before + text)
        return self.head + ", ".join(texts) + self.tail


def lay_out(value: Group | str, indent: int = 0, before: str = "", after: str = "") -> list[str]:
    """The lines of `before value after`, as far from the margin as `indent`."""
    group = " " * indent
    flat = value if isinstance(value, str) else value.flat()
    if isinstance(value, str) or (flat is not None and len(group + before + flat + after) <= COLUMNS):
        return [f"{group}{before}{flat}{after}"]
    lines = [group + before + value.head]
    for number, (name, part) in enumerate(value.parts):
        if number in value.notes:
            lines.append(f"{group}    # {value.notes[number]}")
        lines += lay_out(part, indent + 4, name, ",")
    return [*lines, group + value.tail + after]


def call(name: str, positional: Sequence[Group | str], keywords: Mapping[str, Group | str] | None = None) -> Group:
    """`name(positional, keyword=...)`."""
    named = [(f"{key}=", part) for key, part in (keywords or {}).items()]
    return Group(f"{name}(", [*(("", part) for part in positional), *named])


def literal(value: Any) -> str | None:
    """A plain value as source, None if it isn't plain."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, float) and not isfinite(value):
        return f'float("{value}")'
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        parts = [literal(item) for item in value]
        known = [part for part in parts if part is not None]
        return f"({', '.join(known)}{',' * (len(known) == 1)})" if len(known) == len(parts) else None
    return None
