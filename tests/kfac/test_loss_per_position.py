"""Losses with a class or a number per position, as training loops write them, against dense Hessians in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from senn.errors import SennError, UnsupportedError
from senn.kfac.krylov import ProductHessian
from senn.kfac.loss_curvature import DENSE, BlockHessian
from senn.kfac.loss_hessians import DiagonalHessian, SoftmaxHessian, SumHessian
from senn.kfac.loss_metric import LossMetric
from senn.kfac.pseudo_grad import draw_pseudo_grad

D = torch.float64
N, T, C = 3, 23, 3
M = T * C


def _random(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


Y = _random(N, T, C)
TOKENS = torch.randint(C, (N, T), generator=torch.Generator().manual_seed(1))
TOKENS[:, 17:] = -100
TOKENS[1] = -100  # a sample without a target
SOFT = _random(N, T, C, seed=2).softmax(-1)
W = torch.tensor([0.5, 2.0, 1.25], dtype=D)


def flat(y, t, **options):
    return F.cross_entropy(y.flatten(0, 1), t.flatten(), **options)


def masked_mean(y, t):
    return F.cross_entropy(y.transpose(1, 2), t, reduction="none").sum() / (t != -100).sum()


def by_hand(y, t):
    log_p = y.log_softmax(-1).gather(-1, t.clamp_min(0)[..., None])[..., 0]
    return -(log_p * (t != -100)).sum() / (t != -100).sum()


def by_logsumexp(y, t):
    own = y.logsumexp(-1) - y.gather(-1, t.clamp_min(0)[..., None])[..., 0]
    return own[t != -100].mean()


def writes_in_place(y, t):
    y /= 2.0
    return flat(y, t)


def distilled(y, t):
    return F.kl_div((y / 1.5).log_softmax(-1), t, reduction="sum") / len(y)


def heads(y, t):
    return F.cross_entropy(y[:, 0], t[:, 0].clamp_min(0)) + 0.5 * F.cross_entropy(
        y[:, 1], t[:, 2].clamp_min(0)
    )


def parts_of_a_row(y, t):
    row = y.flatten(1)
    return F.cross_entropy(row[:, :40], t[:, 0].clamp_min(0)) + 0.5 * F.cross_entropy(
        row[:, 40:], t[:, 1].clamp_min(0)
    )


def head_and_numbers(y, t):
    return F.cross_entropy(y[:, 0], t[:, 0].argmax(1)) + 0.5 * F.mse_loss(y[:, 1:], t[:, 1:])


SOFTMAX = {
    "flattened": (flat, TOKENS),
    "view": (lambda y, t: F.cross_entropy(y.view(-1, C), t.view(-1)), TOKENS),
    "classes second": (lambda y, t: F.cross_entropy(y.transpose(1, 2), t), TOKENS),
    "module": (lambda y, t: nn.CrossEntropyLoss()(y.movedim(-1, 1), t), TOKENS),
    "shifted": (
        lambda y, t: F.cross_entropy(y[:, :-1].reshape(-1, C), t[:, 1:].flatten()),
        TOKENS,
    ),
    "used only": (lambda y, t: F.cross_entropy(y[t != -100], t[t != -100]), TOKENS),
    "temperature": (lambda y, t: flat(y / 1.7, t), TOKENS),
    "distances": (lambda y, t: flat(-y, t), TOKENS),
    "prior": (lambda y, t: flat(y + W.log(), t), TOKENS),
    "options": (lambda y, t: flat(y, t, weight=W, label_smoothing=0.1), TOKENS),
    "soft targets": (lambda y, t: F.cross_entropy(y.movedim(-1, 1), t.movedim(-1, 1)), SOFT),
    "mixed targets": (lambda y, t: 0.3 * flat(y, t) + 0.7 * flat(y, t.flip(1)), TOKENS),
    "masked mean": (masked_mean, TOKENS),
    "by hand": (by_hand, TOKENS),
    "logsumexp": (by_logsumexp, TOKENS),
    "log-probabilities": (
        lambda y, t: F.nll_loss(y.log_softmax(-1).flatten(0, 1), t.flatten()),
        TOKENS,
    ),
    "distilled": (distilled, SOFT),
    "in place": (writes_in_place, TOKENS),
    "heads": (heads, TOKENS),
    "positions in one dimension": (
        lambda y, t: F.cross_entropy(y.flatten(1).view(-1, C), t.flatten()),
        TOKENS,
    ),
}
OTHERS = {
    "parts of a row": (parts_of_a_row, TOKENS, SumHessian),
    "head and numbers": (head_and_numbers, SOFT, SumHessian),
    "squared error": (lambda y, t: F.mse_loss(y.flatten(), t.flatten()), SOFT, DiagonalHessian),
    "bits": (
        lambda y, t: F.binary_cross_entropy_with_logits(y.flatten(), t.flatten(), pos_weight=W[1]),
        SOFT,
        DiagonalHessian,
    ),
    "log-cosh": (lambda y, t: (y - t).cosh().log().mean(), SOFT, DiagonalHessian),
    "penalized": (lambda y, t: flat(y, t) + 0.1 * y.square().mean(), TOKENS, BlockHessian),
    "squared logsumexp": (
        lambda y, t: flat(y, t) + 0.1 * y.logsumexp(-1).square().mean(),
        TOKENS,
        BlockHessian,
    ),
    "length": (
        lambda y, t: ((y - t).square().sum((1, 2)) + 0.01).sqrt().mean(),
        SOFT,
        ProductHessian,
    ),
    "one softmax over all": (lambda y, t: y.logsumexp((1, 2)).mean(), SOFT, ProductHessian),
}


def _dense(loss, y, target):
    """N d2L/dy_i2 as (N, M, M), and N dL/dy, from torch.func alone."""
    flat_loss = lambda rows: loss(rows.reshape(y.shape).clone(), target)  # noqa: E731
    m = y[0].numel()
    hessian = torch.func.hessian(flat_loss)(y.flatten()).reshape(len(y), m, len(y), m)
    gradient = torch.func.grad(flat_loss)(y.flatten()).view(len(y), m)
    return len(y) * torch.stack([hessian[i, :, i] for i in range(len(y))]), len(y) * gradient


def _matrix(apply, samples, m):
    eye = torch.eye(m, dtype=D)
    return torch.stack([apply(eye[j].expand(samples, m)) for j in range(m)], 2)


@pytest.mark.parametrize("name", [*SOFTMAX, *OTHERS])
def test_curvature_is_the_dense_one_in_its_cheapest_form(name):
    assert M > DENSE
    loss, target, kind = (*SOFTMAX[name], SoftmaxHessian) if name in SOFTMAX else OTHERS[name]
    hessian, gradient = _dense(loss, Y, target)
    local = LossMetric(loss).local(Y, target)
    assert type(local.curvature) is kind
    torch.testing.assert_close(local.gradient, gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        _matrix(local.curvature.product, N, M), hessian, rtol=1e-9, atol=1e-10
    )
    limit = torch.einsum(
        "ni,nij,nj->n", gradient, torch.linalg.pinv(hessian, hermitian=True), gradient
    )
    if name == "one softmax over all":  # its slope 1 along shifts of all outputs has no curvature
        limit = torch.full_like(limit, torch.inf)
    torch.testing.assert_close(local.curvature.score_limit(gradient), limit, rtol=1e-6, atol=1e-12)
    if kind is ProductHessian:
        values, vectors = torch.linalg.eigh(hessian)
        r = _random(N, M, seed=5)
        root = vectors @ (values.clamp_min(0).sqrt()[:, :, None] * (vectors.mT @ r[:, :, None]))
        torch.testing.assert_close(local.curvature.root(r), root[:, :, 0], rtol=1e-3, atol=1e-5)
    else:
        root = _matrix(local.curvature.root, N, M)
        torch.testing.assert_close(root @ root.mT, hessian, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", [*SOFTMAX, *OTHERS])
def test_sample_weights_scale_every_form_of_curvature(name):
    loss, target, *_ = SOFTMAX.get(name) or OTHERS[name]
    curvature = LossMetric(loss).local(Y, target).curvature
    weight = torch.tensor([2.0, 0.5, 0.0], dtype=D)
    u = _random(N, M, seed=6)
    torch.testing.assert_close(
        curvature.scaled(weight).product(u), weight[:, None] * curvature.product(u)
    )
    torch.testing.assert_close(
        curvature.scaled(weight).root(u), weight.sqrt()[:, None] * curvature.root(u)
    )


IMAGES = _random(N, C, 4, 6)
PIXELS = torch.randint(C, (N, 4, 6), generator=torch.Generator().manual_seed(3))
PIXELS[:, 0] = -100
DIRECT = {
    "ce": (F.cross_entropy, IMAGES, PIXELS),
    "ce options": (nn.CrossEntropyLoss(W, label_smoothing=0.1), IMAGES, PIXELS),
    "ce soft": (nn.CrossEntropyLoss(W), IMAGES, _random(N, C, 4, 6, seed=4).softmax(1)),
    "bce": (
        nn.BCEWithLogitsLoss(pos_weight=W[:, None, None]),
        IMAGES,
        (_random(N, C, 4, 6) > 0).to(D),
    ),
    "mse": (F.mse_loss, IMAGES, _random(N, C, 4, 6, seed=5)),
}


@pytest.mark.parametrize("name", DIRECT)
def test_torchs_losses_take_positions(name):
    loss, y, target = DIRECT[name]
    hessian, gradient = _dense(loss, y, target)
    metric = LossMetric(loss)
    local = metric.local(y, target)
    torch.testing.assert_close(local.gradient, gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        _matrix(local.curvature.product, N, y[0].numel()), hessian, rtol=1e-9, atol=1e-10
    )
    assert float(local.losses.mean()) == pytest.approx(float(loss(y, target)), rel=1e-12)
    weight = torch.tensor([1.0, 2.0, 0.0], dtype=D)
    assert float(metric.loss(y, target, weight)) == pytest.approx(
        float((local.losses * weight).mean())
    )


def test_positions_are_rows():
    """A sample of many positions counts as that many samples of one, in every figure."""
    y, t = Y.flatten(0, 1), TOKENS.flatten()
    rows, positions = LossMetric(F.cross_entropy).local(y, t), LossMetric(flat).local(Y, TOKENS)
    # rows are per sample: T positions share one
    torch.testing.assert_close(positions.gradient.reshape(-1, C) * T, rows.gradient)
    assert positions.score_limit == pytest.approx(rows.score_limit)
    draws = [
        draw_pseudo_grad(one, torch.Generator().manual_seed(0)).reshape(-1, C)
        for one in (rows, positions)
    ]
    torch.testing.assert_close(draws[1] * T**0.5, draws[0])


def test_log_probabilities_and_probabilities_have_the_fisher_of_their_logits():
    log_p = Y.log_softmax(-1)
    nll = LossMetric(lambda y, t: F.nll_loss(y.flatten(0, 1), t.flatten()))
    direct = LossMetric(F.nll_loss).local(log_p.movedim(-1, 1), TOKENS)
    u = _random(N, T, C, seed=7)
    torch.testing.assert_close(
        nll.product(log_p, TOKENS, u),
        direct.curvature.product(u.movedim(-1, 1).flatten(1))
        .view(N, C, T)
        .movedim(1, -1)
        .flatten(1),
    )
    p, bits = Y.sigmoid(), (SOFT > 0.3).to(D)
    own = LossMetric(lambda y, t: F.binary_cross_entropy(y.flatten(), t.flatten()))
    torch.testing.assert_close(
        own.product(p, bits, u), LossMetric(F.binary_cross_entropy).product(p, bits, u)
    )


def focal(y, t):
    log_p = y.log_softmax(-1).gather(-1, t.clamp_min(0)[..., None])
    return -((1 - log_p.exp()) ** 2 * log_p).mean()


@pytest.mark.parametrize(
    ("loss", "target", "message"),
    [
        (lambda y, t: -flat(y, t), TOKENS, "not convex"),
        (focal, TOKENS, "not convex"),
        (lambda y, t: -((y - t).square().sum((1, 2)) + 1).sqrt().mean(), SOFT, "not convex"),
        (lambda y, t: (y - t).abs().mean(), SOFT, "no curvature"),
        (lambda y, t: flat(y, t) * y.shape[0], TOKENS, "not a mean over the samples"),
    ],
)
def test_what_is_no_likelihood_is_refused(loss, target, message):
    with pytest.raises(UnsupportedError, match=message):
        LossMetric(loss).local(Y, target, checked=True)


def test_what_takes_too_much_memory_is_refused_before_it_is_computed():
    y = torch.zeros(64, 400, 300)
    with pytest.raises(UnsupportedError, match=r"120000 outputs of each of 64 samples.* GB"):
        LossMetric(lambda y, t: (y - t).square().sum((1, 2)).add(1).sqrt().mean()).local(y, y + 1)


class Once(torch.autograd.Function):
    """The squared error, written without a second derivative."""

    @staticmethod
    def forward(ctx, y, t):
        ctx.save_for_backward(y - t)
        return (y - t).square().mean()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (residual,) = ctx.saved_tensors
        return gradient * 2 * residual / residual.numel(), None


@pytest.mark.parametrize(
    ("loss", "y", "target", "same"),
    [
        # the hinge of torch has no second derivative; this one is the same
        (
            nn.MultiMarginLoss(),
            Y[:, 0],
            TOKENS[:, 0].clamp_min(0),
            lambda y, t: ((y - y.gather(1, t[:, None]) + 1).clamp_min(0).sum(1) - 1).mean() / C,
        ),
        (Once.apply, Y, SOFT, F.mse_loss),
    ],
)
def test_the_euclidean_metric_needs_no_second_derivative(loss, y, target, same):
    found = LossMetric(loss, "euclidean").local(y, target)
    expected = torch.func.grad(lambda y: same(y, target))(y)
    torch.testing.assert_close(found.gradient, len(y) * expected.flatten(1))
    with pytest.raises(SennError, match=r"cannot be differentiated twice.*euclidean"):
        LossMetric(loss).local(y, target)


def test_signs_are_those_of_former_versions_at_a_byte_each():
    generator = torch.Generator().manual_seed(3)
    expected = torch.randint(0, 2, (4, 5), generator=generator) * 2 - 1
    local = LossMetric(F.mse_loss).local(torch.zeros(4, 5), torch.zeros(4, 5))
    drawn = draw_pseudo_grad(local, torch.Generator().manual_seed(3))
    assert torch.equal(drawn, (2 / 5) ** 0.5 * expected)


def test_several_choices_in_one_row_of_outputs():
    y, t = _random(5, 12), torch.randint(4, (5, 3))
    for loss in (
        lambda y, t: F.cross_entropy(y.view(-1, 4), t.flatten()),
        lambda y, t: F.cross_entropy(y.view(-1, 4, 3), t),
        lambda y, t: sum(F.cross_entropy(one, t[:, i]) for i, one in enumerate(y.chunk(3, 1))),
    ):
        hessian, _ = _dense(loss, y, t)
        curvature = LossMetric(loss).local(y, t).curvature
        assert isinstance(curvature, SoftmaxHessian | SumHessian)
        torch.testing.assert_close(_matrix(curvature.product, 5, 12), hessian)
