"""One gradient of several processes that have the same model and the same batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from senn.collectives import Communicator


def joint_gradient(
    model: nn.Module,
    local_loss: Callable[[slice], Tensor],
    *,
    rows: int,
    communicator: Communicator,
    stop: bool,
) -> tuple[Tensor, bool]:
    """Compute the loss of a batch and its gradient, each process on its part, with one sum over all of them.

    Running statistics of batch norms become the mean of those that the processes have after their parts.

    Args:
        model: the model; its parameters have no gradient yet, and get that of the whole batch.
        local_loss: returns the mean loss of a part of the batch, given as a slice of its rows.
        rows: rows of the batch, which all processes have.
        communicator: the processes.
        stop: True if this process wants to stop.

    Returns:
        Mean loss of the batch, a detached scalar; True if any process wants to stop.
    """
    part = communicator.local_slice(rows)
    share = (part.stop - part.start) / rows
    loss = torch.zeros(())
    if share:
        loss = share * local_loss(part)
        loss.backward()
    parameters = [p for p in model.parameters() if p.requires_grad]
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    summands = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    # Not buffer * 0 for an empty part: infinity * 0 is NaN.
    summands += [buffer * share if share else torch.zeros_like(buffer) for buffer in buffers]
    # The loss and the wish to stop go along, since each sum costs a round trip.
    loss = loss.detach().to(parameters[0])
    summands.append(torch.stack([loss, torch.full_like(loss, float(stop))]))
    *sums, loss_and_stop = communicator.all_reduce("take a step", summands, meet=False)
    for parameter, gradient in zip(parameters, sums, strict=False):
        parameter.grad = gradient
    for buffer, value in zip(buffers, sums[len(parameters) :], strict=True):
        buffer.copy_(value)
    return loss_and_stop[0], bool(loss_and_stop[1])
