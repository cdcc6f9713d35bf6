"""Running statistics of batch norms, taken anew from a network's weights as they are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from senn.preserve import preserve_model_state


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
    2105.07576, section 3) are those of the weights themselves. `torch.optim.swa_utils.update_bn` would draw random
    numbers for dropout, and leave a model half done after an error.

    Args:
        model: any module; modes, hooks, random state and everything but the running statistics are left alone, after an
            error or an interrupt these as well.
        run: passes the batches through the model, of two rows each at least.
    """
    norms = batch_norms(model)
    if not norms:
        return
    with preserve_model_state(model):  # in eval mode, without dropout, as the network is used
        momenta = [one.momentum for one in norms]
        try:
            for one in norms:
                one.train()
                one.reset_running_stats()
                one.momentum = None  # the mean of all batches
            run()
            found = [(one.running_mean.clone(), one.running_var.clone()) for one in norms]  # type: ignore[union-attr]
        finally:
            for one, momentum in zip(norms, momenta, strict=True):
                one.momentum = momentum
    for one, (mean, variance) in zip(norms, found, strict=True):
        one.running_mean.copy_(mean)  # type: ignore[union-attr]
        one.running_var.copy_(variance)  # type: ignore[union-attr]
