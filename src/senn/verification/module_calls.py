"""Recording of what the modules of a copy are called with, and what they give back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from senn import pytree
from senn.compilation import WatchMode
from senn.graph.forward_passes import failure
from senn.pytree import Inputs


class ForwardError(Exception):
    """The forward pass of a copy fails; the message says why."""


@dataclass(eq=False, kw_only=True)
class ModuleCall:
    """One call of a module.

    Attributes:
        args: positional arguments, copied.
        kwargs: keyword arguments, copied.
        inputs: first tensor among the arguments; empty if there is none.
        output: first tensor of the result; None if there is none.
    """

    args: Any
    kwargs: Any
    inputs: Tensor
    output: Tensor | None = None

    @property
    def may_be_residual(self) -> bool:
        """True if the module gave back a tensor of the shape and dtype of its input, which wasn't all zeros."""
        output, inputs = self.output, self.inputs
        if output is None or output.shape != inputs.shape or output.dtype != inputs.dtype:
            return False
        # Zeros come back as zeros from any branch that is zero, residual or not.
        return bool(self.inputs.any())


def floating_outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Run a copy of a model and return the floating-point tensors of its outputs.

    Args:
        model: the copy.
        inputs: what its forward takes.

    Raises:
        ForwardError: the forward pass fails.
    """
    try:
        found = pytree.tensor_leaves(pytree.call(model, pytree.clone(inputs)))
    except Exception as error:
        raise ForwardError(failure(error)) from error
    return [tensor for tensor in found if tensor.is_floating_point()]


def record_calls(
    model: nn.Module, names: Sequence[str], inputs: Inputs, order: dict[int, int]
) -> dict[str, ModuleCall]:
    """Run a copy of a model and record the calls of modules that run once and may be residual.

    Args:
        model: the copy.
        names: of the modules.
        inputs: what the model's forward takes.
        order: filled, if empty, with the order in which operations read tensors first, by the tensors' ids.

    Returns:
        Calls by module, in the order in which modules are entered.

    Raises:
        ForwardError: the forward pass fails.
    """
    calls: dict[str, list[ModuleCall]] = {name: [] for name in names}
    entered: list[str] = []

    def enter(name: str) -> Any:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            # Copied at once: later modules may write to these tensors.
            args, kwargs = copy_arguments((args, kwargs))
            tensors = pytree.tensor_leaves([args, kwargs])
            first = tensors[0] if tensors else torch.empty(0)
            calls[name].append(ModuleCall(args=args, kwargs=kwargs, inputs=first))
            entered.append(name)

        return hook

    def leave(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            made = first_tensor(output)
            calls[name][-1].output = None if made is None else made.clone()

        return hook

    with ExitStack() as stack:
        for name in names:
            module = model.get_submodule(name)
            stack.callback(module.register_forward_pre_hook(enter(name), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(leave(name)).remove)
        if not order:
            stack.enter_context(_FirstReads(order))
        floating_outputs(model, inputs)
    # Of a module that runs twice nobody knows which call a copy would belong to.
    once = {name: calls[name][0] for name in entered if len(calls[name]) == 1}
    return {name: call for name, call in once.items() if call.may_be_residual}


class _FirstReads(WatchMode):
    """Records the order in which operations read tensors first, by the tensors' ids."""

    def __init__(self, order: dict[int, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.order = order

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in (*args, *kwargs.values()) if kwargs else args:
            self.order.setdefault(id(tensor), len(self.order))
        return func(*args, **(kwargs or {}))


def first_tensor(output: Any) -> Tensor | None:
    """Return what a module gives back: a tensor, or the first of several; None for anything else."""
    found = pytree.tensor_leaves(output) if isinstance(output, Tensor | tuple | list) else []
    return found[0] if found else None


def copy_arguments(arguments: Any) -> Any:
    """Copy arguments of a call, caches of keys and values included."""
    with torch.no_grad():
        try:
            return copy.deepcopy(arguments)
        except Exception:  # some argument can't be copied: its tensors can
            return pytree.clone(arguments)
