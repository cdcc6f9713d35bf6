"""Units: a constant before a loss changes no decision; metrics of one's own; losses of whole batches."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import senn
from senn.errors import SennError, UnsupportedError
from senn.kfac.loss_hessians import DiagonalHessian
from senn.kfac.loss_metric import LossMetric

G = torch.Generator().manual_seed(0)
X = torch.randn(960, 4, generator=G)
LABELS = (X[:, 0] * X[:, 1] + 0.5 * X[:, 2] > 0).long()
NUMBERS = torch.stack([X[:, 0] * X[:, 1], X[:, 2].abs()], 1)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 2))


def focal(outputs, targets):
    log = F.log_softmax(outputs, 1).gather(1, targets[:, None])[:, 0]
    return (-((1 - log.exp()) ** 2) * log).mean()


def reinforce(outputs, targets):
    """A policy gradient, with advantages that sum to about zero."""
    log = F.log_softmax(outputs, 1).gather(1, targets[:, None])[:, 0]
    return -(log * X[: len(outputs), 3]).mean()


def softmax_fisher(outputs, targets):
    p = outputs.softmax(1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None]


def gaussian_nll(outputs, targets):
    """Of a mean and a logarithm of the variance."""
    mean, s = outputs.unbind(1)
    return 0.5 * ((targets - mean) ** 2 * (-s).exp() + s).mean()


def gaussian_fisher(outputs, targets):
    s = outputs[:, 1]
    return torch.stack([(-s).exp(), torch.full_like(s, 0.5)], 1)


# loss, targets, settings
LOSSES = {
    "cross-entropy": (lambda y, t: F.cross_entropy(y, t), LABELS, {}),
    "squared error": (lambda y, t: ((y - t) ** 2).mean(), NUMBERS, {}),
    "Huber": (lambda y, t: F.huber_loss(y, t, delta=0.5), NUMBERS, {}),
    "known": (F.cross_entropy, LABELS, {"metric": "euclidean"}),
    "focal": (focal, LABELS, {"metric": "euclidean"}),
    "hinge": (lambda y, t: F.multi_margin_loss(y, t), LABELS, {"metric": "euclidean"}),
    "absolute": (lambda y, t: F.l1_loss(y, t), NUMBERS, {"metric": "euclidean"}),
    "linear": (lambda y, t: (y * t).mean(), NUMBERS, {"metric": "euclidean"}),
}


def _round(name, scale, moves=("width", "depth")):
    loss, targets, given = LOSSES[name]
    scaled = loss if scale == 1 else (lambda y, t: scale * loss(y, t))
    model = net()
    grower = senn.Grower(model, loss=scaled, samples=400, moves=moves, **given)
    return model, grower.grow([(X, targets)])


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "known"])
def test_a_constant_before_a_loss_changes_no_decision(name):
    small, large = (_round(name, scale)[1] for scale in (0.01, 100.0))
    made = [[(one.kind, one.place, one.units) for one in events] for events in (small, large)]
    assert made[0]
    assert made[0] == made[1]
    for one, other in zip(small, large, strict=True):
        # decreases and prices are in the loss's own unit
        assert other.expected_decrease == pytest.approx(1e4 * one.expected_decrease, rel=1e-3)
        assert other.price == pytest.approx(1e4 * one.price, rel=1e-3)
        assert "of the loss" in str(one)


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_a_hessian_of_another_unit_changes_no_decision(scale):
    """That of a policy has the unit of nats, whatever the advantages have."""
    made = []
    for advantage in (1.0, scale):

        def loss(outputs, targets, advantage=advantage):
            return advantage * F.mse_loss(outputs, targets)

        grower = senn.Grower(
            net(),
            loss=loss,
            samples=400,
            moves=("width",),
            loss_hessian=lambda y, t: torch.ones_like(y),
        )
        made.append([(one.place, one.units) for one in grower.grow([(X, NUMBERS)])])
    assert made[0]
    assert made[0] == made[1]


def test_a_squared_error_of_ones_own_is_decided_on_as_the_known_one():
    _, (own,) = _round("squared error", 1.0, moves=("width",))
    (known,) = senn.Grower(net(), loss=F.mse_loss, samples=400, moves=("width",)).grow(
        [(X, NUMBERS)]
    )
    assert (own.units, own.place) == (known.units, known.place)
    assert own.price / own.expected_decrease == pytest.approx(
        known.price / known.expected_decrease, rel=1e-4
    )


def test_the_euclidean_metric_of_a_squared_error_is_its_hessian():
    y, t = X[:, :2], NUMBERS
    for loss in (F.mse_loss, lambda y, t: ((y - t) ** 2).mean()):
        metric = LossMetric(loss, "euclidean").calibrated(y, t)
        assert metric.curvature == pytest.approx(2 / 2, rel=1e-5)
        assert metric.score_limit(y, t) == pytest.approx(
            LossMetric(F.mse_loss).score_limit(y, t), rel=1e-5
        )


def test_the_dispersion_of_a_likelihood_is_one():
    """Bartlett's identity, for labels drawn from the model itself; and the error's own variance for squares."""
    p = torch.softmax(torch.randn(20000, 3, generator=G, dtype=torch.float64), 1)
    labels = p.multinomial(1, generator=G)[:, 0]
    metric = LossMetric(lambda y, t: F.cross_entropy(y, t))
    gradient, v = metric.gradient(p.log(), labels), metric.pseudo_grad(p.log(), labels, G)
    found = metric.dispersion(*(float(rows.square().sum(1).mean()) for rows in (gradient, v)))
    assert found == pytest.approx(1, abs=0.03)
    squares = LossMetric(lambda y, t: ((y - t) ** 2).mean())
    y, t = X[:, :2], NUMBERS
    gradient, v = squares.gradient(y, t), squares.pseudo_grad(y, t, G)
    found = squares.dispersion(*(float(rows.square().sum(1).mean()) for rows in (gradient, v)))
    assert found == pytest.approx(
        LossMetric(F.mse_loss).loss_per_nat(float(F.mse_loss(y, t)), y), rel=1e-5
    )


ODDS = X[:, 0] * X[:, 1] > 0
SOFT = torch.stack([ODDS, ~ODDS], 1) * 0.8 + 0.1


@pytest.mark.parametrize(
    ("loss", "other", "targets"),
    [
        (
            nn.BCEWithLogitsLoss(),
            nn.BCEWithLogitsLoss(weight=torch.tensor(100.0)),
            NUMBERS.sign().relu(),
        ),
        (nn.KLDivLoss(reduction="batchmean"), nn.KLDivLoss(reduction="mean"), SOFT),
    ],
    ids=["weight of BCE", "reduction of KLDiv"],
)
def test_options_that_are_a_constant_change_no_decision(loss, other, targets):
    made = []
    for one in (loss, other):
        model = net()
        if isinstance(one, nn.KLDivLoss):
            model.append(nn.LogSoftmax(1))
        (event,) = senn.Grower(model, loss=one, samples=400, moves=("width",)).grow([(X, targets)])
        made.append((event.units, event.place, round(event.expected_decrease, 4)))
    assert made[0] == made[1]


def test_a_nat_of_many_labels_is_the_share_of_one_and_ignored_ones_are_none():
    """A mean over T labels of a sample has nats / T; padding with ignored ones changes neither."""
    y, t = torch.randn(8, 3, 5, generator=G), torch.randint(0, 3, (8, 5), generator=G)
    metric = LossMetric(F.cross_entropy)
    assert metric.loss_per_nat(1.0, y, t) == pytest.approx(1 / 5)
    padded = torch.cat([y, torch.randn(8, 3, 7, generator=G)], 2)
    ignored = torch.cat([t, torch.full((8, 7), -100)], 1)
    assert metric.loss_per_nat(1.0, padded, ignored) == pytest.approx(1 / 5)
    # as the dispersion of the same function, if it isn't known
    assert metric.loss_per_nat(1.0, y[:, :, 0], t[:, 0]) == 1
    assert LossMetric(nn.BCEWithLogitsLoss()).loss_per_nat(1.0, y) == pytest.approx(1 / 15)
    masked = nn.BCEWithLogitsLoss(weight=torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]))
    assert LossMetric(masked).loss_per_nat(1.0, y) == pytest.approx(1 / 15)


# ---- a Hessian of one's own -----------------------------------------------------------------------------------------


def test_a_given_hessian_takes_the_place_of_the_losss_own():
    y, u = torch.randn(6, 2, generator=G), torch.randn(6, 2, generator=G)
    own, known = LossMetric(focal, loss_hessian=softmax_fisher), LossMetric(F.cross_entropy)
    t = LABELS[:6]
    torch.testing.assert_close(own.product(y, t, u), known.product(y, t, u))
    leaf = y.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(focal(leaf, t), leaf)
    torch.testing.assert_close(own.gradient(y, t), 6 * gradient)


def test_diagonals_matrices_and_objects_say_the_same():
    y, u = torch.randn(6, 2, generator=G), torch.randn(6, 2, generator=G)
    h = torch.rand(6, 2, generator=G)
    products = [
        LossMetric(focal, loss_hessian=lambda y, t, h=one: h).product(y, LABELS[:6], u)
        for one in (h, torch.diag_embed(h), DiagonalHessian(h))
    ]
    torch.testing.assert_close(products[0], h * u)
    torch.testing.assert_close(products[1], h * u)
    assert torch.equal(products[2], products[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda y, t: -torch.ones_like(y), "negative curvature"),
        (lambda y, t: torch.ones(3), r"returns shape \(3,\), and outputs \(6, 2\) need"),
        (lambda y, t: torch.full_like(y, torch.nan), "NaN or infinity"),
        (lambda y, t: 1.0, "must return a tensor"),
        (lambda y, t: t.missing, "fails on outputs of shape"),
    ],
)
def test_hessians_that_are_none_are_refused(given, message):
    with pytest.raises(SennError, match=message):
        LossMetric(focal, loss_hessian=given).product(
            torch.zeros(6, 2), LABELS[:6], torch.ones(6, 2)
        )


def test_a_learned_variance_grows_by_its_fisher_matrix():
    x = torch.randn(800, 4, generator=torch.Generator().manual_seed(0))
    made = []
    for scale in (1.0, 100.0):
        grower = senn.Grower(
            net(),
            loss=lambda y, t, scale=scale: scale * gaussian_nll(y, t),
            samples=40000,
            moves=("width",),
            loss_hessian=lambda y, t, scale=scale: scale * gaussian_fisher(y, t),
        )
        made.append(grower.grow([(x, x[:, 0] * x[:, 1])])[0])
    assert made[0].units == made[1].units
    assert 100 * made[0].expected_decrease == pytest.approx(made[1].expected_decrease, rel=1e-3)


def test_a_policy_gradient_grows_by_the_fisher_matrix_of_its_policy():
    grower = senn.Grower(
        net(), loss=reinforce, samples=400, moves=("width",), loss_hessian=softmax_fisher
    )
    with pytest.raises(UnsupportedError, match="order"):  # advantages must go with the rows
        grower.grow([(X, LABELS)])

    def loss(outputs, targets):
        log = F.log_softmax(outputs, 1).gather(1, targets["action"][:, None])[:, 0]
        return -(log * targets["advantage"]).mean()

    batch = (X, {"action": LABELS, "advantage": X[:, 0] * X[:, 1]})
    grower = senn.Grower(
        net(), loss=loss, samples=400, moves=("width",), loss_hessian=softmax_fisher
    )
    assert grower.grow([batch])[0].expected_decrease > 0


@pytest.mark.parametrize(
    ("loss", "needed"),
    [
        (nn.TripletMarginLoss(), "anchor, positive, negative"),
        (nn.CTCLoss(), "log_probs, targets, input_lengths, target_lengths"),
        (lambda y: y.mean(), "takes y,"),
    ],
)
def test_losses_of_other_arguments_say_what_to_write(loss, needed):
    with pytest.raises(SennError, match=f"{needed}.*give a function of \\(outputs, targets\\)"):
        LossMetric(loss)


def test_settings_that_contradict_are_refused():
    with pytest.raises(SennError, match="contradicts"):
        LossMetric(focal, "euclidean", loss_hessian=softmax_fisher)
    with pytest.raises(SennError, match="couples samples has no Hessian"):
        LossMetric(focal, coupled=True)


# ---- losses of whole batches ----------------------------------------------------------------------------------------


def pairs(outputs, targets):
    first, second = outputs[0::2], outputs[1::2]
    return F.relu(3.0 - ((first - second) ** 2).sum(1)).mean()


def _dense_eta(model, batches, loss):
    """K-FAC's eta of both linear maps under H = I, from torch.func alone, in float64."""
    model = model.double()
    weights = dict(model.named_parameters())
    first = model[0](torch.cat(batches).double())
    reads = {"0": torch.cat(batches).double(), "2": torch.tanh(first)}
    back = {
        "0": (1 - torch.tanh(first) ** 2)[:, :, None] * model[2].weight.T,
        "2": torch.eye(2).double(),
    }
    total = 0.0
    for name in ("0", "2"):
        gradient = 0.0
        for x in batches:
            value = loss(model(x.double()), None) / len(batches)
            parts = torch.autograd.grad(value, [weights[f"{name}.weight"], weights[f"{name}.bias"]])
            gradient = gradient + torch.cat([parts[0], parts[1][:, None]], 1)
        a = torch.cat([reads[name], torch.ones(len(reads[name]), 1)], 1)
        A = a.T @ a / len(a)
        jacobian = back[name].expand(len(a), *back[name].shape[-2:])
        S = torch.einsum("nij,nkj->ik", jacobian, jacobian) / len(a)
        total += float((gradient * (torch.linalg.solve(S, gradient) @ torch.linalg.inv(A))).sum())
    return total


