"""The rule of each ATen operation.

A rule is a function `rule(trace, call)` of the recorder and one executed operation. It reads the label maps of the
inputs (`trace.labels_of(tensor)`) and sets those of the outputs (`trace.set_labels(tensor, label_maps)`). In
`trace.record` it notes which units are the same (`merge`), which come and go together (`merge_along`) and which must
not change (`refuse`). `rule_for` picks it: first the tables `RULES` of the files here, by operation name without
overload ("aten::view"); then `pointwise` for every operation that torch tags so; then `unknown`, which refuses every
unit that the operation meets.

To teach another operation, write its rule and add it to the table of the file that fits: `views` moves and copies
entries, `indexing` writes where an index says, `pointwise` computes entry by entry and reduces, `linear` reads units
and makes new ones, `norms` normalizes. A whole layer can have a rule of its own: see `module_rules`.
"""

from __future__ import annotations

from typing import Any

import torch

from senn.graph.tracing.recorded import Call
from senn.graph.tracing.rules import indexing, linear, norms, pointwise, views
from senn.graph.tracing.rules.pointwise import Rule, Rules
from senn.graph.tracing.trace_recorder import TraceRecorder

_RULES: Rules = {}


def register() -> None:
    """Fill the table of rules from all files; calling it again changes nothing."""
    if not _RULES:
        for file in (views, indexing, pointwise, linear, norms):
            _RULES.update(file.RULES)


def rule_for(func: Any) -> Rule:
    """Return the rule of an ATen operation, such as `torch.ops.aten.relu.default`."""
    rule = _RULES.get(
        func._schema.name
    )  # also for `pointwise` operations that need a rule of their own
    if rule is not None:
        return rule
    return pointwise.pointwise if torch.Tag.pointwise in func.tags else unknown


def unknown(trace: TraceRecorder, call: Call) -> None:
    """Refuse every unit that meets an operation without a rule.

    Args:
        trace: the recorder.
        call: the operation.
    """
    trace.refuse_call(call)
