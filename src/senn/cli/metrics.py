"""A trained network's outputs, and how good they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from senn.data import Target

CHUNK = 65_536


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor) -> NDArray[Any]:
    """The network's outputs for (rows, features), (rows, outputs), in float64."""
    return torch.cat([model(part) for part in torch.split(x, CHUNK)]).double().numpy()


def probabilities(values: NDArray[Any]) -> NDArray[Any]:
    """Softmax over the last dimension."""
    return torch.from_numpy(values).softmax(dim=-1).numpy()


def metrics(model: nn.Module, target: Target, x: Tensor, y: Tensor) -> dict[str, float | None]:
    """Accuracy and log loss (nats), or R squared, root mean squared and mean absolute error in the target's unit."""
    values, truth = outputs(model, x), y.numpy()
    if target.task == "classification":
        log = torch.from_numpy(values).log_softmax(dim=-1).numpy()
        hits = values.argmax(axis=1) == truth
        return {"accuracy": float(hits.mean()), "log_loss": float(-log[np.arange(len(truth)), truth].mean())}
    error = values - truth  # in standard deviations, whose squares don't overflow
    spread, square = float(truth.astype(np.float64).var()), float((error**2).mean())
    r2 = 1 - square / spread if spread > 0 else None
    return {"r2": r2, "rmse": square**0.5 * target.scale, "mae": float(np.abs(error).mean()) * target.scale}
