"""Running a model to look at it, leaving it as it was."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from senn import batch
from senn.batch import Inputs


@contextmanager
def untouched(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Eval mode without gradients; training flags, buffers and random number generators are as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    registers = [(module, dict(module._buffers)) for module in model.modules()]
    tensors = [*model.parameters(), *batch.tensors(inputs)]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        for module, _ in modes:
            module.training = False
        torch.backends.mha.set_fastpath_enabled(False)  # it hides the linear maps inside transformer layers
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch.random.fork_rng(sorted({t.device.index or 0 for t in tensors if t.is_cuda})))
            if any(isinstance(module, nn.RNNBase) for module, _ in modes):
                stack.enter_context(_unfused())
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, mode in modes:
            module.training = mode
        for module, register in registers:
            module._buffers.update(register)
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


@contextmanager
def _unfused() -> Iterator[None]:
    """Recurrent layers as single operations: the fused kernel hides their gates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.backends.mkldnn.flags(enabled=False):
            yield
