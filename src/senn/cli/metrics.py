"""Compute and score the outputs of a trained network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from senn.data import Target

# Activations of 1,000 units take 260 MB; twice the rows would take twice that.
CHUNK = 65_536
"""Rows in one forward pass, so that a large table needs little memory."""


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor) -> NDArray[Any]:
    """Compute a network's outputs for a table.

    Args:
        model: network of `senn fit`.
        x: (rows, features) float32.

    Returns:
        (rows, outputs) float64.
    """
    # float64 from here on: a mean over many rows loses digits in float32.
    return torch.cat([model(part) for part in torch.split(x, CHUNK)]).double().numpy()


def probabilities(values: NDArray[Any]) -> NDArray[Any]:
    """Return the softmax of logits over the last dimension."""
    return torch.from_numpy(values).softmax(dim=-1).numpy()


def metrics(model: nn.Module, target: Target, x: Tensor, y: Tensor) -> dict[str, float | None]:
    """Score a network on the rows of a table.

    Args:
        model: network of `senn fit`.
        target: column that it predicts.
        x: (rows, features) float32.
        y: encoded targets of the rows.

    Returns:
        `accuracy` and `log_loss` (nats) of classes; `r2`, `rmse` and `mae` of numbers, the last two in the target's
        unit, and `r2` None for rows of one value.
    """
    values, truth = outputs(model, x), y.numpy()
    if target.task == "classification":
        # Not the log of a softmax, which is -inf for a class of probability 1e-50.
        log = torch.from_numpy(values).log_softmax(dim=-1).numpy()
        hits = values.argmax(axis=1) == truth
        log_loss = -log[np.arange(len(truth)), truth].mean()
        return {"accuracy": float(hits.mean()), "log_loss": float(log_loss)}
    error = values - truth  # in standard deviations, whose squares don't overflow
    variance = float(truth.astype(np.float64).var())
    square = float((error**2).mean())
    r2 = 1 - square / variance if variance > 0 else None
    mae = float(np.abs(error).mean())
    return {"r2": r2, "rmse": square**0.5 * target.scale, "mae": mae * target.scale}
