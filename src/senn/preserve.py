"""Running a model to read something off it, and leaving it exactly as it was."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

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


class ModelState:
    """What a forward pass may change in some models, as it is now: training modes, buffers, hooks.

    Parameters aren't part of it: a forward pass reads them, and copies would double the memory. Buffers are copied,
    since a forward pass may write to them in eval mode too (a codebook, a streaming norm, a counter of calls). A module
    whose buffers are others afterwards gets its plain attributes back as well: a rotary table is registered anew when a
    sequence is longer than an attribute says, and either one without the other would be wrong.
    """

    def __init__(self, models: Iterable[nn.Module]) -> None:
        modules = dict.fromkeys(module for model in models for module in model.modules())
        self._modules = [(module, module.training, dict(vars(module))) for module in modules]
        registers = [vars(module)[name] for module in modules for name in _REGISTERS if name in vars(module)]
        self._registers = [(register, register.copy()) for register in registers]
        buffers = dict.fromkeys(buffer for module in modules for buffer in module._buffers.values())
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in buffers if buffer is not None]

    @torch.no_grad()
    def restore(self) -> None:
        """Restore all that has changed since; after an interruption it can be called once more."""
        copies = {id(register): before for register, before in self._registers}
        for module, mode, attributes in self._modules:
            if not _is_same(module._buffers, copies[id(attributes["_buffers"])]):
                _restore(vars(module), attributes)
            module.training = mode
        for register, before in self._registers:
            _restore(register, before)
        for buffer, values in self._buffers:
            # Autograd counts every write as a change, even of no bit: what it has saved for a backward stays valid.
            if not torch.equal(buffer, values):
                buffer.copy_(values)


def _restore(register: Any, before: Any) -> None:
    """Restore a dictionary or set with the order of its entries; compilers watch, so an unchanged one stays alone."""
    if not _is_same(register, before):
        register.clear()
        register.update(before)


def _is_same(register: Any, before: Any) -> bool:
    if isinstance(register, set):
        return bool(register == before)
    return [*register] == [*before] and all(register[key] is value for key, value in before.items())


@contextmanager
def preserve_model_state(model: nn.Module, *, fused: bool = True) -> Iterator[None]:
    """Put a model into eval mode inside; afterwards it, and the global random numbers, are as they were.

    Preserved are training modes, buffers (values, and which there are), hooks and the states of the global random
    number generators, also if the forward pass raises. Whoever needs gradients computes them inside: a buffer that is
    written back after the forward pass may be one that the backward pass reads.

    Args:
        model: any module.
        fused: False turns off the kernels that hide linear maps from whoever watches operations: the fast path of
            `nn.TransformerEncoderLayer` and fused recurrent layers.
    """
    state = ModelState([model])
    devices = {tensor.device.index or 0 for tensor in (*model.parameters(), *model.buffers()) if tensor.is_cuda}
    try:
        model.eval()
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(sorted(devices)))
            if not fused:
                stack.enter_context(_unfused(model))
            yield
    finally:
        state.restore()


@contextmanager
def _unfused(model: nn.Module) -> Iterator[None]:
    """Turn fused transformer layers, and on the CPU fused recurrent layers, into single operations."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with ExitStack() as stack:
            if any(isinstance(module, nn.RNNBase) for module in model.modules()):
                stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")  # oneDNN warns that its flags are changed while others may use it
                stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
