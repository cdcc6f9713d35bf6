"""Statistics over whole units, as normalizations take them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from senn.graph.tracing.label_maps import LabelMaps
from senn.graph.tracing.labels import distinct
from senn.graph.tracing.recorded import Call

_POWERS = {"sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0}
# Operations that keep every entry, in another shape or dtype.
_SAME_ENTRIES_NAMES = (
    "to_copy clone detach alias lift_fresh view unsafe_view reshape expand unsqueeze squeeze transpose "
    "permute t"
)
SAME_ENTRIES = frozenset(_SAME_ENTRIES_NAMES.split())


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistic:
    """A number over whole units, which changes when units join.

    Attributes:
        label_map: of the tensor that it is taken of.
        kind: `mean`, or what a norm that divides by it is: `layer` (of centered entries) or `rms`.
        power: it becomes (C / (C + k)) ** power of what it was.
        spare: subtracted from both numbers of units in that fraction (1 for an unbiased variance).
        root: identity of the tensor that it is taken of.
        reason: why its units are refused if it isn't used as a normalization does.
        line: line of the forward's code that takes it.
        eps: a small number that was added; None if there was none.
        eps_power: exponent with which that must change.
        other_power: what `power` may be instead; None if it is certain.
    """

    label_map: Tensor
    kind: Literal["mean", "layer", "rms"]
    power: float
    spare: int
    root: int
    reason: str
    line: str
    eps: float | None = None
    eps_power: float = 0.0
    other_power: float | None = None


def as_number(value: object) -> float | None:
    """Return a number, or the single entry of a tensor, as a float; None for anything else."""
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 else None
    return float(value) if isinstance(value, int | float) else None


def is_even(call: Call) -> bool:
    """Return True for x ** 2, x * x, |x|: functions that are the same for -x."""
    if call.operation == "mul":
        return len(call.tensors) == 2 and call.tensors[0] is call.tensors[1]
    exponent = call.arguments.get("exponent")  # may be a tensor
    is_square = isinstance(exponent, int | float) and exponent in (2, 4)
    return call.operation == "abs" or (call.operation == "pow" and is_square)


def same_units(first: Tensor, second: Tensor) -> bool:
    """Return True if two label maps hold the same labels.

    Args:
        first: of any shape.
        second: of any shape.
    """
    own, other = (distinct(labels[labels != 0]) for labels in (first, second))
    return own.shape == other.shape and bool((own == other).all())


def changed(trace: LabelMaps, call: Call, statistic: Statistic) -> Statistic | None:
    """Return what an operation on a statistic and numbers gives; None if it isn't understood.

    Args:
        trace: label maps of the pass.
        call: the operation, already executed.
        statistic: its input.
    """
    operation, arguments = call.operation, call.arguments
    if operation in SAME_ENTRIES:
        return statistic
    exponent = _POWERS.get(operation)
    if operation == "pow" and isinstance(arguments.get("exponent"), int | float):
        exponent = arguments["exponent"]
    if exponent is not None:
        other = statistic.other_power
        return replace(
            statistic,
            power=statistic.power * exponent,
            other_power=None if other is None else other * exponent,
        )
    number = as_number(arguments.get("other", arguments.get("min")))
    if number is None:
        return None
    if operation in ("add", "clamp_min", "clamp", "maximum"):
        if not statistic.power:
            return statistic
        return replace(statistic, eps=number, eps_power=statistic.power)
    if operation in ("mul", "div"):
        sign = -1 if operation == "mul" else 1
        share, other = share_of_count(trace, number, statistic.label_map)
        return replace(
            statistic,
            power=statistic.power + sign * share,
            other_power=statistic.power + sign * other if share != other else None,
        )
    return None


def share_of_count(trace: LabelMaps, number: float, label_map: Tensor) -> tuple[float, float]:
    """Return p if a number is the number of units ** p, else 0, and the other of both if either may be true.

    Computed by the forward from a size, it changes with the units; kept by a module, it doesn't.

    Args:
        trace: label maps of the pass.
        number: the number.
        label_map: that holds the units.
    """
    count = len(distinct(label_map[label_map != 0]))
    powers = [
        power
        for power in (1.0, 0.5, -0.5, -1.0)
        if count > 1 and math.isclose(number, count**power, rel_tol=1e-6)
    ]
    if not powers:
        return 0.0, 0.0
    held = [vars(trace.model.get_submodule(path)) for path in trace.path]
    values = [value for one in held for value in one.values() if type(value) is float]
    is_kept = any(math.isclose(value, number) for value in values)
    return (0.0, powers[0]) if is_kept else (powers[0], 0.0)
