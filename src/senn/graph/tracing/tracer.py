"""Running a model once, watched: every ATen operation and every call of its own Python code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from senn import pytree
from senn.errors import SennError, UnsupportedError, in_one_line
from senn.graph.sizes.symbolic_int import Numbers
from senn.graph.tracing.recorded import Call, WeightUse
from senn.graph.tracing.recorder import TraceRecorder
from senn.graph.tracing.rules.module_rules import Visit, leaf_rule
from senn.graph.tracing.rules.registry import register, rule_for
from senn.preserve import preserve_model_state
from senn.pytree import Inputs


class _Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows every ATen operation to a trace."""

    def __init__(self, trace: TraceRecorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = trace

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.trace.see(Call(func=func, args=args, kwargs=kwargs or {}, result=result), rule_for(func))
        return result


@contextmanager
def _followed(trace: TraceRecorder) -> Iterator[None]:
    """Keep `trace.path` while modules run, and give leaf modules to their rules."""

    def enter(name: str, is_leaf: bool) -> Any:
        def hook(_module: nn.Module, _args: Any, _kwargs: Any) -> None:
            trace.path.append(name)
            trace.silenced += is_leaf

        return hook

    def leave(name: str, rule: Any) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            trace.silenced -= rule is not None
            with torch._C.DisableTorchFunction():  # looking at sizes here is none of the forward's business
                if rule is not None and not trace.silenced and output is not None:
                    rule(Visit(trace=trace, name=name, module=module, args=args, kwargs=kwargs, output=output))
                trace.path.pop()

        return hook

    with ExitStack() as stack:
        for name, module in trace.model.named_modules():
            rule = leaf_rule(module)
            for handle in (
                module.register_forward_pre_hook(enter(name, rule is not None), prepend=True, with_kwargs=True),
                module.register_forward_hook(leave(name, rule), always_call=True, with_kwargs=True),
            ):
                stack.callback(handle.remove)
        yield


def trace_forward(model: nn.Module, inputs: Inputs) -> tuple[TraceRecorder, Numbers]:
    """Run the model once in eval mode and follow its labels and its numbers.

    Returns:
        The trace, and the `symbolic_int.Numbers` seen in the forward's Python code.

    Raises:
        SennError: the forward pass fails on these inputs.
        UnsupportedError: it returns nothing that could be followed.
    """
    register()
    trace = TraceRecorder(model)
    numbers = Numbers(trace)
    with (
        torch.no_grad(),
        preserve_model_state(model, fused=False),
        _followed(trace),
        _Dispatch(trace),
        numbers.watching(),
    ):
        try:
            output = pytree.call(model, pytree.clone(inputs))
        except Exception as error:
            raise SennError(f"The model's forward pass fails on the example inputs: {in_one_line(error)}.") from error
    returned = pytree.tensor_leaves(output)
    if not returned:
        raise UnsupportedError(
            f"The model returns a {type(output).__name__} without any tensor that could be followed; tensors, "
            "and tuples, lists, mappings and dataclasses of them, are understood."
        )
    for tensor in returned:
        if trace.is_labeled(tensor):
            trace.refuse(tensor, "its units are the model's outputs")
    _drop_dead_refusals(trace, live=set(map(id, returned)))
    _join_uses(trace)
    return trace, numbers


def _drop_dead_refusals(trace: TraceRecorder, live: set[int]) -> None:
    """Drop refusals by operations whose results nothing was made of (averages of attention that nobody takes)."""
    dead: set[int] = set()
    for step in reversed(trace.history):
        if step.mutates or not step.outputs or not live.isdisjoint(step.outputs):  # no tensor: a value for Python code
            live |= step.inputs
        else:
            dead.update(step.refusals)
    trace.record.refusals = [one for number, one in enumerate(trace.record.refusals) if number not in dead]


def _join_uses(trace: TraceRecorder) -> None:
    """What a map used several times reads with one column is one unit; a first state of zeros follows it."""
    seen: dict[tuple[str, int], list[WeightUse]] = {}
    for use in trace.uses:
        seen.setdefault((use.weight, use.in_dim), []).append(use)
    for uses in seen.values():
        labeled = [use for use in uses if bool(use.columns.any())]
        if not labeled:
            continue
        columns = labeled[0].columns
        for use in labeled[1:]:
            trace.record.merge(columns, use.columns)
        for use in uses:
            if use in labeled:
                continue
            if use.uniform:
                source = use.source[0]
                source.copy_(columns.to(source.device).expand_as(source))
            else:
                trace.record.refuse(columns, f"{use.weight} reads its units and also a tensor that has no units")