def test_a_loss_of_pairs_has_the_true_eta_of_whole_batches():
    model = net()
    batches = [X[:480], X[480:]]
    grower = senn.Grower(
        model, loss=pairs, samples=400, moves=("width",), metric="euclidean", coupled=True
    )
    loss = [grower.observe(x, torch.zeros(len(x))) for x in batches]
    for x, found in zip(batches, loss, strict=True):
        assert found == pytest.approx(float(pairs(model(x), None)), rel=1e-5)
    kappa = grower._session.metric.curvature
    grower.score_candidates()
    assert grower.eta * kappa == pytest.approx(_dense_eta(model, batches, pairs), rel=0.03)


@pytest.mark.parametrize("ascent", [0, 3])
def test_losses_of_whole_batches_grow_a_network(ascent):
    def triplets(outputs, targets):
        return F.triplet_margin_loss(*outputs.chunk(3), margin=2.0)

    batches = [(X[start : start + 60], LABELS[:60]) for start in (0, 60, 120, 180)]
    grower = senn.Grower(
        net(), loss=triplets, samples=400, moves=("width", "prune"), metric="euclidean", coupled=True,
        candidate_config=senn.CandidateConfig(units=16, ascent_steps=ascent), birth="silent",
    )  # fmt: skip
    events = grower.grow(batches)
    assert events[0].kind == "widen"
    assert events[0].loss_before == pytest.approx(events[0].loss_after, rel=1e-5)
    assert events[0].loss_before == pytest.approx(
        float(triplets(net()(batches[-1][0]), None)), rel=1e-5
    )


