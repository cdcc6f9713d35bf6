"""Small models with LoRA adapters, and batches for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import torch
from torch import Tensor, nn
from torch.nn import functional as F

TARGETS = ["first", "last"]


class Net(nn.Module):
    """Two layers with an activation between them; `linear` leaves that out, and the loss is quadratic."""

    def __init__(self, *, linear: bool = False) -> None:
        super().__init__()
        self.first, self.last, self.linear = nn.Linear(6, 8), nn.Linear(8, 5), linear

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(y if self.linear else torch.tanh(y))


def lora(base: Callable[[], nn.Module] = Net, seed: int = 0, **config: Any) -> nn.Module:
    """A frozen model with adapters of rank 1, unless said otherwise, that have learned a little or nothing."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"r": 1, "lora_alpha": 2, "target_modules": TARGETS} | config
    return peft.get_peft_model(base(), peft.LoraConfig(**settings))


def batch(rows: int = 200, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Inputs and classes that a rotation of the inputs decides."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 6, generator=generator)
    mixed = x @ torch.randn(6, 5, generator=torch.Generator().manual_seed(9))
    return x, mixed.argmax(1)


def trained(model: nn.Module, steps: int = 5, kind: Any = torch.optim.AdamW) -> Any:
    """Train adapters for some steps; the optimizer."""
    optimizer = kind([one for one in model.parameters() if one.requires_grad], lr=0.01)
    x, y = batch()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return optimizer
