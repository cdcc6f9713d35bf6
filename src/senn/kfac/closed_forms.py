"""Losses with a closed form: values, gradient rows and Hessians at a network's outputs. Pure tensor math.

Outputs are (N, C), or (N, C, ...) with a class for each position. A sample's loss is the mean over its positions; where
PyTorch divides by the number (or the class weights) of the used ones in the batch, a used position weighs N / used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from senn.errors import SennError, UnsupportedError
from senn.kfac.loss_hessians import LOGIT, DiagonalHessian, LocalLoss, SoftmaxHessian

Options = Mapping[str, Any]

# ---- rules: closed forms --------------------------------------------------------------------------------------------


def _cross_entropy(y: Tensor, target: Tensor, options: Options) -> LocalLoss:
    """Loss -sum_c q_c log p_c with p = softmax(y): gradient (sum q) p - q, H = (sum q)(diag p - p p^T)."""
    y = _by_class(y, "cross_entropy")
    log_p = F.log_softmax(y, 1)
    q = _class_targets(y, target, options)
    total = q.sum(1, keepdim=True)
    # where, not a product: 0 * -inf would be NaN where an output is -inf (a masked class)
    losses = -torch.where(q == 0, 0.0, q * log_p).flatten(1).sum(1)
    return LocalLoss(
        losses=losses,
        gradient=(total * log_p.exp() - q).flatten(1),
        curvature=SoftmaxHessian(p=log_p.clamp_min(-LOGIT).exp(), total=total),
    )


def _nll(y: Tensor, target: Tensor, options: Options) -> LocalLoss:
    """Loss -sum_c q_c y_c of log-probabilities y. Its Fisher is that of cross-entropy, since p^T J = 0."""
    y = _by_class(y, "nll_loss")
    if float(y.logsumexp(1).abs().max()) > 1e-2:
        raise UnsupportedError(
            "nll_loss needs log-probabilities as outputs, and these don't sum to one"
        )
    q = _class_targets(y, target, options)
    losses = -torch.where(q == 0, 0.0, q * y).flatten(1).sum(1)
    return LocalLoss(
        losses=losses,
        gradient=-q.flatten(1),
        curvature=SoftmaxHessian(p=y.clamp_min(-LOGIT).exp(), total=q.sum(1, keepdim=True)),
    )


def _bce_with_logits(y: Tensor, target: Tensor, options: Options) -> LocalLoss:
    """Loss 1/m sum w (a t log(1/p) + (1 - t) log(1/(1 - p))) with a = pos_weight, p = sigmoid(y)."""
    y, t = _alike(y, target, "binary_cross_entropy_with_logits")
    scale = _broadcast(options["weight"], y, "weight") / y[0].numel()
    # log(1/p) = softplus(-y), which doesn't overflow; H = w (a t + 1 - t) p (1 - p) / m
    positive = _broadcast(options["pos_weight"], y, "pos_weight") * t
    losses = scale * (positive * F.softplus(-y) + (1 - t) * F.softplus(y))
    gradient = scale * ((1 - t) * y.sigmoid() - positive * (-y).sigmoid())
    clamped = y.clamp(-LOGIT, LOGIT)
    curvature = scale * (positive + 1 - t) * clamped.sigmoid() * (-clamped).sigmoid()
    return LocalLoss(
        losses=losses.flatten(1).sum(1),
        gradient=gradient.flatten(1),
        curvature=DiagonalHessian(curvature.flatten(1)),
    )


def _bce(y: Tensor, target: Tensor, options: Options) -> LocalLoss:
    """Binary cross-entropy of probabilities p = y. H = 1 / (p (1 - p)), the mean of d2l/dp2 over t ~ p."""
    y, t = _alike(y, target, "binary_cross_entropy")
    if not bool(((y >= 0) & (y <= 1)).all()):
        raise SennError(
            "binary_cross_entropy needs probabilities as outputs, and some lie outside [0, 1]"
        )
    scale = _broadcast(options["weight"], y, "weight") / y[0].numel()
    # The Fisher rather than d2l/dp2 itself: it makes scores those of the same net with logits as outputs. The floor
    # stands where PyTorch's own gradient has it.
    variance = (y * (1 - y)).clamp_min(1e-12)
    losses = -scale * (t * y.log().clamp_min(-100) + (1 - t) * (1 - y).log().clamp_min(-100))
    gradient = scale * (y - t) / variance
    return LocalLoss(
        losses=losses.flatten(1).sum(1),
        gradient=gradient.flatten(1),
        curvature=DiagonalHessian((scale / variance).flatten(1)),
    )


def _kl_div(y: Tensor, target: Tensor, options: Options) -> LocalLoss:
    """Loss sum_c t_c (log t_c - y_c) of log-probabilities y, over m for "mean"; curved as `_nll` is."""
    y, t = _alike(y, target, "kl_div")
    t = t.exp() if options["log_target"] else t
    # classes are dimension 1 or the last one: where probabilities sum to one
    sums = {dim: float(y.logsumexp(dim).abs().max()) for dim in (1, y.ndim - 1)}
    dim = min(sums, key=lambda one: sums[one])
    if sums[dim] > 1e-2:
        raise UnsupportedError(
            "kl_div needs log-probabilities as outputs, and these don't sum to one"
        )
    scale = 1.0 if options["reduction"] == "batchmean" else 1 / y[0].numel()
    return LocalLoss(
        losses=scale * (t.xlogy(t) - t * y).flatten(1).sum(1),
        gradient=-scale * t.flatten(1),
        curvature=SoftmaxHessian(
            p=y.clamp_min(-LOGIT).exp(), total=scale * t.sum(dim, keepdim=True), dim=dim
        ),
    )


def _mse(y: Tensor, target: Tensor, options: Options) -> LocalLoss:
    """Loss |y - t|^2 / m: gradient 2 (y - t) / m, H = 2/m I (PyTorch's squared error has no 1/2)."""
    y, t = _alike(y, target, "mse_loss")
    residual = (y - t).flatten(1)
    m = residual.shape[1]
    return LocalLoss(
        losses=(residual**2).mean(1),
        gradient=2 / m * residual,
        curvature=DiagonalHessian(torch.full_like(residual, 2 / m)),
    )


# ---- options and targets --------------------------------------------------------------------------------------------


def _by_class(y: Tensor, name: str) -> Tensor:
    if y.ndim < 2:
        raise UnsupportedError(
            f"{name} needs outputs of shape (samples, classes, ...), not {tuple(y.shape)}"
        )
    return y


def _alike(y: Tensor, target: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Bring outputs and targets to one shape, (N, 1) at least; nothing is broadcast silently."""
    if y.shape != target.shape:
        raise SennError(
            f"{name} got outputs of shape {tuple(y.shape)} and targets of shape {tuple(target.shape)}"
        )
    return (y[:, None], target[:, None].to(y)) if y.ndim == 1 else (y, target.to(y))


def _broadcast(option: Tensor | None, y: Tensor, name: str) -> Tensor:
    if option is None:
        return torch.ones_like(y)
    try:
        return option.to(y).broadcast_to(y.shape)
    except RuntimeError as error:
        raise SennError(
            f"the loss's {name} {tuple(option.shape)} does not fit outputs {tuple(y.shape)}"
        ) from error


def _class_targets(y: Tensor, target: Tensor, options: Options) -> Tensor:
    """Find q (N, C, ...) with loss = mean_i sum -q_i log p_i: class weights, smoothing and ignored targets included."""
    classes = y.shape[1]
    weight = y.new_ones(classes) if options["weight"] is None else options["weight"].to(y)
    if weight.shape != (classes,):
        raise SennError(
            f"the loss has {len(weight)} class weights, and the outputs have {classes} classes"
        )
    smoothing = options.get("label_smoothing", 0.0)
    by_class = weight.view(-1, *[1] * (y.ndim - 2))
    if target.is_floating_point():
        if target.shape != y.shape:
            raise SennError(
                f"class probabilities {tuple(target.shape)} do not fit outputs {tuple(y.shape)}"
            )
        # PyTorch divides by the number of positions, and a row isn't averaged over samples
        q: Tensor = (target * (1 - smoothing) + smoothing / classes) * by_class
        return q / y[0, 0].numel()
    if target.shape != (len(y), *y.shape[2:]):
        shape = ", ".join(map(str, (len(y), *y.shape[2:])))
        raise SennError(
            f"class targets need shape ({shape}{',' * (y.ndim == 2)}), not {tuple(target.shape)}: the outputs' classes "
            "are dimension 1"
        )
    target = target.long()
    used = target != options["ignore_index"]
    # checked here: on a GPU, indexing out of range fails an assertion after which no CUDA call works
    wrong = target[used & ((target < 0) | (target >= classes))]
    if len(wrong):
        raise SennError(
            f"the targets contain class {int(wrong[0])}, and the outputs have classes 0 to {classes - 1}"
        )
    # PyTorch divides by the sum of the used targets' class weights. N / that sum makes it a mean over all N samples.
    index = torch.where(used, target, 0)
    share = weight[index] * used
    if not bool(share.sum() > 0):
        raise SennError("every target of this batch is ignored or has class weight zero")
    scale: Tensor = (len(y) / share.sum()) * used
    # one-hot rows without their integers, which would take twice the memory of the outputs
    hot = weight.new_ones(1) * (1 - smoothing) + smoothing / classes
    smooth = torch.full_like(y, smoothing / classes)
    smooth.scatter_(1, index[:, None], hot.expand(index.shape)[:, None])
    return smooth.mul_(by_class).mul_(scale[:, None])


# ---- which loss has which rule --------------------------------------------------------------------------------------

Rule = Callable[[Tensor, Tensor, Options], LocalLoss]

_RULES: dict[Any, tuple[Rule, Options]] = {
    F.cross_entropy: (
        _cross_entropy,
        {"weight": None, "ignore_index": -100, "label_smoothing": 0.0},
    ),
    F.nll_loss: (_nll, {"weight": None, "ignore_index": -100}),
    F.binary_cross_entropy_with_logits: (_bce_with_logits, {"weight": None, "pos_weight": None}),
    F.binary_cross_entropy: (_bce, {"weight": None}),
    F.mse_loss: (_mse, {}),
    F.kl_div: (_kl_div, {"log_target": False, "reduction": "mean"}),
}

_FUNCTIONS: dict[type[nn.Module], Any] = {
    nn.CrossEntropyLoss: F.cross_entropy,
    nn.NLLLoss: F.nll_loss,
    nn.BCEWithLogitsLoss: F.binary_cross_entropy_with_logits,
    nn.BCELoss: F.binary_cross_entropy,
    nn.MSELoss: F.mse_loss,
    nn.KLDivLoss: F.kl_div,
}


def reductions(rule: Rule | None) -> tuple[str, ...]:
    """Name the reductions of a loss that are means over samples."""
    return ("mean", "batchmean") if rule is _kl_div else ("mean",)


def count_labels(rule: Rule | None, options: Options, y: Tensor, target: Any) -> float:
    """Count the labels of a sample, each with a likelihood of its own, of which a loss is the mean.

    Args:
        rule: the loss's rule, or None.
        options: its options.
        y: (N, ...) outputs.
        target: targets, or None to count all positions.

    Returns:
        Their mean number. Ignored positions have no label; where entries are weighted, one of a typical weight counts
        one label. For a loss without a rule 1.
    """
    entries = y[0].numel()
    if rule in (_cross_entropy, _nll):
        positions = y[0, 0].numel() if y.ndim > 1 else 1
        if isinstance(target, Tensor) and not target.is_floating_point():
            return float((target != options["ignore_index"]).sum()) / max(len(target), 1)
        return positions
    if rule in (_bce, _bce_with_logits):
        weight = _broadcast(options["weight"], y, "weight")
        # so that a constant weight is a unit, and one of zeros and ones a mask
        return entries / max(float(weight[weight > 0].mean()), 1e-30)
    if rule is _kl_div:
        return 1 if options["reduction"] == "batchmean" else entries
    return entries if rule is _mse else 1


def nats(rule: Rule | None, loss: float, labels: float) -> float:
    """Convert one nat per sample to the unit of a loss.

    Args:
        rule: the loss's rule, or None.
        loss: its present value.
        labels: of a sample, by `count_labels`.

    Returns:
        How much of the loss one nat is; 1 for losses that aren't known.
    """
    # Squared error: a Gaussian likelihood whose variance is the error itself has m/2 ln(loss) nats, so d nats / d loss
    # is m / (2 loss). Other likelihoods are means over labels, each of which counts in nats.
    return max((2 * loss if rule is _mse else 1) / labels, 1e-30)


def resolve(loss: Any) -> tuple[Rule | None, Options]:
    """Find a loss's closed form.

    Args:
        loss: a function, a module of torch.nn, or a `functools.partial` of a function.

    Returns:
        Its rule and options; (None, its keywords) if it has to be differentiated.
    """
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
    if (isinstance(loss, functools.partial) and loss.args) or not given.keys() <= {
        *defaults,
        "reduction",
    }:
        return None, given
    return rule, {**defaults, **given}


def splits_over_outputs(loss: Any) -> bool:
    """Tell whether each output is known to have a term of its own in a loss, as with sigmoids and squared errors.

    Args:
        loss: as of `resolve`.

    Returns:
        False for a softmax, and for a loss that isn't known.
    """
    return resolve(loss)[0] in (_bce_with_logits, _bce, _mse)