def test_one_batch_is_too_few_for_a_loss_of_whole_batches():
    grower = senn.Grower(net(), loss=pairs, moves=("width",), metric="euclidean", coupled=True)
    with pytest.raises(SennError, match="needs two batches a round"):
        grower.grow([(X, LABELS)])
    with pytest.raises(UnsupportedError, match="no sample weights"):
        grower.observe(X, LABELS, torch.ones(len(X)))


class MeanAndVariance(nn.Module):
    def __init__(self, outputs, variances):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
        self.mean, self.variance = nn.Linear(3, outputs), nn.Linear(3, variances)

    def forward(self, x):
        h = self.body(x)
        return self.mean(h), F.softplus(self.variance(h)) + 0.01


@pytest.mark.parametrize("variances", [1, 2], ids=["one variance", "a variance each"])
@pytest.mark.parametrize("full", [False, True])
def test_a_gaussian_with_a_learned_variance_grows(variances, full):
    torch.manual_seed(0)
    model = MeanAndVariance(2, variances).double()
    x, target = X.double(), NUMBERS.double()
    loss = nn.GaussianNLLLoss(full=full)
    grower = senn.Grower(model, None, loss, samples=400, moves=("width",))
    mean, variance = model(x)
    joined = grower.output(model(x))
    assert grower.metric.loss(joined, target).item() == pytest.approx(
        loss(mean, target, variance).item()
    )
    # Fisher's diagonal is the mean of the Hessian over the model's own labels, and these two have their moments
    mean, variance = mean.detach().requires_grad_(), variance.detach().requires_grad_()
    labels = torch.stack([mean + variance.sqrt(), mean - variance.sqrt()]).detach()
    each = loss(mean.expand_as(labels), labels, variance.expand(2, *variance.shape))
    for part, own in zip(
        grower.metric.loss_hessian(joined, target).split([2, variances], 1),
        (mean, variance),
        strict=True,
    ):
        (gradient,) = torch.autograd.grad(each, own, create_graph=True)
        expected = torch.autograd.grad(gradient.sum(), own, retain_graph=True)[0] * len(x)
        assert torch.allclose(part.detach(), expected)
    weights = torch.rand(len(x), dtype=torch.float64)
    assert grower.grow([(x, target, weights)])[0].expected_decrease > 0


def test_a_gaussian_needs_a_mean_and_a_variance():
    grower = senn.Grower(net(), None, nn.GaussianNLLLoss(), samples=400)
    with pytest.raises(UnsupportedError, match="a mean and a variance, and the model returns"):
        grower.grow([(X, X[:, :2])])
