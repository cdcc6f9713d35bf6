"""Text of single cells in the tables of a graph."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from senn.graph.norm_record import Norm

MANY_PLACES = 4
"""From so many on, places that are refused for one reason share a line."""


def left_alone(norm: Norm) -> str:
    """Return why a grower doesn't buy units of a group behind a norm unless it is asked to."""
    start = "as the mean of the others" if norm.kind == "layer" else "as zeros"
    where = norm.module or "the model's own forward"
    return (
        f"new units enter {where}, which normalizes over them, {start}, and leave it as zeros: their columns have no "
        "gradient. CandidateConfig(stream_units=16) has a grower choose them by the rows that write them"
    )


def refused_places(refusals: Iterable[tuple[str, str, str]]) -> Iterator[tuple[str, str]]:
    """Places and reasons; places of one reason in one line, with numbers in their names as `*`, if there are many.

    Args:
        refusals: (place, reason, line of the code) of each.

    Yields:
        (places, reason) of each line.
    """
    by_reason: dict[str, list[str]] = {}
    for place, reason, line in refusals:
        reason = f"{reason} ({line})" if line else reason
        by_reason.setdefault(reason, []).append(place or "(the model)")
    for reason, places in by_reason.items():
        if len(places) < MANY_PLACES:
            yield from ((place, reason) for place in places)
            continue
        # Numbers of layers, not those in names of layers.
        counts = Counter(re.sub(r"(^|\.)\d+(?=\.)", r"\1*", place) for place in places)
        shown = [name if count == 1 else f"{name} ({count})" for name, count in counts.items()]
        yield ", ".join(shown), reason
