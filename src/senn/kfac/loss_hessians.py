"""Losses with a closed form: their values, gradient rows and curvatures at a network's outputs. Pure tensor maths.

Layout as in `output`: y (N, m), rows per sample and unaveraged, so that the loss is the mean of `LocalLoss.losses`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from senn.errors import SennError, UnsupportedError

Options = Mapping[str, Any]

_LOGIT = 69.0
"""Logits and log-probabilities are clamped here in curvatures: p >= 1e-30, so every bound is finite."""


class LossHessian(Protocol):
    """H_i of every sample i, positive semidefinite."""

    def root(self, r: Tensor) -> Tensor:
        """Rows R_i r_i with R_i R_i^T = H_i."""

    def product(self, u: Tensor) -> Tensor:
        """Rows H_i u_i."""

    def score_limit(self, gradient: Tensor) -> Tensor:
        """Squares g_i^T H_i^+ g_i, (N,), float64."""

    def scaled(self, weight: Tensor) -> LossHessian:
        """Rows w_i H_i."""


def _ratio(square: Tensor, curvature: Tensor) -> Tensor:
    """Square / curvature in float64, with 0 / 0 = 0."""
    return torch.where(square == 0, 0.0, square.double() / curvature.double())


@dataclass(frozen=True, eq=False)
class DiagonalHessian:
    """H_i = diag(h_i), h (N, m)."""

    h: Tensor

    def root(self, r: Tensor) -> Tensor:
        """Rows R_i r_i with R_i R_i^T = H_i."""
        return self.h.sqrt() * r

    def product(self, u: Tensor) -> Tensor:
        """Rows H_i u_i."""
        return self.h * u

    def score_limit(self, gradient: Tensor) -> Tensor:
        """Squares g_i^T H_i^+ g_i, (N,), float64."""
        return _ratio(gradient**2, self.h).sum(1)

    def scaled(self, weight: Tensor) -> DiagonalHessian:
        """Rows w_i H_i."""
        return DiagonalHessian(self.h * weight[:, None])


@dataclass(frozen=True, eq=False, kw_only=True)
class SoftmaxHessian:
    """H_i = total_i (diag(p_i) - p_i p_i^T), p (N, m), total (N, 1)."""

    p: Tensor
    total: Tensor

    def root(self, r: Tensor) -> Tensor:
        """Rows R_i r_i with R_i R_i^T = H_i."""
        root = self.p.sqrt() * r
        return self.total.sqrt() * (root - self.p * root.sum(1, keepdim=True))

    def product(self, u: Tensor) -> Tensor:
        """Rows H_i u_i."""
        product = self.p * u
        return self.total * (product - self.p * product.sum(1, keepdim=True))

    def score_limit(self, gradient: Tensor) -> Tensor:
        """Squares g_i^T H_i^+ g_i, (N,), float64."""
        # diag(1/p) inverts H on the vectors that sum to zero; no output moves along p (log-probabilities).
        gradient = gradient - self.p * gradient.sum(1, keepdim=True)
        return _ratio(gradient**2, self.total * self.p).sum(1)

    def scaled(self, weight: Tensor) -> SoftmaxHessian:
        """Rows w_i H_i."""
        return SoftmaxHessian(p=self.p, total=self.total * weight[:, None])


@dataclass(frozen=True, eq=False, kw_only=True)
class DenseHessian:
    """H_i = V_i diag(e_i) V_i^T, vectors (N, m, m), values (N, m)."""

    vectors: Tensor
    values: Tensor

    def root(self, r: Tensor) -> Tensor:
        """Rows R_i r_i with R_i R_i^T = H_i."""
        return torch.einsum("nij,nj->ni", self.vectors, self.values.sqrt() * r)

    def product(self, u: Tensor) -> Tensor:
        """Rows H_i u_i."""
        return torch.einsum("nij,nj,nkj,nk->ni", self.vectors, self.values, self.vectors, u)

    def score_limit(self, gradient: Tensor) -> Tensor:
        """Squares g_i^T H_i^+ g_i, (N,), float64."""
        along = torch.einsum("nij,ni->nj", self.vectors, gradient)
        noise = torch.finfo(along.dtype).eps * len(along.mT) * gradient.norm(dim=1, keepdim=True)
        return _ratio(torch.where(along.abs() <= 10 * noise, 0.0, along) ** 2, self.values).sum(1)

    def scaled(self, weight: Tensor) -> DenseHessian:
        """Rows w_i H_i."""
        return DenseHessian(vectors=self.vectors, values=self.values * weight[:, None])


@dataclass(frozen=True, eq=False, kw_only=True)
class LocalLoss:
    """One batch: losses l_i (N,), gradient rows (N, m), curvature."""

    losses: Tensor
    gradient: Tensor
    curvature: LossHessian

    def scaled(self, weight: Tensor) -> LocalLoss:
        """The same batch with sample weights w (N,)."""
        return LocalLoss(
            losses=self.losses * weight,
            gradient=self.gradient * weight[:, None],
            curvature=self.curvature.scaled(weight),
        )


# ---- rules: closed forms --------------------------------------------------------------------------------------------


def _cross_entropy(y: Tensor, target: Tensor, options: Options) -> LocalLoss:
    """Loss -sum_c q_c log p_c: gradient (sum q) p - q, H = (sum q)(diag p - p p^T)."""
    y = _matrix(y, "cross_entropy")
    log_p = F.log_softmax(y, 1)
    q = _class_targets(y, target, options)
    total = q.sum(1, keepdim=True)
    # 0 * -inf would be NaN where an output is -inf (a masked class).
    losses = -torch.where(q == 0, 0.0, q * log_p).sum(1)
    return LocalLoss(
        losses=losses,
        gradient=total * log_p.exp() - q,
        curvature=SoftmaxHessian(p=log_p.clamp_min(-_LOGIT).exp(), total=total),
    )


def _nll(y: Tensor, target: Tensor, options: Options) -> LocalLoss:
    """Loss -sum_c q_c y_c with y = log p. Its Fisher is the one of cross-entropy, since p^T J = 0."""
    y = _matrix(y, "nll_loss")
    if float(y.logsumexp(1).abs().max()) > 1e-2:
        raise UnsupportedError("nll_loss needs log-probabilities as outputs, and these do not sum to one")
    q = _class_targets(y, target, options)
    losses = -torch.where(q == 0, 0.0, q * y).sum(1)
    return LocalLoss(
        losses=losses, gradient=-q, curvature=SoftmaxHessian(p=y.clamp_min(-_LOGIT).exp(), total=q.sum(1, keepdim=True))
    )


def _bce_with_logits(y: Tensor, target: Tensor, options: Options) -> LocalLoss:
    """Loss 1/m sum w (a t log(1/p) + (1 - t) log(1/(1 - p))), a = pos_weight, p = sigmoid(y)."""
    y, t = _alike(y, target, "binary_cross_entropy_with_logits")
    scale = _broadcast(options["weight"], y, "weight") / y[0].numel()
    positive = _broadcast(options["pos_weight"], y, "pos_weight") * t
    losses = scale * (positive * F.softplus(-y) + (1 - t) * F.softplus(y))
    gradient = scale * ((1 - t) * y.sigmoid() - positive * (-y).sigmoid())
    clamped = y.clamp(-_LOGIT, _LOGIT)
    curvature = scale * (positive + 1 - t) * clamped.sigmoid() * (-clamped).sigmoid()
    return LocalLoss(
        losses=losses.flatten(1).sum(1), gradient=gradient.flatten(1), curvature=DiagonalHessian(curvature.flatten(1))
    )


def _bce(y: Tensor, target: Tensor, options: Options) -> LocalLoss:
    """The same with p = y. H = 1 / (p (1 - p)), the mean of d2l/dp2 over t ~ p: invariant to the link function."""
    y, t = _alike(y, target, "binary_cross_entropy")
    if not bool(((y >= 0) & (y <= 1)).all()):
        raise SennError("binary_cross_entropy needs probabilities as outputs, and some lie outside [0, 1]")
    scale = _broadcast(options["weight"], y, "weight") / y[0].numel()
    variance = (y * (1 - y)).clamp_min(1e-12)
    losses = -scale * (t * y.log().clamp_min(-100) + (1 - t) * (1 - y).log().clamp_min(-100))
    gradient = scale * (y - t) / variance
    return LocalLoss(
        losses=losses.flatten(1).sum(1),
        gradient=gradient.flatten(1),
        curvature=DiagonalHessian((scale / variance).flatten(1)),
    )


def _mse(y: Tensor, target: Tensor, options: Options) -> LocalLoss:
    """Loss |y - t|^2 / m: H = 2/m I (no 1/2 in PyTorch's squared error)."""
    y, t = _alike(y, target, "mse_loss")
    residual = (y - t).flatten(1)
    m = residual.shape[1]
    return LocalLoss(
        losses=(residual**2).mean(1),
        gradient=2 / m * residual,
        curvature=DiagonalHessian(torch.full_like(residual, 2 / m)),
    )


# ---- options and targets --------------------------------------------------------------------------------------------


def _matrix(y: Tensor, name: str) -> Tensor:
    if y.ndim != 2:
        raise UnsupportedError(
            f"{name} needs outputs of shape (samples, classes), not {tuple(y.shape)}: with a class per position, wrap "
            "it in a function of your own, which is then differentiated twice"
        )
    return y


def _alike(y: Tensor, target: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Outputs and targets of one shape, (N, 1) at least; nothing is broadcast silently."""
    if y.shape != target.shape:
        raise SennError(f"{name} got outputs of shape {tuple(y.shape)} and targets of shape {tuple(target.shape)}")
    return (y[:, None], target[:, None].to(y)) if y.ndim == 1 else (y, target.to(y))


def _broadcast(option: Tensor | None, y: Tensor, name: str) -> Tensor:
    if option is None:
        return torch.ones_like(y)
    try:
        return option.to(y).broadcast_to(y.shape)
    except RuntimeError as error:
        raise SennError(f"the loss's {name} {tuple(option.shape)} does not fit outputs {tuple(y.shape)}") from error


def _class_targets(y: Tensor, target: Tensor, options: Options) -> Tensor:
    """Weights q (N, C) with loss = mean_i sum_c -q_ic log p_ic: class weights, smoothing, ignored samples included."""
    classes = y.shape[1]
    weight = torch.ones_like(y[0]) if options["weight"] is None else options["weight"].to(y)
    if weight.shape != (classes,):
        raise SennError(f"the loss has {len(weight)} class weights, and the outputs have {classes} classes")
    smoothing = options.get("label_smoothing", 0.0)
    if target.is_floating_point():
        if target.shape != y.shape:
            raise SennError(f"class probabilities {tuple(target.shape)} do not fit outputs {tuple(y.shape)}")
        q: Tensor = (target * (1 - smoothing) + smoothing / classes) * weight
        return q
    if target.shape != y.shape[:1]:
        raise SennError(f"class targets need shape ({len(y)},), not {tuple(target.shape)}")
    target = target.long()
    used = target != options["ignore_index"]
    wrong = target[used & ((target < 0) | (target >= classes))]
    if len(wrong):
        raise SennError(f"the targets contain class {int(wrong[0])}, and the outputs have classes 0 to {classes - 1}")
    index = torch.where(used, target, 0)
    share = weight[index] * used
    if not bool(share.sum() > 0):
        raise SennError("every target of this batch is ignored or has class weight zero")
    scale: Tensor = (len(y) / share.sum()) * used
    smooth: Tensor = F.one_hot(index, classes).to(y) * (1 - smoothing) + smoothing / classes
    return smooth * weight * scale[:, None]


# ---- which loss has which rule --------------------------------------------------------------------------------------

Rule = Callable[[Tensor, Tensor, Options], LocalLoss]

_RULES: dict[Any, tuple[Rule, Options]] = {
    F.cross_entropy: (_cross_entropy, {"weight": None, "ignore_index": -100, "label_smoothing": 0.0}),
    F.nll_loss: (_nll, {"weight": None, "ignore_index": -100}),
    F.binary_cross_entropy_with_logits: (_bce_with_logits, {"weight": None, "pos_weight": None}),
    F.binary_cross_entropy: (_bce, {"weight": None}),
    F.mse_loss: (_mse, {}),
}

_FUNCTIONS: dict[type[nn.Module], Any] = {
    nn.CrossEntropyLoss: F.cross_entropy,
    nn.NLLLoss: F.nll_loss,
    nn.BCEWithLogitsLoss: F.binary_cross_entropy_with_logits,
    nn.BCELoss: F.binary_cross_entropy,
    nn.MSELoss: F.mse_loss,
}


def nats(rule: Rule | None, loss: float, outputs: int) -> float:
    """How much of a loss one nat per sample is, for the likelihood that the loss stands for.

    A squared error is a Gaussian likelihood whose variance is the error itself: outputs / 2 ln(loss) nats. A mean over
    outputs counts each of them once in nats. Other losses are taken to be in nats.
    """
    if rule is _mse:
        return max(2 * loss / outputs, 1e-30)
    return 1 / outputs if rule in (_bce, _bce_with_logits) else 1.0


def resolve(loss: Any) -> tuple[Rule | None, Options]:
    """The rule and options of a loss; (None, its keywords) if it has to be differentiated."""
    given: Options = {}
    function = loss
    if isinstance(loss, functools.partial):
        function, given = loss.func, loss.keywords
    elif type(loss) in _FUNCTIONS:
        function = _FUNCTIONS[type(loss)]
        given = {name: getattr(loss, name) for name in _RULES[function][1]}
    try:
        rule, defaults = _RULES[function]
    except (KeyError, TypeError):  # unknown, or unhashable
        return None, given
    if (isinstance(loss, functools.partial) and loss.args) or not given.keys() <= {*defaults, "reduction"}:
        return None, given
    return rule, {**defaults, **given}
