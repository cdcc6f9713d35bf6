"""Running a model once, watched: every ATen operation and every call of its own Python code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from senn import batch
from senn.batch import Inputs
from senn.errors import SennError
from senn.preserve import preserve_model_state
from senn.structure.sizes.symbolic_int import Numbers
from senn.structure.tracing.recorder import Trace
from senn.structure.tracing.rules.module_rules import Visit, leaf_rule
from senn.structure.tracing.rules.pointwise import Call


class _Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows every ATen operation to a trace."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = trace

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.trace.see(Call(func, args, kwargs or {}, result))
        return result


@contextmanager
def _followed(trace: Trace) -> Iterator[None]:
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
                    rule(Visit(trace, name, module, args, kwargs, output))
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


def run(model: nn.Module, inputs: Inputs) -> tuple[Trace, Numbers]:
    """Run the model once in eval mode and follow its labels and its numbers.

    Returns:
        The trace, and the `numbers.Numbers` seen in the forward's Python code.

    Raises:
        SennError: the forward pass fails on these inputs.
    """
    trace = Trace(model)
    numbers = Numbers(trace)
    with (
        torch.no_grad(),
        preserve_model_state(model, fused=False),
        _followed(trace),
        _Dispatch(trace),
        numbers.watching(),
    ):
        try:
            trace.output = batch.call(model, batch.copied(inputs))
        except Exception as error:
            raise SennError(f"The model's forward pass fails on the example inputs: {describe(error)}.") from error
    return trace, numbers


def describe(error: Exception) -> str:
    """An error in one line."""
    text = str(error).strip().split("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
