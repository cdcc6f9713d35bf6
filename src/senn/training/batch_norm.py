"""Running statistics of batch norms, renewed before a network is looked at."""

from __future__ import annotations

import torch
from torch import nn

from senn.batch_norms import batch_norms, renew_batch_norms
from senn.training.batches import Inputs, Rows

MOST_ROWS = 2048
"""Rows that statistics are taken from at most: their means are known to 2 % of a standard deviation then."""

ROWS_AT_ONCE = 512
"""Rows that pass through the network at once."""


def renew_from_rows(model: nn.Module, rows: Rows, inputs: Inputs) -> None:
    """Take the running statistics of a network's batch norms from its weights as they are now.

    Args:
        model: any module; everything but the running statistics is left alone.
        rows: the training rows; at most `MOST_ROWS` of them, evenly spaced, are passed through the model.
        inputs: how the model reads the inputs of rows; not augmented, as they are not where it is used.
    """
    if not batch_norms(model) or len(rows) < 2:  # one row has no variance
        return
    x = rows.spread(MOST_ROWS).x

    def run() -> None:
        for part in torch.tensor_split(x, -(-len(x) // ROWS_AT_ONCE)):
            model(inputs(part))

    renew_batch_norms(model, run)
