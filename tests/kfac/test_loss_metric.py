"""The output metric: closed forms against exact Hessians, probes, the bound on eta, refusals."""

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from senn.errors import SennError, UnsupportedError
from senn.kfac.loss_metric import LossMetric

N, M = 6, 3
D = torch.float64


def _random(seed=0):
    return torch.Generator().manual_seed(seed)


def _outputs(seed=0):
    return torch.randn(N, M, dtype=D, generator=_random(seed))


CLASSES = torch.tensor([0, 2, 1, 1, 0, 2])
PROBABILITIES = torch.softmax(_outputs(1), 1)
BITS = (PROBABILITIES > 0.3).to(D)
WEIGHTS = torch.tensor([0.5, 2.0, 1.25], dtype=D)
IGNORED = torch.tensor([0, 1, 1, -100, 0, 2])

# (loss, target): closed forms whose metric is the Hessian.
CASES = {
    "ce": (F.cross_entropy, CLASSES),
    "ce module": (nn.CrossEntropyLoss(), CLASSES),
    "ce weight": (nn.CrossEntropyLoss(weight=WEIGHTS), CLASSES),
    "ce smoothing": (nn.CrossEntropyLoss(label_smoothing=0.2), CLASSES),
    "ce ignore": (nn.CrossEntropyLoss(), IGNORED),
    "ce ignore class": (functools.partial(F.cross_entropy, ignore_index=1), CLASSES),
    "ce all options": (
        nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.2, ignore_index=1),
        CLASSES,
    ),
    "ce probabilities": (F.cross_entropy, PROBABILITIES),
    "ce probabilities, options": (
        functools.partial(F.cross_entropy, weight=WEIGHTS, label_smoothing=0.1),
        PROBABILITIES,
    ),
    "bce": (F.binary_cross_entropy_with_logits, BITS),
    "bce soft": (nn.BCEWithLogitsLoss(), PROBABILITIES),
    "bce pos_weight": (nn.BCEWithLogitsLoss(pos_weight=WEIGHTS), BITS),
    "bce weight": (nn.BCEWithLogitsLoss(weight=WEIGHTS), BITS),
    "bce partial": (
        functools.partial(F.binary_cross_entropy_with_logits, weight=WEIGHTS, pos_weight=WEIGHTS),
        BITS,
    ),
    "mse": (F.mse_loss, _outputs(2)),
    "mse module": (nn.MSELoss(), _outputs(2)),
}
# Losses without a closed form.
OTHERS = {
    "poisson": (functools.partial(F.poisson_nll_loss, log_input=True), PROBABILITIES),
    "huber": (nn.HuberLoss(delta=20.0), _outputs(2)),
    "log-cosh": (lambda y, t: (y - t).cosh().log().mean(), _outputs(2)),
}


def _dense(loss, y, target):
    """N d2L/dy_i2 as (N, M, M), and N dL/dy, from torch.func alone."""
    hessian = torch.func.hessian(lambda flat: loss(flat.reshape(N, M), target))(
        y.flatten()
    ).reshape(N, M, N, M)
    gradient = torch.func.grad(lambda y: loss(y, target))(y)
    return N * torch.stack([hessian[i, :, i] for i in range(N)]), N * gradient


def _columns(metric, y, target, weight=None):
    """H (N, M, M) from products with unit vectors."""
    columns = [
        metric.product(y, target, torch.eye(M, dtype=y.dtype)[j].expand(N, M), weight)
        for j in range(M)
    ]
    return torch.stack(columns, 2)


def _square(hessian, gradient):
    """Mean of g^T H^+ g."""
    return (
        torch.einsum("ni,nij,nj->n", gradient, torch.linalg.pinv(hessian, hermitian=True), gradient)
        .mean()
        .item()
    )


