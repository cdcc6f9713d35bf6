"""The rule of each ATen operation.

A rule is a function `rule(trace, call)` that reads the coats of the call's inputs (`trace.coats(tensor)`), gives its
outputs theirs (`trace.dress(tensor, coats)`), and tells `trace.record` which units are the same (`unite`), which only
come and go together (`unite_along`) or must not change (`refuse`). `rule_for` picks it: the tables `RULES` of the
files here by operation name without overload ("aten::view"), then any operation that torch tags as pointwise, then
`unknown`, which refuses every unit that the operation sees.

To teach another operation, write its rule and add it to the table of the file that fits: `views` moves and copies
entries, `pointwise` computes entry by entry and reduces, `linear` reads units and makes new ones, `norms` normalises.
A whole layer can have a rule of its own (`module_rules`).
"""

from __future__ import annotations

from typing import Any

import torch

from senn.graph.tracing.recorded import Call
from senn.graph.tracing.recorder import TraceRecorder
from senn.graph.tracing.rules import linear, norms, pointwise, views
from senn.graph.tracing.rules.pointwise import Rule, Rules

_RULES: Rules = {}


def register() -> None:
    """Put the rules of all files into the table that `rule_for` reads; again and again changes nothing."""
    if not _RULES:
        for file in (views, pointwise, linear, norms):
            _RULES.update(file.RULES)


def rule_for(func: Any) -> Rule:
    """Return the rule of an ATen operation, such as `torch.ops.aten.relu.default`."""
    if (rule := _RULES.get(func._schema.name)) is not None:
        return rule
    return pointwise.pointwise if torch.Tag.pointwise in func.tags else unknown


def unknown(trace: TraceRecorder, call: Call) -> None:
    """Refuse every unit that meets an operation without a rule."""
    trace.refuse_call(call)
