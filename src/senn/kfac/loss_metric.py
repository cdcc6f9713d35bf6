"""The loss and the metric of its outputs: all that is known above a network's outputs.

Notation. Outputs y are (N, m), N samples of m numbers; any other shape (N, ...) is flattened, and (N,) means m = 1. The
loss is L = mean_i w_i l_i, in nats per sample for likelihoods. Rows are per sample and unaveraged: gradient row g_i is
N dL/dy_i, and H_i is the Hessian of w_i l_i, so that with the network's Jacobian J_i = dy_i/dtheta

    gradient = mean_i J_i^T g_i      F = mean_i J_i^T H_i J_i  (generalized Gauss-Newton, or Fisher)

Common losses have a closed form (`closed_forms`), also where a function of the user's own calls them
(`recognized_loss`). Any other loss is differentiated twice (`loss_curvature`).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from senn import _deprecated
from senn.errors import SennError, UnsupportedError, explained
from senn.kfac.closed_forms import count_labels, nats, reductions, resolve
from senn.kfac.differentiated_loss import check_samples, differentiate, sample_losses
from senn.kfac.live_outputs import live_outputs
from senn.kfac.loss_arguments import (
    check_two_arguments,
    checked_weights,
    converted,
    loss_name,
    shapes_of,
)
from senn.kfac.loss_hessians import DiagonalHessian, LocalLoss, LossHessian
from senn.kfac.output_metric import (
    HessianFunction,
    hessian_of,
    rayleigh_quotient,
    secant_curvature,
)
from senn.kfac.pseudo_grad import Among, draw_pseudo_grad
from senn.kfac.separability import Loss as Loss

__all__ = [
    "LossMetric",
]

if not TYPE_CHECKING:
    __getattr__ = _deprecated.old_names(__name__)


@_deprecated.aliased
class LossMetric:
    """A loss with the metric H of its outputs.

    Args:
        loss: `loss(output, target) -> scalar`, a mean over the samples. `F.cross_entropy`, `F.nll_loss`,
            `F.binary_cross_entropy_with_logits`, `F.binary_cross_entropy`, `F.mse_loss`, their modules with their
            options, and `functools.partial` of them have closed forms, with one class or number for each sample or
            each of its positions. Softmax likelihoods are found inside functions of your own, too (over flattened
            tokens, shifted, masked, summed over heads). Any other loss that is separable over samples and convex in
            the outputs is differentiated twice.
        metric: `"fisher"`: H = d2l/dy2 (for probabilities as outputs its mean over the network's own labels), whose
            units make 1/2 eta a loss decrease; `"euclidean"`: H = kappa I (Mitchell et al., section 3.4), with kappa =
            1 until it is `calibrated` to the loss's unit. That needs no second derivative.
        loss_hessian: `loss_hessian(output, target)`: the H to use, positive semidefinite, in place of the loss's own:
            its diagonals in the outputs' shape, matrices (N, m, m), or a `LossHessian`; None for none. For a loss that
            isn't convex: its mean over the model's own labels (the Fisher matrix).
        coupled: True for a loss that couples the samples of a batch, which counts as a whole then.

    Attributes:
        curvature: kappa.

    Raises:
        SennError: the loss isn't callable as `loss(output, target)`, the metric is unknown, or settings contradict.
        UnsupportedError: the loss sums over samples instead of averaging.

    >>> metric = LossMetric(torch.nn.functional.mse_loss)
    >>> y, target = torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1)
    >>> metric.gradient(y, target)  # 2 (y - t)
    tensor([[2.],
            [6.]])
    >>> metric.score_limit(y, target)  # mean of (2 (y - t))^2 / 2: twice the loss, all of which free outputs could end
    10.0
    """

    def __init__(
        self,
        loss: Loss,
        metric: Literal["fisher", "euclidean"] = "fisher",
        *,
        loss_hessian: HessianFunction | None = None,
        coupled: bool = False,
    ) -> None:
        if metric not in ("fisher", "euclidean"):
            raise SennError(f"unknown output metric {metric!r}: use 'fisher' or 'euclidean'")
        if not callable(loss):
            raise SennError(
                f"the loss must be callable as loss(output, target), and {loss!r} is not"
            )
        if loss_hessian is not None and metric == "euclidean":
            raise SennError("loss_hessian is a metric, so metric='euclidean' contradicts it")
        check_two_arguments(loss)
        self.function = loss
        self.metric, self.loss_hessian, self.coupled = metric, loss_hessian, coupled
        self.curvature = 1.0
        self.name = loss_name(loss)
        # by identity of the function: a wrapper of cross-entropy may do anything, so it is differentiated
        self._rule, self._options = resolve(loss)
        if coupled and self._rule is None and self._is_own_hessian:
            raise SennError(
                "a loss that couples samples has no Hessian of its own for each: use metric='euclidean' with "
                "coupled=True, or give loss_hessian=..."
            )
        # a sum would scale eta with the batch, and prices are per sample
        reduction = self._options.get("reduction", getattr(loss, "reduction", "mean"))
        if reduction not in reductions(self._rule):
            raise UnsupportedError(
                f"{self.name} has reduction={reduction!r}, and a mean over samples is needed"
            )

    def __repr__(self) -> str:
        return f"OutputMetric({self.name}, metric={self.metric!r})"

    def loss(self, output: Tensor, target: Any, weight: Tensor | None = None) -> Tensor:
        """Compute the mean loss L.

        Args:
            output: (N, m), (N,) or what the loss takes.
            target: as the loss takes it: a tensor, or a nesting of tensors whose first dimensions count samples.
            weight: sample weights (N,), or None for ones.

        Returns:
            A scalar in float32 or float64, differentiable in the output.

        Raises:
            SennError: the loss fails on them, or the weights are not finite, negative or of another shape.
        """
        output, target = self._converted(output, target)
        with explained(self._failure(output, target)):
            if weight is None:
                # a function of one's own may write to what it gets
                return self.function(output if self._rule else output.clone(), target)
            # a loss function takes no sample weights, so the samples' own losses are weighted
            weight = checked_weights(weight, output)
            if self._rule is None:
                return (sample_losses(self.function, self.name, output, target) * weight).mean()
            return (self._rule(output, target, self._options).losses * weight).mean()

    def gradient(self, output: Tensor, target: Any, weight: Tensor | None = None) -> Tensor:
        """Compute the gradient rows g_i = N dL/dy_i.

        Args:
            output: as in `loss`.
            target: as in `loss`.
            weight: as in `loss`.

        Returns:
            (N, m), float32 at least.

        Raises:
            SennError: as in `loss`.
        """
        return self.local(output, target, weight, curved=False, checked=True).gradient

    def check_separable(self, output: Tensor, target: Any) -> None:
        """Refuse a loss that isn't a mean over samples, each with a loss of its own; closed forms are.

        Args:
            output: as in `loss`.
            target: as in `loss`.

        Raises:
            UnsupportedError: the loss mixes samples, depends on their order, is no mean, or is random.
        """
        if not self.has_closed_form and not self.coupled:
            output, target = self._converted(output.detach(), target)
            with explained(self._failure(output, target)):
                check_samples(
                    self.function, self.name, output, target, curved=self.metric == "fisher"
                )

    def pseudo_grad(
        self,
        output: Tensor,
        target: Any,
        generator: torch.Generator,
        weight: Tensor | None = None,
        among: Among | None = None,
    ) -> Tensor:
        """Draw random rows v_i with E[v_i v_i^T] = H_i, independent over samples.

        Backpropagating v gives pseudo-gradients s with E[s s^T] = S, without sampling labels (Martens, Sutskever and
        Swersky 2012, *Estimating the Hessian by back-propagating curvature*, arXiv 1206.6464). For a softmax
        v = sqrt(p) r - p sum(sqrt(p) r) with Rademacher signs r.

        Args:
            output: as in `loss`.
            target: as in `loss`.
            generator: source of the signs.
            weight: as in `loss`.
            among: which samples of a larger batch these are, so that each gets the signs that it has there; None if
                they are a batch of their own.

        Returns:
            (N, m), float32 at least.
        """
        local = self.local(output, target, weight)
        return draw_pseudo_grad(local, generator, among, live_outputs(self, local, output, target))

    def product(
        self, output: Tensor, target: Any, u: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Multiply rows by the Hessians.

        Args:
            output: as in `loss`.
            target: as in `loss`.
            u: (N, m), or of the output's shape.
            weight: as in `loss`.

        Returns:
            Rows H_i u_i, (N, m).
        """
        local = self.local(output, target, weight)
        return local.curvature.product(u.detach().to(local.gradient).reshape(local.gradient.shape))

    def score_limit(self, output: Tensor, target: Any, weight: Tensor | None = None) -> float:
        """Compute lambda = mean_i g_i^T H_i^+ g_i, which eta can't exceed on this batch (paper, Theorem 3.1).

        It is twice the decrease that there would be if each sample's outputs could move freely. For a softmax it is
        the mean of 1 / p_target - 1.

        Args:
            output: as in `loss`.
            target: as in `loss`.
            weight: as in `loss`.

        Returns:
            Lambda, in units of eta (twice the loss). A sample that has a slope but no curvature of its own (Huber, far
            out), for which the theorem says nothing, counts with the median curvature of the batch along its gradients.

        Raises:
            SennError: as in `loss`.
        """
        local = self.local(output, target, weight)
        return local.score_limit

    @torch.no_grad()
    def loss_per_nat(self, loss: float, output: Tensor, target: Any = None) -> float:
        """Convert one nat per sample to the loss's own unit.

        Args:
            loss: mean loss at which to convert.
            output: (N, ...), whose shape says how many outputs a sample has.
            target: targets, some of which may be ignored; None if all count.

        Returns:
            1 for likelihoods of one label per sample and losses that aren't known, 1 / T for a mean over T labels. For
            a mean squared error of m outputs 2 loss / m, since it counts as a Gaussian likelihood with the error as its
            variance.
        """
        return self.nats(loss, self.count_labels(output, target))

    def count_labels(self, output: Tensor, target: Any = None) -> float:
        """Count the labels of a sample of which the loss is a mean, see `loss_per_nat`."""
        return count_labels(self._rule, self._options, output, target)

    def nats(self, loss: float, labels: float) -> float:
        """Convert one nat per sample to the loss's own unit, by the mean number of labels of a sample."""
        return nats(self._rule, loss, labels)

    @property
    def has_closed_form(self) -> bool:
        """True if gradient and Hessian are known as formulas, False if the loss is differentiated."""
        return self._rule is not None

    def _converted(self, output: Tensor, target: Any) -> tuple[Tensor, Any]:
        """Check and convert outputs and targets, see `converted`."""
        if self.has_closed_form and not isinstance(target, Tensor):
            raise SennError(
                f"{self.name} takes a tensor as targets, not a {type(target).__name__}: for several targets give a "
                "function of (outputs, targets) that takes them apart"
            )
        return converted(output, target)

    def _failure(self, output: Tensor, target: Any) -> str:
        shapes = f"outputs of shape {tuple(output.shape)} and targets of {shapes_of(target)}"
        return f"the loss {self.name} fails on {shapes}"

    def calibrated(self, output: Tensor, target: Any) -> LossMetric:
        """Bring the euclidean metric to the unit of the loss; any other metric stays as it is.

        Args:
            output: as in `loss`.
            target: as in `loss`.

        Returns:
            A metric with the curvature kappa along the gradient at these outputs: 1/2 eta is a decrease of the loss.
        """
        if self.metric != "euclidean":
            return self
        found = copy.copy(self)
        output, target = self._converted(output.detach(), target)
        if self._rule is not None:
            local = self._rule(output, target, self._options)
            product = local.curvature.product(local.gradient)
            found.curvature = rayleigh_quotient(local.gradient, product)
        else:
            found.curvature = secant_curvature(lambda y: self._rows(y, target), output)
        return found

    def dispersion(self, gradient_square: float, curvature_trace: float) -> float | None:
        """Estimate how much of the loss counts as one nat, for a loss that isn't known as a likelihood.

        For a log-likelihood in nats E[g g^T] = H (Bartlett's second identity). The ratio of both sides is the
        dispersion of a quasi-likelihood (Wedderburn 1974, *Quasi-likelihood functions, generalized linear models, and
        the Gauss-Newton method*, Biometrika 61), by which an information criterion divides the loss (QAIC). It is
        proportional to the loss, so a constant before it changes no decision; for a mean squared error it is
        `loss_per_nat`.

        Args:
            gradient_square: mean of g^T g over samples.
            curvature_trace: mean of the trace of H.

        Returns:
            The dispersion; None for likelihoods, whose decreases are in nats already.
        """
        if self.has_closed_form:
            return None
        return max(gradient_square / max(curvature_trace, 1e-300), 1e-30)

    @property
    def _is_own_hessian(self) -> bool:
        return self.metric == "fisher" and self.loss_hessian is None

    def _given_hessian(self, output: Tensor, target: Any, local: LocalLoss) -> LossHessian:
        if self.loss_hessian is None:
            # of the outputs that the loss depends on: padding has no metric
            live = live_outputs(self, local, output, target)
            kappa = torch.full_like(local.gradient, self.curvature)
            return DiagonalHessian(kappa if live is None else kappa * live)
        name = loss_name(self.loss_hessian)
        shape = tuple(output.shape)
        with explained(f"loss_hessian {name} fails on outputs of shape {shape}"), torch.no_grad():
            found = self.loss_hessian(output, target)
        return hessian_of(found, output, name)

    def _rows(self, output: Tensor, target: Any) -> Tensor:
        """Gradient rows by a first derivative."""
        return differentiate(self.function, self.name, output, target, curved=False).gradient

    def local(
        self,
        output: Tensor,
        target: Any,
        weight: Tensor | None = None,
        *,
        curved: bool = True,
        checked: bool = False,
    ) -> LocalLoss:
        """Compute all that is known of the loss around one batch's outputs, at once.

        Args:
            output: as in `loss`.
            target: as in `loss`.
            weight: as in `loss`.
            curved: False if the Hessians aren't used.
            checked: True to refuse a loss that isn't a mean over samples, each with a loss of its own; closed forms
                are.

        Returns:
            Losses, gradient rows and Hessians, weighted.

        Raises:
            SennError: as in `loss`.
        """
        output, target = self._converted(output.detach(), target)
        weight = None if weight is None else checked_weights(weight, output)
        if self._rule is not None:
            local = self._rule(output, target, self._options)
        else:
            with explained(self._failure(output, target)):
                local = differentiate(
                    self.function,
                    self.name,
                    output,
                    target,
                    curved=curved and self._is_own_hessian,
                    weight=weight,
                    checked=checked and not self.coupled,
                )
        if not self._is_own_hessian:
            # gradient and losses are the loss's own; only the metric of the outputs is another
            local = LocalLoss(
                losses=local.losses,
                gradient=local.gradient,
                curvature=self._given_hessian(output, target, local),
            )
        return local if weight is None else local.scaled(weight)