@pytest.mark.parametrize("name", [*CASES, *OTHERS])
def test_rows_are_the_exact_derivatives(name):
    loss, target = {**CASES, **OTHERS}[name]
    y = _outputs()
    metric = LossMetric(loss)
    hessian, gradient = _dense(loss, y, target)
    torch.testing.assert_close(_columns(metric, y, target), hessian, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(metric.gradient(y, target), gradient, rtol=1e-9, atol=1e-12)
    assert metric.loss(y, target).item() == pytest.approx(loss(y, target).item(), rel=1e-12)
    assert metric.score_limit(y, target) == pytest.approx(_square(hessian, gradient), rel=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_closed_forms_agree_with_double_backward(name):
    loss, target = CASES[name]
    y = _outputs()
    closed, generic = LossMetric(loss), LossMetric(lambda y, t: loss(y, t))
    torch.testing.assert_close(
        _columns(closed, y, target), _columns(generic, y, target), rtol=1e-9, atol=1e-12
    )
    torch.testing.assert_close(
        closed.gradient(y, target), generic.gradient(y, target), rtol=1e-9, atol=1e-12
    )
    assert closed.score_limit(y, target) == pytest.approx(generic.score_limit(y, target), rel=1e-7)


@pytest.mark.parametrize("name", [*CASES, *OTHERS])
def test_weights_scale_losses_gradients_and_curvatures(name):
    loss, target = {**CASES, **OTHERS}[name]
    if name == "log-cosh":
        with pytest.raises(UnsupportedError, match=r"lambda.*reduction"):
            LossMetric(loss).loss(_outputs(), target, torch.ones(N, dtype=D))
        return
    y, metric = _outputs(), LossMetric(loss)
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.5, 1.0], dtype=D)
    torch.testing.assert_close(
        metric.gradient(y, target, weight), weight[:, None] * metric.gradient(y, target)
    )
    torch.testing.assert_close(
        _columns(metric, y, target, weight), weight[:, None, None] * _columns(metric, y, target)
    )
    leaf = y.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(metric.loss(leaf, target, weight), leaf)
    torch.testing.assert_close(N * gradient, metric.gradient(y, target, weight))


@pytest.mark.parametrize("name", ["ce all options", "bce pos_weight", "mse", "poisson"])
def test_probes_are_unbiased_and_independent_between_samples(name):
    loss, target = {**CASES, **OTHERS}[name]
    y, metric, generator = _outputs(), LossMetric(loss), _random(3)
    many = y.repeat(100, 1), target.repeat(100, *[1] * (target.dim() - 1))
    draws = torch.cat([metric.pseudo_grad(*many, generator).view(100, N, M) for _ in range(40)])
    hessian = _columns(metric, y, target)
    second = torch.einsum("kni,kmj->nimj", draws, draws) / len(draws)
    scale = hessian.diagonal(dim1=1, dim2=2).sum(1).max()
    for i in range(N):
        for j in range(N):
            expected = hessian[i] if i == j else torch.zeros(M, M, dtype=D)
            assert (second[i, :, j] - expected).abs().max() < 0.08 * scale
    assert torch.equal(
        metric.pseudo_grad(y, target, _random(5)), metric.pseudo_grad(y, target, _random(5))
    )


def _divergence(y, t):
    return F.cross_entropy(y, t) + (t * t.log()).sum(1).mean()


