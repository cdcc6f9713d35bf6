"""A residual branch: the input plus what a module makes of it."""

from __future__ import annotations

from torch import Tensor, nn


class Residual(nn.Module):
    """Residual connection x + branch(x).

    A branch whose last layer is zero can be inserted anywhere without changing the network's function.

    Args:
        branch: any module that maps a tensor to one of the same shape.

    >>> import torch
    >>> Residual(torch.nn.Identity())(torch.tensor([1.0, 2.0]))
    tensor([2., 4.])
    """

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """Return the input plus the branch's output."""
        output: Tensor = x + self.branch(x)
        return output
