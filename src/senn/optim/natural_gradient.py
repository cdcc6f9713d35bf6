"""Natural gradient descent as a torch optimizer: K-FAC, or the exact Gauss-Newton matrix by conjugate gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from senn._validate import (
    Rule,
    a_seed,
    callable_,
    check_arguments,
    flag,
    fraction,
    number,
    one_of,
    whole,
)
from senn.errors import DivergenceError, SennError
from senn.kfac.live_outputs import live_outputs
from senn.kfac.loss_metric import LossMetric
from senn.kfac.recorder import forward
from senn.kfac.separability import Loss
from senn.optim.forward_replay import Replay
from senn.optim.gauss_newton import GaussNewton, dot, pull, solve_damped
from senn.optim.kfac_update import KFAC, Batch, Pass, watching
from senn.optim.step_rules import Descent, adaptive_step, constrained_step
from senn.pytree import Inputs

_RANGES: Mapping[str, Rule] = {
    "loss": callable_("a function loss(output, target)"),
    "lr": number(low=0).or_none(),
    "method": one_of("kfac", "cg"),
    "damping": number(low=0).or_none(),
    "momentum": fraction(open_high=True),
    "weight_decay": number(low=0),
    "metric": one_of("fisher", "euclidean"),
    "norm_constraint": number(low=0).or_none(),
    "adapt": flag(),
    "factor_every": whole(low=1).or_none(),
    "inverse_every": whole(low=1).or_none(),
    "decay": fraction(open_high=True),
    "burn_in": whole(low=1),
    "iterations": whole(low=1),
    "tolerance": number(low=0),
    "seed": a_seed(),
}
"""Ranges of the arguments."""


class NaturalGradient(torch.optim.Optimizer):
    """Natural gradient descent: theta <- theta - lr F^-1 g + momentum * (last step).

    F is the Fisher matrix of the outputs, in the form of a generalized Gauss-Newton matrix.

    `step(inputs, targets)` runs the model itself and returns the loss before the step. It takes no closure, since a
    scalar loss is not enough: the curvature needs the outputs and the loss apart. `.grad` is neither read nor written.

    The length of a step is chosen in one of two ways. For minibatches (`adapt=False`) learning rate and damping are
    fixed, and the step is shortened so that lr^2 g^T F^-1 g <= norm_constraint. For full batches (`adapt=True`) step
    size and momentum minimize the exact quadratic model of the loss, the damping follows Levenberg and Marquardt on the
    same batch, and a step that raises the loss is taken back; lr then scales the step that the model chose (Martens and
    Grosse 2015, arXiv 1503.05671, sections 6.5 and 7).

    With `method="kfac"` F is Kronecker-factored per linear map and diagonal for all other parameters (convolutions,
    norms, activations). With `method="cg"` F is exact, and (F + damping I) d = g is solved by conjugate gradients: for
    small networks (Mitchell et al., arXiv 2307.04526, appendix).

    Args:
        model: any module with a tensor of outputs. It is read again at each step, so it may grow in between.
        params: parameters or parameter groups (`lr`, `momentum`, `weight_decay`); None for all of the model.
        loss: `loss(output, target)`, as in `LossMetric`.
        lr: learning rate; None for 1 with `adapt`, else 0.1.
        method: `"kfac"` or `"cg"`.
        damping: lambda, added to F; None for 0.1 with `adapt` or cg, else 0.01.
        momentum: in [0, 1); with `adapt` it is chosen by the model, and 0 switches it off.
        weight_decay: L2 coefficient, in the gradient and in the curvature.
        metric: `"fisher"` or `"euclidean"`.
        norm_constraint: kappa, in nats; None for no constraint.
        adapt: choose step size, momentum and damping by the exact quadratic model.
        factor_every: steps between updates of the factors; None for 1 with `adapt`, else 4.
        inverse_every: steps between inversions; None for 1 with `adapt`, else 20.
        decay: of the moving averages of the factors, in [0, 1).
        burn_in: draws of pseudo-gradients for the first batch that a block sees, also after growth.
        iterations: conjugate-gradient iterations at most.
        tolerance: relative residual at which conjugate gradients stop.
        seed: of the random signs.

    Attributes:
        eta: g^T (F + damping I)^-1 g of the last step, in the unit of the loss: twice the decrease that an undamped
        full
            step would bring in the quadratic model.
        damping: lambda now.
        reduction_ratio: true over predicted change of the loss in the last step with `adapt`, else NaN.
        rejected: True if the last step was taken back.

    Raises:
        SennError: an argument is out of range.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Linear(2, 1)
    >>> x = torch.randn(100, 2)
    >>> y = x @ torch.tensor([[2.0], [-1.0]])
    >>> optimizer = NaturalGradient(model, loss=nn.functional.mse_loss, adapt=True)
    >>> losses = [optimizer.step(x, y) for _ in range(20)]
    >>> losses[-1] < 1e-3 * losses[0]
    True
    """

    # Read by surgery. Factors are averages over batches: a block's are estimated anew once its map has changed.
    state_made_anew: ClassVar[tuple[str, ...]] = ("_kfac",)
    step_takes_data: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        params: Iterable[Any] | None = None,
        *,
        loss: Loss,
        lr: float | None = None,
        method: Literal["kfac", "cg"] = "kfac",
        damping: float | None = None,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        metric: Literal["fisher", "euclidean"] = "fisher",
        norm_constraint: float | None = 1e-3,
        adapt: bool = False,
        factor_every: int | None = None,
        inverse_every: int | None = None,
        decay: float = 0.95,
        burn_in: int = 10,
        iterations: int = 100,
        tolerance: float = 1e-4,
        seed: int = 0,
    ) -> None:
        check_arguments(_RANGES, locals())
        # the quadratic model finds the length by itself; a fixed step has to be careful
        lr = (1.0 if adapt else 0.1) if lr is None else lr
        # minibatch factors are averages, and less noisy than one batch's exact matrix
        damping = (0.1 if adapt or method == "cg" else 1e-2) if damping is None else damping
        factor_every = (1 if adapt else 4) if factor_every is None else factor_every
        # an inversion costs (m^3 + c^3), far more than a step; factors move slowly
        inverse_every = (1 if adapt else 20) if inverse_every is None else inverse_every
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        # as groups of torch's own, so that learning-rate schedulers work
        super().__init__(model.parameters() if params is None else params, defaults)
        self.model = model
        self.metric = LossMetric(loss, metric)
        self.method = method
        self.damping = damping
        self.norm_constraint = norm_constraint
        self.adapt = adapt
        self.factor_every = factor_every
        self.inverse_every = inverse_every
        self.iterations = iterations
        self.tolerance = tolerance
        self.eta = math.nan
        self.reduction_ratio = math.nan
        self.rejected = False
        self._kfac = KFAC(model, decay, burn_in)
        # its own, so that random signs don't shift the draws of dropout or of the caller
        self._generator = torch.Generator().manual_seed(seed)
        self._steps = 0

    def step(self, inputs: Inputs, targets: Tensor, weight: Tensor | None = None) -> float:  # type: ignore[override]
        """Take one step on one batch.

        Args:
            inputs: (N, ...), or a tuple of such tensors for a model with several inputs.
            targets: targets as the loss takes them.
            weight: sample weights (N,) with mean 1, or None for ones.

        Returns:
            The mean loss of the batch before the step, without weight decay.

        Raises:
            DivergenceError: the loss, its gradient or the step is NaN or infinite; no parameter is changed.
        """
        trained = self._trained()
        replay = Replay(self.model)
        seen, loss, gradient = self._forward(trained, inputs, targets, weight, replay)
        y = seen.output.detach()
        exact = None
        if self.adapt or self.method == "cg":
            exact = GaussNewton(
                seen.output, list(trained), lambda u: self.metric.product(y, targets, u, weight)
            )
        dampings = [self.damping + group["weight_decay"] for group in trained.values()]
        if exact is not None and self.method == "cg":
            direction = solve_damped(exact, gradient, dampings, self.iterations, self.tolerance)
        else:
            self._kfac.update_if_due(
                seen,
                list(trained),
                Batch(
                    probes=lambda: self.metric.pseudo_grad(y, targets, self._generator, weight),
                    live=lambda: live_outputs(
                        self.metric, self.metric.local(y, targets, weight), y, targets
                    ),
                    weight=weight,
                ),
                is_due=self._steps % self.factor_every == 0,
            )
            # after a rejection the damping is another one, so the inverses are too
            is_due = self.rejected or self._steps % self.inverse_every == 0
            direction = self._kfac.precondition(seen, trained, gradient, dampings, invert=is_due)
        self.eta = dot(gradient, direction)
        self._steps += 1
        descent = Descent(
            trained=trained, direction=direction, gradient=gradient, velocity=self._velocity
        )
        # reset only now: a rejection of the last step has called for new inverses above
        self.rejected, self.reduction_ratio = False, math.nan
        if self.adapt and exact is not None:
            again = replay.again(
                inputs, lambda output: float(self.metric.loss(output, targets, weight))
            )
            result = adaptive_step(descent, exact, self.damping, loss, again)
            self.damping, self.rejected = result.damping, result.rejected
            self.reduction_ratio = result.reduction_ratio
        else:
            constrained_step(descent, self.norm_constraint)
        return loss

    def _forward(
        self,
        trained: dict[nn.Parameter, dict[str, Any]],
        inputs: Inputs,
        targets: Tensor,
        weight: Tensor | None,
        replay: Replay,
    ) -> tuple[Pass, float, list[Tensor]]:
        """Run the model, and return the pass, the loss, and the gradient with weight decay."""
        names = self._kfac.maps(set(trained)) if self.method == "kfac" else {}
        with torch.enable_grad(), watching(list(names), names) as maps:
            seen = Pass(forward(self.model, inputs), maps)
        y = seen.output.detach()
        loss = float(self.metric.loss(y, targets, weight))
        gradient = pull(seen.output, list(trained), self.metric.gradient(y, targets, weight))
        if not math.isfinite(loss) or not all(bool(torch.isfinite(g).all()) for g in gradient):
            # the pass has moved buffers, such as the statistics of a BatchNorm, by a batch that isn't learned from
            replay.restore()
            raise DivergenceError(
                f"the loss is {loss} with a gradient that is not finite: the step was not taken"
            )
        _add_weight_decay(gradient, trained)
        return seen, loss, gradient

    def _trained(self) -> dict[nn.Parameter, dict[str, Any]]:
        """Find the parameters that take part, with their groups: in the model, in a group, not frozen."""
        # growth replaces Parameters, and a group may still hold one that is no longer in the model
        owned = set(self.model.parameters())
        trained = {
            p: group
            for group in self.param_groups
            for p in group["params"]
            if p.requires_grad and p in owned
        }
        if not trained:
            raise SennError("NaturalGradient has no trainable parameter of the model")
        return trained

    def _velocity(self, parameter: nn.Parameter) -> Tensor:
        """Look up the last step of a parameter, zero at first."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        velocity: Tensor = state["momentum_buffer"]
        # a state loaded for another width
        if velocity.shape != parameter.shape:
            raise SennError(
                f"a momentum buffer has shape {tuple(velocity.shape)}, and its parameter {tuple(parameter.shape)}"
            )
        return velocity

    # ---- saving -----------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        # Hooks and a scheduler's wrapper of `step` belong to the original, as in any torch optimizer.
        return {
            key: value for key, value in vars(self).items() if "hook" not in key and key != "step"
        }

    def state_dict(self) -> dict[str, Any]:
        """State as any optimizer's, with the curvature by parameter name under `curvature`."""
        curvature = {
            "damping": self.damping,
            "steps": self._steps,
            # calls for new inverses at the next step, also in a resumed run
            "rejected": self.rejected,
            "generator": self._generator.get_state(),
            "blocks": self._kfac.state(),
        }
        return {**super().state_dict(), "curvature": curvature}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state, to continue exactly where it was taken.

        Raises:
            SennError: the state was saved by another optimizer, or doesn't fit the model.
        """
        if "curvature" not in state_dict:
            raise SennError(
                "this optimizer state wasn't saved by NaturalGradient: it has no 'curvature'"
            )
        super().load_state_dict(state_dict)
        curvature = state_dict["curvature"]
        self._kfac.load(curvature["blocks"])
        self.damping = curvature["damping"]
        self._steps = curvature["steps"]
        self.rejected = curvature["rejected"]
        self._generator.set_state(curvature["generator"])


@torch.no_grad()
def _add_weight_decay(
    gradient: list[Tensor], trained: Mapping[nn.Parameter, dict[str, Any]]
) -> None:
    """Add the gradient of decay / 2 |theta|^2, in place."""
    for (parameter, group), g in zip(trained.items(), gradient, strict=True):
        if group["weight_decay"]:
            g.add_(parameter, alpha=group["weight_decay"])