def test_probabilities_as_outputs_have_the_fisher_of_their_logits():
    """A sigmoid or log-softmax inside the network changes neither F nor lambda."""
    logits = _outputs()
    for loss, link, reference, target in [
        (F.binary_cross_entropy, torch.sigmoid, F.binary_cross_entropy_with_logits, BITS),
        (nn.BCELoss(weight=WEIGHTS), torch.sigmoid, nn.BCEWithLogitsLoss(weight=WEIGHTS), BITS),
        (
            nn.NLLLoss(weight=WEIGHTS),
            functools.partial(F.log_softmax, dim=1),
            nn.CrossEntropyLoss(WEIGHTS),
            CLASSES,
        ),
        (
            nn.KLDivLoss(reduction="batchmean"),
            functools.partial(F.log_softmax, dim=1),
            _divergence,
            PROBABILITIES,
        ),
        (
            nn.KLDivLoss(reduction="mean", log_target=True),
            functools.partial(F.log_softmax, dim=1),
            lambda y, t: _divergence(y, t.exp()) / M,
            PROBABILITIES.log(),
        ),
    ]:
        jacobian = torch.func.vmap(torch.func.jacrev(lambda x, link=link: link(x[None])[0]))(logits)
        y, metric, truth = link(logits), LossMetric(loss), LossMetric(reference)
        pulled = jacobian.mT @ _columns(metric, y, target) @ jacobian
        torch.testing.assert_close(pulled, _columns(truth, logits, target), rtol=1e-9, atol=1e-12)
        gradient = torch.einsum("nij,ni->nj", jacobian, metric.gradient(y, target))
        torch.testing.assert_close(gradient, truth.gradient(logits, target), rtol=1e-9, atol=1e-12)
        assert metric.loss(y, target).item() == pytest.approx(truth.loss(logits, target).item())
        assert metric.score_limit(y, target) == pytest.approx(
            truth.score_limit(logits, target), rel=1e-9
        )


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(sorted(CASES)), st.integers(0, 1000), st.sampled_from(["fisher", "euclidean"])
)
def test_bound_is_at_least_eta(name, seed, kind):
    loss, target = CASES[name]
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, M)).to(D)
    x = torch.randn(N, 4, dtype=D)
    metric = LossMetric(loss, kind)
    parameters = dict(model.named_parameters())
    jacobian = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (x,)))(parameters)
    j = torch.cat([jacobian[key].reshape(N, M, -1) for key in parameters], 2)
    y = model(x).detach()
    fisher = torch.einsum("nia,nij,njb->ab", j, _columns(metric, y, target), j) / N
    g = torch.einsum("nia,ni->a", j, metric.gradient(y, target)) / N
    eta = g @ torch.linalg.solve(fisher + 1e-10 * torch.eye(len(g), dtype=D), g)
    assert metric.score_limit(y, target) >= eta.item() * (1 - 1e-9)


def test_softmax_bound_stays_finite_on_hopeless_outputs():
    y = torch.tensor([[1e4, 0.0], [0.0, 1.0]])
    assert 1 < LossMetric(F.cross_entropy).score_limit(y, torch.tensor([1, 1])) < 100
    saturated = torch.tensor([[500.0]])
    assert (
        1e20
        < LossMetric(F.binary_cross_entropy_with_logits).score_limit(saturated, torch.zeros(1, 1))
        < float("inf")
    )
    assert LossMetric(F.cross_entropy).score_limit(
        y.flip(1), torch.tensor([1, 0])
    ) == pytest.approx(0.5 * 0.36788, rel=1e-3)


@pytest.mark.parametrize("count", [1, 30])
@pytest.mark.parametrize(
    "loss",
    [nn.HuberLoss(delta=8.0), nn.SmoothL1Loss(beta=8.0), lambda y, t: (y - t).cosh().log().mean()],
)
def test_bound_is_that_of_the_other_samples_where_some_have_slope_but_no_curvature(loss, count):
    y = torch.randn(40, 2, dtype=D, generator=_random())
    t = torch.zeros_like(y)
    usual = LossMetric(loss).score_limit(y, t)
    y[:count] = 300.0  # a line so far out: exactly for Huber, by rounding for log-cosh
    with_outlier = LossMetric(loss).score_limit(y, t)
    assert usual / 2 < with_outlier < 100 * usual
    # the bound is scale free
    assert LossMetric(lambda y, t: 100 * loss(y, t)).score_limit(y, t) == pytest.approx(
        100 * with_outlier
    )


def test_euclidean_metric_is_the_identity():
    y, u = _outputs(), _outputs(4)
    metric = LossMetric(F.cross_entropy, metric="euclidean")
    assert torch.equal(metric.product(y, CLASSES, u), u)
    assert torch.equal(metric.pseudo_grad(y, CLASSES, _random()) ** 2, torch.ones(N, M, dtype=D))
    gradient = metric.gradient(y, CLASSES)
    assert metric.score_limit(y, CLASSES) == pytest.approx((gradient**2).sum(1).mean().item())
    # A loss without curvature has a euclidean metric all the same.
    assert LossMetric(F.l1_loss, metric="euclidean").score_limit(y, u) == pytest.approx(1 / M)


