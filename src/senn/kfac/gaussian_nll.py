"""`torch.nn.GaussianNLLLoss`, a loss of a mean and a variance, as one of a single output tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from senn import pytree
from senn.errors import UnsupportedError
from senn.kfac.output_metric import HessianFunction
from senn.pytree import Output


class GaussianNLL(nn.Module):
    """Negative log-likelihood of a Gaussian whose mean and variance are both outputs of the network.

    Args:
        loss: with `reduction="mean"`.

    >>> import torch
    >>> loss = GaussianNLL(torch.nn.GaussianNLLLoss())
    >>> y = loss.join((torch.zeros(2, 1), torch.full((2, 1), 4.0)))  # means 0, variances 4
    >>> loss(y, torch.ones(2, 1))  # (log 4 + 1 / 4) / 2
    tensor(0.8181)
    >>> loss.fisher(y, torch.ones(2, 1))  # 1 / 4 and 1 / (2 * 4^2)
    tensor([[0.2500, 0.0312],
            [0.2500, 0.0312]])
    """

    __name__ = "GaussianNLLLoss"

    def __init__(self, loss: nn.GaussianNLLLoss) -> None:
        super().__init__()
        self.eps, self.full, self.reduction = loss.eps, loss.full, loss.reduction

    def forward(self, output: Tensor, target: Any) -> Tensor:
        """Compute the loss.

        Args:
            output: (N, ...), means and variances one after the other.
            target: in the means' shape.
        """
        mean, variance = self._parts(output, target)
        return F.gaussian_nll_loss(
            mean, target, variance, full=self.full, eps=self.eps, reduction=self.reduction
        )

    def fisher(self, output: Tensor, target: Any) -> Tensor:
        """Compute the diagonal of the Fisher matrix in means and variances, 1 / v and 1 / (2 v^2).

        The loss itself isn't convex in the variance. A mean over several targets divides both by their number, and one
        variance for all of them adds up over them.

        Args:
            output: as in `forward`.
            target: as in `forward`.
        """
        mean, variance = (part.flatten(1) for part in self._parts(output, target))
        v = variance.clamp(min=self.eps)  # as the loss does
        shared = mean.shape[1] / v.shape[1]
        return torch.cat([(1 / v).expand_as(mean), shared / (2 * v**2)], 1) / mean.shape[1]

    def join(self, result: Any) -> Tensor:
        """Join the mean and the variance that a model returns.

        Args:
            result: a pytree with both, in this order.

        Raises:
            UnsupportedError: it has another number of tensors.
        """
        parts = [one for one in pytree.tensor_leaves(result) if one.is_floating_point()]
        if len(parts) != 2:
            found = "one tensor" if len(parts) == 1 else f"{len(parts)} tensors"
            raise UnsupportedError(
                f"GaussianNLLLoss takes a mean and a variance, and the model returns {found}: give output=..., a "
                "function that joins the two along dimension 1"
            )
        return torch.cat([one.reshape(len(one), -1) for one in parts], 1)

    def _parts(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Take the joined outputs apart: both in the shape of the targets, or one variance for the last dimension."""
        rows, shape = output.flatten(1), target.shape
        size = shape[1:].numel()
        mean, variance = rows[:, :size], rows[:, size:]
        if variance.shape[1] == size:
            return mean.reshape(shape), variance.reshape(shape)
        return mean.reshape(shape), variance.reshape(*shape[:-1], 1)


def joined_gaussian(
    loss: Any, output: Output | None, loss_hessian: HessianFunction | None, metric: str
) -> tuple[Any, Output | None, HessianFunction | None]:
    """Put a loss of one joined output in place of torch's `GaussianNLLLoss`; any other is returned as it is.

    Args:
        loss: the loss.
        output: finds the outputs in what the model returns; None to join the mean and the variance.
        loss_hessian: its Hessian; None for the Fisher matrix, where the metric asks for that.
        metric: `fisher` or `euclidean`.
    """
    if not isinstance(loss, nn.GaussianNLLLoss):
        return loss, output, loss_hessian
    gaussian = GaussianNLL(loss)
    fisher = gaussian.fisher if metric == "fisher" else None
    return gaussian, output or gaussian.join, loss_hessian or fisher
