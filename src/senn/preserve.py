"""One context that leaves a model as it was: training modes, buffers, hooks, random numbers.

Whatever only looks at a model (analysis, scoring, the checks of a change) runs it inside `preserve_model_state`. That a
forward pass in eval mode changes nothing is true of most models and wrong for some: a vector-quantization codebook, a
streaming norm or a counter of calls writes to its buffers in every pass.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from senn.compilation import run_eagerly

# Dictionaries and sets of a module whose entries a forward pass may change.
_REGISTERS = (
    "_buffers",
    "_non_persistent_buffers_set",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)

_NOTHING: dict[str, Any] = {}
"""Snapshot of an empty register."""

_WRITERS: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def note_writer(model: nn.Module) -> None:
    """Remember that a forward pass of a model writes to its parameters: from now on they are restored as well.

    Args:
        model: any module.
    """
    _WRITERS.add(model)


class ModelState:
    """Snapshot of everything that a forward pass may change: training modes, buffers, hooks.

    Parameters aren't part of it: a forward pass reads them, and copies would double the memory. But those of modules
    with code of their own in `train` or `eval` are (a low-rank branch is added to the weight there, and taken out
    again), and all of a model that `note_writer` knows. Buffers are copied.

    Args:
        models: any modules; parts that they share are recorded once.

    Attributes:
        modules: they and all modules inside.
    """

    def __init__(self, models: Iterable[nn.Module]) -> None:
        self._models = models = list(models)
        modules = dict.fromkeys(module for model in models for module in model.modules())
        self.modules = list(modules)
        self._modules = [(module, module.training, dict(vars(module))) for module in modules]
        registers: list[Any] = []
        buffers: dict[Tensor | None, None] = {}
        for module in modules:
            held = vars(module)
            # A compiled part keeps its registers on the side of C++: only the values of its buffers can be restored.
            if not isinstance(module, torch.jit.ScriptModule):
                registers += [held[name] for name in _REGISTERS if name in held]
            if module._buffers:
                buffers |= dict.fromkeys(module._buffers.values())
        rewritten = _rewritten(modules)
        for module in rewritten:
            if not isinstance(module, torch.jit.ScriptModule):
                registers += [module._parameters, module._modules]
        self._rewritten = {module: dict(vars(module)) for module in rewritten}
        own = dict.fromkeys(p for module in rewritten for p in module._parameters.values())
        self._parameters = [(p, p.detach().clone()) for p in own if p is not None]
        # Most registers of most modules are empty, and stay so.
        self._registers = [(one, one.copy() if one else _NOTHING) for one in registers]
        # A copy costs less than the pass itself, which reads every buffer; versions of tensors would be free, but
        # writes through `.data` and by fused kernels aren't counted in them.
        self._buffers = [
            (buffer, buffer.detach().clone()) for buffer in buffers if buffer is not None
        ]

    def set_mode(self, training: bool) -> None:
        """Put all modules into training or evaluation mode.

        Args:
            training: True for training mode.
        """
        if any(map(_switches, self.modules)):
            for model in self._models:
                model.train() if training else model.eval()
            return
        for module in self.modules:
            _set_mode(module, training)

    @property
    def devices(self) -> list[int]:
        """Numbers of the GPUs on which parameters and buffers lie, in order."""
        found: set[int] = set()
        for module in self.modules:
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None and tensor.is_cuda:
                    found.add(tensor.device.index or 0)
        return sorted(found)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore whatever has changed since; safe to call again if an interruption cut it short."""
        copies = {id(register): before for register, before in self._registers}
        for module, mode, attributes in self._modules:
            # Attributes and buffers change together: a rotary table is registered anew once a sequence is longer than
            # `self.max_len`. The old table beside the new `max_len` would make the next long batch fail.
            before = copies.get(id(attributes["_buffers"]))
            if before is not None and not _is_same(module._buffers, before):
                _restore(vars(module), attributes)
            elif module in self._rewritten:
                _restore(vars(module), self._rewritten[module])
            _set_mode(module, mode)
        for register, former in self._registers:
            _restore(register, former)
        for buffer, values in self._buffers:
            # Only a buffer that differs is written to: autograd counts every write as a change, and what it saved for
            # a backward pass would be refused.
            if not torch.equal(buffer, values):
                buffer.copy_(values)
        for parameter, values in self._parameters:
            if not torch.equal(parameter, values):
                parameter.data.copy_(values)


def _rewritten(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Return the modules whose parameters and attributes a switch of modes, or a forward pass, may rewrite."""
    found: dict[nn.Module, None] = {}
    for module in modules:
        is_own = _switches(module) and not isinstance(module, torch.jit.ScriptModule)
        if is_own or module in _WRITERS:
            found |= dict.fromkeys(module.modules())
    return list(found)


def _switches(module: nn.Module) -> bool:
    """Return True for a module with code of its own in `train` or `eval`, which may do anything to those inside."""
    kind = type(module)
    switches = kind.train is not nn.Module.train or kind.eval is not nn.Module.eval
    return switches or "train" in vars(module) or "eval" in vars(module)


def _set_mode(module: nn.Module, training: bool) -> None:
    """Set the mode of one module, without those inside."""
    held = vars(module)
    if type(held.get("training")) is bool:  # `setattr` of modules takes much longer
        held["training"] = training
    else:  # a compiled part keeps it on the side of C++
        module.training = training


def _restore(register: Any, before: Any) -> None:
    """Restore the entries of a dictionary or set, and their order."""
    # An unchanged one isn't touched: torch.compile guards on these dictionaries.
    if not _is_same(register, before):
        register.clear()
        register.update(before)


def _is_same(register: Any, before: Any) -> bool:
    if not register and not before:
        return True
    if isinstance(register, set):
        return bool(register == before)
    # By identity: == of two tensors is a tensor.
    if [*register] != [*before]:
        return False
    return all(register[key] is value for key, value in before.items())


@contextmanager
def preserve_model_state(
    model: nn.Module, *, fused: bool = True, training: bool = False
) -> Iterator[None]:
    """Put a model into eval mode inside the context, and restore it and the global random state afterwards.

    Training modes, buffers (their values, and which there are), hooks and the states of the global random number
    generators are restored, also when the forward pass raises. Compute gradients inside the context: restoring a buffer
    that the backward pass still needs would invalidate it.

    Args:
        model: any module.
        fused: False turns off the kernels that hide linear maps from whoever watches operations: the fast path of
            `nn.TransformerEncoderLayer`, and fused recurrent layers on the CPU.
        training: True for training mode inside the context instead.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from senn.preserve import preserve_model_state
        >>> model = nn.Sequential(nn.Dropout(), nn.Linear(2, 1))
        >>> with preserve_model_state(model):
        ...     model.training
        False
        >>> model.training
        True
    """
    state = ModelState([model])
    try:
        state.set_mode(training)
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(state.devices))
            stack.enter_context(run_eagerly())
            if not fused:
                stack.enter_context(_unfused(state.modules))
            yield
    finally:
        state.restore()


@contextmanager
def _unfused(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run transformer layers, and recurrent layers on the CPU, as single operations."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with ExitStack() as stack:
            if any(isinstance(module, nn.RNNBase) for module in modules):
                stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter(
                    "ignore"
                )  # oneDNN warns that its flags are global to the process
                stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
