"""Running statistics of batch norms, renewed before a network is looked at."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from senn.training.batches import Inputs, Rows

MOST_ROWS = 2048
"""Rows that statistics are taken from at most: their means are known to 2 % of a standard deviation then."""

ROWS_AT_ONCE = 512
"""Rows that pass through the network at once."""


@torch.no_grad()
def renew_batch_norms(model: nn.Module, rows: Rows, inputs: Inputs) -> None:
    """Take the running statistics of a network's batch norms from its weights as they are now.

    What training keeps is an average over its last ten steps or so. On a small set that is several epochs, in which the
    weights have moved on, and after a change of size it is of another network. Then the network is judged by
    activations that it doesn't have. "Precise" statistics (Wu & Johnson 2021, *Rethinking "Batch" in BatchNorm*, arXiv
    2105.07576, section 3) are those of the weights themselves.

    Args:
        model: any module; modes, hooks, random state and everything but the running statistics are left alone.
        rows: the training rows; at most `MOST_ROWS` of them, evenly spaced, are passed through the model.
        inputs: how the model reads the inputs of rows; not augmented, as they are not where it is used.
    """
    norms = [
        one for one in model.modules() if isinstance(one, _BatchNorm) and one.track_running_stats
    ]
    if not norms or len(rows) < 2:  # one row has no variance
        return
    # Rows may be sorted by class.
    chosen = torch.linspace(0, len(rows) - 1, min(len(rows), MOST_ROWS)).round().long()
    x = rows.x[chosen.to(rows.x.device)]
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
        for part in torch.tensor_split(x, -(-len(x) // ROWS_AT_ONCE)):
            model(inputs(part))
        for one, _, buffers in former:
            for name in ("running_mean", "running_var"):
                buffers[name].copy_(getattr(one, name))
    finally:  # after an error or an interrupt all is as it was
        for one, momentum, buffers in former:
            one.momentum = momentum
            for name, buffer in buffers.items():
                setattr(one, name, buffer)
        for module, mode in modes:
            module.training = mode
