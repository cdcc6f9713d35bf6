"""Finding out that a loss isn't a mean over samples, from values and first derivatives alone.

A mean of losses l_i, each of one sample's outputs and targets, stays the same when every sample is there twice, and
when outputs and targets are permuted together; and a sample's gradient doesn't depend on another sample's outputs. A
normalizer that depends on targets alone (class weights, ignored samples) changes none of this. No second derivative
is taken, so that losses without one can be checked too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from senn import pytree
from senn.errors import UnsupportedError, explained

Loss = Callable[[Any, Any], Tensor]

TOLERANCE = 1e-4
"""Relative change that counts: far above the rounding of float32 sums in another order, 1e-6, and far below what a loss
that mixes samples shows, which is of the order of one."""

SPLITS, SPLIT_SAMPLES = 3, 72
"""Times that samples are divided in two: at least so often, and until so many were. A few may not mix by chance."""

REMEDY = "with coupled=True a Grower takes whole batches in their own order"


def check_mean_over_samples(function: Loss, name: str, output: Tensor, target: Any) -> None:
    """Refuse a loss that isn't a mean over samples, each with a loss of its own.

    Args:
        function: the loss, `function(output, target) -> scalar`.
        name: of the loss, for messages.
        output: (N, ...), detached.
        target: nesting of tensors; those of N entries count samples.

    Raises:
        UnsupportedError: the loss is no mean, depends on the samples' order or mixes them, or is random.
    """
    count = len(output)
    generator = torch.Generator().manual_seed(0)
    value, gradient = value_and_gradient(function, name, output, target)
    # Values are compared to their own size, and to that of their first-order change where they cancel to nearly zero.
    size = float(gradient.abs().flatten(1).sum() * output.abs().max())
    allowed = TOLERANCE * (abs(value) + 0.1 * size)

    def on(samples: Tensor, what: str) -> float:
        with (
            torch.no_grad(),
            explained(f"the loss {name} mixes samples ({REMEDY}), since it fails on {what}"),
        ):
            chosen = pytree.index_batch((output, target), samples, count)
            return float(function(*chosen))

    once, order = torch.arange(count), permutation(count, generator)
    if abs(on(once, "the same batch again") - value) > allowed:
        raise UnsupportedError(
            f"the loss {name} draws random numbers: the same outputs have two losses"
        )
    if abs(on(order, "the same samples in another order") - value) > allowed:
        raise UnsupportedError(
            f"the loss {name} mixes samples: it depends on their order, as losses over pairs or triplets of rows do; "
            f"{REMEDY}"
        )
    if count > 1:
        # Also with outputs close together: pairs and triplets that are far enough apart have no loss at all.
        mean, rounds = output.mean(0, keepdim=True), max(SPLITS, SPLIT_SAMPLES // count)
        for y in (output, mean + 0.01 * (output - mean)):
            splits = [permutation(count, generator) for _ in range(rounds)]
            if _influences(function, name, (y, target), splits):
                raise UnsupportedError(
                    f"the loss {name} mixes samples: one sample's gradient depends on another's output; {REMEDY}"
                )
    # last, since what mixes samples often is no mean either, and the other reason says more
    if abs(on(once.repeat(2), "twice the same batch") - value) > allowed:
        raise UnsupportedError(
            f"the loss {name} is not a mean over the samples: twice the same batch changes it"
        )


@torch.no_grad()
def check_mean(function: Loss, name: str, output: Tensor, target: Any) -> None:
    """Refuse a loss of separate samples that isn't a mean over them: it changes when every sample is there twice.

    Args:
        function: the loss.
        name: of the loss, for messages.
        output: (N, ...), detached.
        target: as the loss takes them.

    Raises:
        UnsupportedError: it is a sum, say.
    """
    count = len(output)
    # A few samples tell, unless none of them has a target
    for few in dict.fromkeys((min(count, 4), count)):
        once = torch.arange(few)
        values = [
            float(function(*pytree.index_batch((output, target), samples, count)))
            for samples in (once, once.repeat(2))
        ]
        if math.isfinite(values[0]):
            if abs(values[1] - values[0]) > 10 * TOLERANCE * abs(values[0]) + 1e-6:
                raise UnsupportedError(
                    f"the loss {name} is not a mean over the samples: twice the same batch changes it"
                )
            return


def _influences(function: Loss, name: str, batch: tuple[Tensor, Any], splits: list[Tensor]) -> bool:
    """Return True if gradients of one half of the samples change with the outputs of the other half."""
    output, target = batch
    _, before = value_and_gradient(function, name, output, target)
    for order in splits:
        kept, exchanged = order[len(order) // 2 :], order[: len(order) // 2]
        changed = output.clone()
        # Outputs of other samples rather than noise: they are as the loss wants them (probabilities, say). And not
        # those of the same half in another order, which statistics of the batch wouldn't notice.
        changed[exchanged] = output[kept[: len(exchanged)]]
        _, after = value_and_gradient(function, name, changed, target)
        size = float(torch.maximum(before[kept].abs().max(), after[kept].abs().max()))
        if float((after - before)[kept].abs().max()) > TOLERANCE * size:
            return True
    return False


def permutation(count: int, generator: torch.Generator) -> Tensor:
    """Draw a permutation (count,) that moves something, if there is anything to move."""
    order = torch.randperm(count, generator=generator)
    return order.flip(0) if torch.equal(order, torch.arange(count)) else order


def value_and_gradient(
    function: Loss, name: str, output: Tensor, target: Any
) -> tuple[float, Tensor]:
    """Compute a loss and its gradient dL/dy.

    Args:
        function: the loss.
        name: of the loss, for messages.
        output: (N, ...), detached.
        target: as the loss takes them.

    Returns:
        The value, and the gradient in the shape of the outputs.

    Raises:
        UnsupportedError: the loss is no scalar, or doesn't depend on the outputs.
    """
    with torch.enable_grad():
        # a leaf of its own: the graph of the network isn't differentiated
        leaf = output.detach().clone().requires_grad_()
        # what the loss gets isn't the leaf itself, as in training: it may be written to
        value = scalar(function(leaf.clone(), target), name)
        gradient = None
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True)
    return float(value.detach()), depends(gradient, name)


def scalar(value: object, name: str) -> Tensor:
    """Return a loss's value if it is a scalar, else raise an error."""
    if not isinstance(value, Tensor) or value.ndim != 0:
        raise UnsupportedError(f"the loss {name} must return a scalar, the mean over the samples")
    return value


def depends(gradient: Tensor | None, name: str) -> Tensor:
    """Return a loss's gradient if there is one, else raise an error."""
    if gradient is None:
        raise UnsupportedError(f"the loss {name} doesn't depend on the outputs")
    return gradient