def test_half_precision_is_counted_in_float32():
    y = _outputs().bfloat16()
    for kind in ("fisher", "euclidean"):
        metric = LossMetric(F.cross_entropy, kind)
        wide = y.float()
        assert metric.loss(y, CLASSES).dtype == torch.float32
        assert torch.equal(metric.gradient(y, CLASSES), metric.gradient(wide, CLASSES))
        assert metric.pseudo_grad(y, CLASSES, _random()).dtype == torch.float32
        assert metric.product(y, CLASSES, y).dtype == torch.float32


def test_vectors_and_images_are_rows():
    y = _outputs()[:, 0]
    t = _outputs(2)[:, 0]
    assert LossMetric(F.mse_loss).gradient(y, t).shape == (N, 1)
    images = torch.randn(N, 2, 4, 4, dtype=D)
    goal = torch.randn(N, 2, 4, 4, dtype=D)
    rows = LossMetric(F.mse_loss).gradient(images, goal)
    torch.testing.assert_close(rows, 2 / 32 * (images - goal).flatten(1))
    # Classes per position: no closed form, exact all the same.
    segments = torch.randint(0, 2, (N, 4, 4), generator=_random())
    metric = LossMetric(lambda y, t: F.cross_entropy(y, t))
    u = torch.randn(N, 2, 4, 4, dtype=D)
    p = images.softmax(1)
    expected = (p * u - p * (p * u).sum(1, keepdim=True)) / 16
    torch.testing.assert_close(metric.product(images, segments, u), expected.flatten(1))


def test_looking_leaves_the_outputs_alone():
    y = _outputs().requires_grad_()
    for loss, target in [CASES["ce"], OTHERS["log-cosh"]]:
        metric = LossMetric(loss)
        assert not metric.gradient(y, target).requires_grad
        assert not metric.pseudo_grad(y, target, _random()).requires_grad
    assert y.grad is None


def _contrastive(y, target):
    return ((y - y.mean(0)) ** 2).mean()


def _double_well(y, target):
    return ((y**2 - 1) ** 2).mean()


@pytest.mark.parametrize(
    ("loss", "target", "message"),
    [
        (_contrastive, CLASSES, "_contrastive mixes samples"),
        (lambda y, t: F.mse_loss(y, t, reduction="sum"), _outputs(2), "lambda.*not a mean"),
        (lambda y, t: -(y.sigmoid() * t).mean(), BITS, "lambda.*not convex"),
        (_double_well, CLASSES, "_double_well.*not convex"),
        (F.l1_loss, _outputs(2), "l1_loss has no curvature"),
        (lambda y, t: (y - t) ** 2, _outputs(2), "lambda.*scalar"),
        (lambda y, t: torch.tensor(1.0), CLASSES, "lambda.*doesn't depend on the outputs"),
        (
            lambda y, t: torch.ones((), requires_grad=True) * 2,
            CLASSES,
            "lambda.*doesn't depend on the outputs",
        ),
        (F.nll_loss, CLASSES, "nll_loss needs log-probabilities"),
        (F.cross_entropy, torch.full((N, 2), 1), "class targets"),
        (F.cross_entropy, CLASSES + 1, "class 3"),
        (F.cross_entropy, torch.full((N,), -100), "ignored"),
        (F.binary_cross_entropy, BITS, "outside"),
        (F.mse_loss, _outputs(2)[:, :1], "mse_loss got outputs"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(2)), BITS, "pos_weight"),
        (nn.CrossEntropyLoss(weight=torch.ones(2)), CLASSES, "2 class weights"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(loss, target, message):
    metric = LossMetric(loss)

    def look():
        metric.gradient(0.3 * _outputs(), target)
        metric.score_limit(0.3 * _outputs(), target)

    with pytest.raises(SennError, match=message):
        look()


@pytest.mark.parametrize(
    "loss",
    [
        nn.MSELoss(reduction="sum"),
        functools.partial(F.cross_entropy, reduction="none"),
        nn.L1Loss(reduction="sum"),
    ],
)
def test_sums_over_samples_are_refused(loss):
    with pytest.raises(UnsupportedError, match="reduction"):
        LossMetric(loss)


def test_sample_weights_must_fit():
    metric = LossMetric(F.cross_entropy)
    for weight, message in [(torch.ones(2), "shape"), (-torch.ones(N), "negative")]:
        with pytest.raises(SennError, match=message):
            metric.gradient(_outputs(), CLASSES, weight)
