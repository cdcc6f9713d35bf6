"""A branch beside the identity."""

from __future__ import annotations

from torch import Tensor, nn


class Residual(nn.Module):
    """x + branch(x); the branch keeps the shape of its input.

    A branch whose last layer is zero leaves the function of a network as it was wherever it is put.

    Args:
        branch: any module that maps a tensor to one of the same shape.
    """

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """The input plus the branch's output."""
        output: Tensor = x + self.branch(x)
        return output
