"""How far `NaturalGradient` goes along its direction: by a given learning rate, or by the exact quadratic model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from senn.errors import DivergenceError
from senn.optim.gauss_newton import GaussNewton, best_combination

DAMPING_RANGE = (1e-8, 1e8)
"""Adapted damping stays within this range: beyond it float32 sees either no damping or nothing else."""

LM_RATE = 0.95
"""Levenberg-Marquardt: factor of the damping per step while the quadratic model can be trusted.

Martens and Grosse (2015, section 6.5) take 0.95 per step too ((19/20)^T every T steps).
"""

REJECTED = 2.0
"""Factor of the damping after a step that was taken back.

Far larger than 1 / `LM_RATE`: at 1.05, a damping that is 100 times too small would cost 90 rejected steps, at 2 it
costs 7.
"""

Groups = Mapping[nn.Parameter, dict[str, Any]]
"""Trained parameters with their groups, in the order of all vectors."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Descent:
    """A direction to step along.

    Attributes:
        trained: the parameters.
        direction: F^-1 g, one tensor per parameter.
        gradient: g, weight decay included.
        velocity: finds a parameter's last step.
    """

    trained: Groups
    direction: list[Tensor]
    gradient: list[Tensor]
    velocity: Callable[[nn.Parameter], Tensor]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Outcome of an adaptive step.

    Attributes:
        damping: for the next step.
        reduction_ratio: true over predicted change of the loss; NaN if none was predicted.
        rejected: True if the step was taken back.
    """

    damping: float
    reduction_ratio: float = math.nan
    rejected: bool = False


@torch.no_grad()
def constrained_step(descent: Descent, norm_constraint: float | None) -> None:
    """Step by the learning rate, shortened so that lr^2 g^T F^-1 g <= norm_constraint, plus momentum.

    The constraint bounds the change of the outputs' distribution, as in Ba, Grosse and Martens (2017, *Distributed
    second-order optimization using Kronecker-factored approximations*).

    Args:
        descent: the direction.
        norm_constraint: kappa, in nats; None for no constraint.

    Raises:
        DivergenceError: the direction is NaN or infinite; no parameter is changed.
    """
    square = 0.0
    of_group = zip(descent.trained.values(), descent.direction, descent.gradient, strict=True)
    for group, d, g in of_group:
        square += group["lr"] ** 2 * float((d * g).sum())
    if not math.isfinite(square):
        raise DivergenceError("the natural gradient is not finite: raise the damping")
    shrink = 1.0
    if norm_constraint is not None and square > norm_constraint:
        shrink = math.sqrt(norm_constraint / square)
    for (parameter, group), d in zip(descent.trained.items(), descent.direction, strict=True):
        velocity = descent.velocity(parameter)
        # momentum on steps, not on gradients: the direction is preconditioned already
        velocity.mul_(group["momentum"]).add_(d, alpha=-group["lr"] * shrink)
        parameter.add_(velocity)


@torch.no_grad()
def adaptive_step(
    descent: Descent,
    exact: GaussNewton,
    damping: float,
    loss: float,
    loss_again: Callable[[], float],
) -> StepResult:
    """Choose step size and momentum by the exact quadratic model, and take the step back if it raises the loss.

    Step and momentum minimize q(delta) = g^T delta + 1/2 delta^T (F + damping I) delta over the span of the direction
    and the last step (Martens and Grosse 2015, section 7). The damping follows from the reduction ratio rho, true over
    predicted change: more of it for rho < 1/4, less for rho > 3/4 (section 6.5).

    Args:
        descent: the direction.
        exact: products with F on the same batch.
        damping: lambda now.
        loss: mean loss of the batch before the step, without weight decay.
        loss_again: measures it on the same batch with the parameters as they are then.

    Returns:
        The outcome, with the damping for the next step.
    """
    groups = list(descent.trained.values())
    largest = max(group["lr"] for group in groups)
    # a warm-up may begin at zero, which the quadratic step would divide by
    if largest == 0:
        return StepResult(damping=damping)
    decay = [group["weight_decay"] for group in groups]
    step, predicted = _quadratic_step(descent, exact, damping, decay, largest)
    # weight decay is part of the objective that the model predicts, not of the measured loss
    penalty = _penalty(descent.trained, decay)
    # copies, so that a rejected step leaves the parameters bit for bit as they were
    old = [parameter.detach().clone() for parameter in descent.trained]
    for parameter, change in zip(descent.trained, step, strict=True):
        parameter.add_(change)
    change_of_loss = loss_again() - loss + _penalty(descent.trained, decay) - penalty
    ratio = change_of_loss / predicted if predicted else math.nan
    # rounding of the loss itself is no rise, and nothing to learn a damping from
    rounding = 10 * torch.finfo(step[0].dtype).eps * abs(loss)
    if not change_of_loss <= rounding:  # NaN is a rise, too
        for parameter, value in zip(descent.trained, old, strict=True):
            parameter.copy_(value)
            # momentum along a step that led uphill is forgotten
            descent.velocity(parameter).zero_()
        return StepResult(damping=_within(damping * REJECTED), reduction_ratio=ratio, rejected=True)
    for parameter, change in zip(descent.trained, step, strict=True):
        descent.velocity(parameter).copy_(change)
    factor = 1.0
    if -predicted > rounding and ratio > 0.75:
        factor = LM_RATE
    elif -predicted > rounding and ratio < 0.25:
        factor = 1 / LM_RATE
    return StepResult(
        damping=_within(damping * factor) if factor != 1.0 else damping, reduction_ratio=ratio
    )


def _quadratic_step(
    descent: Descent, exact: GaussNewton, damping: float, decay: list[float], largest: float
) -> tuple[list[Tensor], float]:
    """Combine the direction and the last step by the quadratic model; also return the predicted change of the loss."""
    groups = list(descent.trained.values())
    # Learning rates that differ between groups bend the direction; the largest one scales the whole step.
    down = [
        d * (-group["lr"] / largest) for d, group in zip(descent.direction, groups, strict=True)
    ]
    last = []
    for parameter, group in descent.trained.items():
        last.append(
            descent.velocity(parameter) if group["momentum"] else torch.zeros_like(parameter)
        )
    model = best_combination(exact, [down, last], descent.gradient, decay, damping)
    forward, momentum = model.coefficients
    step = [(d * forward + v * momentum).mul_(largest) for d, v in zip(down, last, strict=True)]
    return step, model.change(largest)


def _within(damping: float) -> float:
    return min(max(damping, DAMPING_RANGE[0]), DAMPING_RANGE[1])


def _penalty(trained: Iterable[nn.Parameter], decay: Iterable[float]) -> float:
    """Sum decay / 2 * |theta|^2, the part of the loss that weight decay stands for."""
    return float(
        sum(
            d / 2 * float((p.double() ** 2).sum()) for p, d in zip(trained, decay, strict=True) if d
        )
    )
