"""Run a model once and watch every ATen operation and every torch call of its code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from senn import pytree
from senn.compilation import WatchMode
from senn.errors import SennError, UnsupportedError
from senn.graph.forward_passes import ForwardPass, failure
from senn.graph.sizes.size_tracker import SizeTracker
from senn.graph.tracing.label_maps import write_labels
from senn.graph.tracing.operation_stream import OperationStream
from senn.graph.tracing.recorded import Call, WeightUse
from senn.graph.tracing.rules.module_rules import LayerRule, Visit, rule_of
from senn.graph.tracing.rules.registry import register, rule_for
from senn.graph.tracing.trace_recorder import TraceRecorder
from senn.preserve import preserve_model_state
from senn.pytree import Output


def trace_forward(
    model: nn.Module, passes: Sequence[ForwardPass], output: Output | None = None
) -> tuple[TraceRecorder, SizeTracker]:
    """Run a model once in each given way, following its labels and its sizes.

    A row of a weight has the same label in all passes, so what any of them shows about its units holds for all.

    Args:
        model: any module; its modes, buffers and random state are left as they were.
        passes: how it is run; the first one counts where they differ in order.
        output: finds, in what the model returns, outputs that may grow; None where all outputs keep their sizes.

    Returns:
        The label maps and weight uses of the passes, and the sizes that their Python code computed with.

    Raises:
        SennError: the forward pass fails on these inputs.
        UnsupportedError: it returns no tensor that could be followed.
    """
    register()  # explicit, so that a rule file that nobody imports can't go missing unnoticed
    trace = TraceRecorder(model)
    trace.finds_output = output
    sizes = SizeTracker(trace)
    done: list[tuple[ForwardPass, OperationStream]] = []
    for number, one in enumerate(passes):
        alike = [stream for other, stream in done if other.inputs is one.inputs]
        if alike and _stream_of(model, one) in alike:
            continue  # the same operations on the same tensors: their labels are known
        trace.begin_pass(number)
        trace.note_inputs(pytree.tensor_leaves(pytree.arguments(one.inputs)))
        _end_pass(trace, _watched(one, trace, sizes))
        done.append((one, trace.stream))
    _merge_repeated_uses(trace)
    return trace, sizes


def _stream_of(model: nn.Module, one: ForwardPass) -> OperationStream | None:
    """Run a model and return what it does, without following labels; None if it fails."""
    trace = TraceRecorder(model)
    trace.streams_only = True
    try:
        _watched(one, trace, SizeTracker(trace))
    except SennError:
        return None
    return trace.stream


def _watched(one: ForwardPass, trace: TraceRecorder, sizes: SizeTracker) -> Any:
    """Run a model under watch and return what it returns."""
    model = trace.model
    with (
        torch.no_grad(),
        preserve_model_state(model, fused=False, training=one.training),
        _watch_modules(trace),
        _Dispatch(trace),
        sizes.watching(),
    ):
        try:
            output = pytree.call(model, pytree.clone(one.inputs))
        except Exception as error:
            raise SennError(
                f"the model's forward pass fails on the example inputs: {failure(error)}"
            ) from error
        if trace.finds_output is not None and not trace.streams_only and not one.training:
            trace.outputs.append(trace.labels_of(trace.finds_output(output)))
    trace.stream.note("returned", trace.stream.key(pytree.tensor_leaves(output)))
    return output


def _end_pass(trace: TraceRecorder, output: Any) -> None:
    """Refuse the units of what the model returned."""
    returned = pytree.tensor_leaves(output)
    if not returned:
        raise UnsupportedError(
            f"the model returns a {type(output).__name__} without any tensor that could be followed; tensors, "
            "and tuples, lists, mappings and dataclasses of them, are understood"
        )
    for tensor in returned:  # refused after the pass, so that each group's own reason comes first
        if trace.is_labeled(tensor) and trace.finds_output is None:
            trace.refuse(tensor, "its units are the model's outputs")
        trace.flow.refuse(tensor)
    if (
        trace.finds_output is not None
    ):  # a loss that the model returns counts its classes, however many
        returned = [tensor for tensor in returned if tensor.dim()]
    _drop_dead_refusals(trace, live=set(map(id, returned)))


class _Dispatch(WatchMode):
    """Passes every ATen operation to a recorder, with its rule, after executing it."""

    def __init__(self, trace: TraceRecorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = trace

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.trace.is_paused:
            return func(*args, **kwargs)
        overwritten = None
        if args and func._schema.is_mutable and not self.trace.streams_only:
            target = args[0]
            if isinstance(target, Tensor) and not self.trace.is_labeled(target):
                overwritten = target.detach().clone()
        result = func(*args, **kwargs)
        call = Call(func=func, args=args, kwargs=kwargs, result=result, overwritten=overwritten)
        try:
            self.trace.follow(call, rule_for(func))
        except Exception as error:
            if isinstance(error, SennError):
                raise
            # A rule that meets a case it wasn't written for: the forward pass is not to blame, nor the whole model.
            self.trace.refuse_call(call)
        return result


@contextmanager
def _watch_modules(trace: TraceRecorder) -> Iterator[None]:
    """Keep `trace.path` up to date while modules run, and apply the rules of whole layers."""

    def enter(name: str, rule: LayerRule | None) -> Any:
        def hook(_module: nn.Module, _args: Any, _kwargs: Any) -> None:
            trace.path.append(name)
            trace.stream.note("entered", name)
            trace.entered.add(name)
            trace.silenced += rule is not None

        return hook

    def leave(name: str, rule: LayerRule | None) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            trace.silenced -= rule is not None
            trace.stream.note("left", name)
            if rule is not None:
                trace.stream.note(trace.stream.key((args, kwargs, output)))
            with (
                torch._C.DisableTorchFunction()
            ):  # the size tracker must not see the rule's own calls
                is_followed = not (trace.silenced or trace.streams_only)
                if rule is not None and is_followed and output is not None:
                    rule(
                        Visit(
                            trace=trace,
                            name=name,
                            module=module,
                            args=args,
                            kwargs=kwargs,
                            output=output,
                        )
                    )
                trace.path.pop()

        return hook

    with ExitStack() as stack:
        for name, module in trace.model.named_modules():
            rule = rule_of(module)
            # First before all other hooks, so that these count as inside; left even if the forward raises.
            before = module.register_forward_pre_hook(
                enter(name, rule), prepend=True, with_kwargs=True
            )
            after = module.register_forward_hook(
                leave(name, rule), always_call=True, with_kwargs=True
            )
            stack.callback(before.remove)
            stack.callback(after.remove)
        yield


def _drop_dead_refusals(trace: TraceRecorder, live: set[int]) -> None:
    """Drop refusals by operations whose results nothing was made of.

    `nn.MultiheadAttention` averages its attention weights over heads, and usually nobody takes the result.

    Args:
        trace: of the finished pass.
        live: identities of the returned tensors; extended backward to everything they were made of.
    """
    dead: set[int] = set()
    for step in reversed(trace.history[trace.pass_start :]):
        outputs = set(map(id, step.call.outputs))
        # An operation without tensors as outputs gave a value to Python code, where anything may depend on it.
        if not outputs or not live.isdisjoint(outputs) or step.call.func._schema.is_mutable:
            live.update(map(id, step.call.tensors))
        else:
            dead.update(step.refusals)
    kept = [refusal for number, refusal in enumerate(trace.record.refusals) if number not in dead]
    trace.record.refusals = kept


def _merge_repeated_uses(trace: TraceRecorder) -> None:
    """Merge the units that a map used several times reads with one column.

    The first state of a recurrent layer is zeros without units; it gets the labels of the later states.
    """
    uses_of: dict[tuple[str, int, torch.Size], list[WeightUse]] = {}
    for use in trace.uses:
        uses_of.setdefault((use.weight, use.in_dim, use.columns.shape), []).append(use)
    for uses in uses_of.values():
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
                write_labels(use.source, 0, columns.to(source.device).expand_as(source))
            else:
                trace.record.refuse(
                    columns, f"{use.weight} reads its units and also a tensor that has no units"
                )
