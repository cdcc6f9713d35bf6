"""Section of docs/criteria.md on births at other moments, from the stored results of benchmarks/criteria.py."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mean_error import mean_error
from stored_results import table

Record = Mapping[str, Any]
MOMENTS = {
    "half": "at once, at half of the steps",
    "spread": "in eight births, after each of the first 8 of 15 epochs",
}


def moments(records: Sequence[Record]) -> Iterator[str]:
    """All units at half of a run, or a few after each epoch, beside a net that had them from the beginning."""
    rows = []
    for task in dict.fromkeys(one["task"] for one in records):
        fixed = {
            one["seed"]: one for one in records if (one["task"], one["arm"]) == (task, "fixed")
        }
        for when in MOMENTS:
            mine = [one for one in records if one["task"] == task and one["when"] == when]
            for arm, birth in dict.fromkeys((one["arm"], one["birth"]) for one in mine):
                found = [one for one in mine if (one["arm"], one["birth"]) == (arm, birth)]
                rows.append((task, when, arm, birth, *_figures(found, fixed)))
        if any(row[0] == task for row in rows):
            rows.append((task, "-", "fixed", "none", *_figures([*fixed.values()], {})))
    if not rows:
        return
    about = "; ".join(f"*{when}*: {what}" for when, what in MOMENTS.items())
    yield (
        f"\n## Other moments\n\nThe same units come {about}. Differences are those to the net of the final size, "
        "paired seed by seed, with their standard error; above 0 in accuracy and below 0 in loss growing is better.\n"
    )
    head = ("task", "when", "units from", "birth", "seeds", "accuracy or R²", "less fixed")
    yield table((*head, "loss", "less fixed"), rows) + "\n"


def _figures(found: Sequence[Record], fixed: Mapping[int, Record]) -> tuple[str, ...]:
    cells = [f"{len(found)}"]
    for key in ("score", "loss"):
        cells.append(f"{statistics.fmean(one[key] for one in found):.4f}")
        less = [one[key] - fixed[one["seed"]][key] for one in found if one["seed"] in fixed]
        cells.append(mean_error(less, sign=True) if less else "-")
    return tuple(cells)
