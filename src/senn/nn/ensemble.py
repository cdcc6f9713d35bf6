"""Several networks whose predictions are averaged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """Networks whose outputs are averaged: numbers, or logits of classes.

    The softmax of a mean of logits is the normalized geometric mean of the probabilities.

    Args:
        members: networks with inputs and outputs of the same shapes, at least one.

    Attributes:
        members: the networks, an `nn.ModuleList`.

    >>> import torch
    >>> ensemble = Ensemble([torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)])
    >>> ensemble(torch.zeros(5, 3)).shape
    torch.Size([5, 1])
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    @property
    def hidden(self) -> tuple[int, ...]:
        """Widths of the hidden layers of the first member."""
        return tuple(getattr(self.members[0], "hidden", ()))

    @property
    def hidden_names(self) -> tuple[str, ...]:
        """Names of the layers of the first member that have these widths."""
        return tuple(f"members.0.{name}" for name in getattr(self.members[0], "hidden_names", ()))

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of the members' outputs."""
        return torch.stack([member(x) for member in self.members]).mean(0)
