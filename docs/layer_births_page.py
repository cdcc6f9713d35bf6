"""Section of docs/criteria.md on how layers are born, from the stored results of benchmarks/layer_births.py."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from mean_error import mean_error
from stored_results import is_stored, stored, table

Record = Mapping[str, Any]


def layer_births() -> Iterator[str]:
    """Losses by the birth of a layer; nothing where no results are stored."""
    if not is_stored("layer_births"):
        return
    records: list[Record] = [*stored("layer_births").values()]
    arms, tasks = ([*dict.fromkeys(one[key] for one in records)] for key in ("arm", "task"))
    commands = sorted({one["command"] for one in records})
    yield "## How a layer is born\n\n" + "\n\n".join(f"`{one}`" for one in commands) + "\n"
    yield (
        "A hidden layer comes before the last map, at a quarter (*early*) or at six tenths (*late*) of the steps, in "
        "nets with hidden layers of 32 units. *Residual*: 16 units beside a path around them, chosen by the score "
        "among 32; *drawn*: 16 units that nobody chose; *fresh*: the same layer with PyTorch's own initialization, "
        "whatever that does to the loss; *identity*: a layer with PReLU, folded into the map after it; *start*: the "
        "layer is there from the start. Log ratios of validation losses at the end, paired by task and seed, mean and "
        "standard error: **below 0 the first is better**.\n"
    )
    for when in dict.fromkeys(one["when"] for one in records):
        losses = {
            (one["arm"], one["task"], one["seed"]): one["loss"]
            for one in records
            if one["when"] == when
        }
        rows = []
        for arm in arms:
            cells = [_ratio(losses, arm, "none", [task]) for task in tasks]
            rows.append(
                (
                    arm,
                    *cells,
                    _ratio(losses, arm, "none", tasks),
                    _ratio(losses, arm, "residual silent", tasks),
                )
            )
        head = (
            "layer",
            *(f"{task}, less none" for task in tasks),
            "all, less none",
            "all, less residual silent",
        )
        yield f"{when}:\n\n{table(head, rows)}\n"


def _ratio(losses: Mapping[Any, float], arm: str, other: str, tasks: list[str]) -> str:
    ratios = [
        math.log(loss / losses[other, task, seed])
        for (name, task, seed), loss in losses.items()
        if name == arm and task in tasks and (other, task, seed) in losses
    ]
    return mean_error(ratios, sign=True) if ratios and arm != other else "-"
