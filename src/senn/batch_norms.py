"""Running statistics of batch norms, taken anew from a network's weights as they are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms of a model that keep running statistics."""
    return [
        one for one in model.modules() if isinstance(one, _BatchNorm) and one.track_running_stats
    ]


@torch.no_grad()
def renew_batch_norms(model: nn.Module, run: Callable[[], None]) -> None:
    """Replace running statistics by plain means over some batches.

    What training keeps is an average over its last ten steps or so. On a small set that is several epochs, in which the
    weights have moved on, and after a change of size it is of another network. Then the network is judged by
    activations that it doesn't have. "Precise" statistics (Wu & Johnson 2021, *Rethinking "Batch" in BatchNorm*, arXiv
    2105.07576, section 3) are those of the weights themselves.

    Args:
        model: any module; modes, hooks, random state and everything but the running statistics are left alone, after an
            error or an interrupt these as well.
        run: passes the batches through the model, of two rows each at least.
    """
    norms = batch_norms(model)
    if not norms:
        return
    modes = [(one, one.training) for one in model.modules()]
    former = [(one, one.momentum, dict(one.named_buffers(recurse=False))) for one in norms]
    model.eval()  # no dropout: it isn't there where the network is used
    try:
        for one in norms:
            one.train()
            one.momentum = None  # the mean of all batches
            for name, buffer in one.named_buffers(recurse=False):
                setattr(one, name, buffer.clone())
            one.reset_running_stats()
        run()
        for one, _, buffers in former:
            for name in ("running_mean", "running_var"):
                buffers[name].copy_(getattr(one, name))
    finally:
        for one, momentum, buffers in former:
            one.momentum = momentum
            for name, buffer in buffers.items():
                setattr(one, name, buffer)
        for module, mode in modes:
            module.training = mode
