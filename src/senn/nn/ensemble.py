"""Several networks whose predictions are averaged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """Networks for numbers to predict, whose outputs are averaged.

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


class ClassifierEnsemble(Ensemble):
    """Networks for classes, whose probabilities are averaged.

    Args:
        members: networks that return logits (..., classes), at least one.

    >>> import torch
    >>> certain, doubtful = torch.nn.Linear(1, 2), torch.nn.Linear(1, 2)
    >>> for parameter in [*certain.parameters(), *doubtful.parameters()]:
    ...     _ = torch.nn.init.zeros_(parameter)
    >>> certain.bias.data[1] = 9.0
    >>> ClassifierEnsemble([certain, doubtful])(torch.zeros(1)).softmax(-1).detach().round(decimals=3)
    tensor([0.2500, 0.7500])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return logits whose softmax is the mean of the members' probabilities."""
        logits = torch.stack([member(x) for member in self.members])
        # The logarithm of their sum: a softmax doesn't mind the number of members, a constant.
        return logits.log_softmax(-1).logsumexp(0)
