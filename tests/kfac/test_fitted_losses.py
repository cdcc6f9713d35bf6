"""Losses of the user's own where all samples are fitted: curvature below rounding is neither negative nor missing."""

import pytest
import torch
import torch.nn.functional as F
from exhaustive import EVERYTHING
from torch import nn

from senn import Grower
from senn.errors import UnsupportedError
from senn.kfac.differentiated_loss import differentiate


def wrapped(y, t):
    return F.cross_entropy(y, t)


def by_logsumexp(y, t):
    return (y.logsumexp(1) - y.gather(1, t[:, None])[:, 0]).mean()


def by_probabilities(y, t):
    return -y.softmax(1).clamp_min(1e-30).log().gather(1, t[:, None]).mean()


def exponential(y, t):
    return (y.logsumexp(1) - y.gather(1, t[:, None])[:, 0]).exp().mean()


OWN = [wrapped, by_logsumexp, by_probabilities, exponential]


def fitted(classes, margin):
    """Labels, and outputs that tell them by a margin."""
    t = torch.randint(0, classes, (48,), generator=torch.Generator().manual_seed(classes))
    noise = torch.randn(48, classes, generator=torch.Generator().manual_seed(1))
    return t, margin * F.one_hot(t, classes).float() + noise


@pytest.mark.parametrize("margin", [3, 5, 10, 15, 20, 40, 200])
@pytest.mark.parametrize("classes", [3, 10, 200] if EVERYTHING else [3, 60])
@pytest.mark.parametrize("loss", OWN)
def test_curvature_of_fitted_samples_is_that_of_cross_entropy(loss, classes, margin):
    t, y = fitted(classes, margin)
    found = differentiate(loss, "own", y, t, curved=True)
    u = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    p = y.double().softmax(1)
    exact = p * u - p * (p * u).sum(1, keepdim=True)
    if loss is exponential:
        # e^l (H + g g^T), with g = p - onehot
        g = p - F.one_hot(t, classes)
        exact = (exact + g * (g * u).sum(1, keepdim=True)) / p.gather(1, t[:, None])
    # float32 makes p of almost 1, and so its difference from 1 to an epsilon
    assert torch.allclose(found.curvature.product(u).double(), exact, rtol=2e-3, atol=3e-5)


@pytest.mark.parametrize("margin", [3, 5, 10, 15, 20, 40])
@pytest.mark.parametrize("loss", [wrapped, by_logsumexp])
def test_cross_entropy_in_other_words_keeps_its_closed_form(loss, margin):
    t, y = fitted(10, margin)
    own = differentiate(loss, "own", y, t, curved=True)
    known = differentiate(wrapped, "own", y.double(), t, curved=True)
    limits = [one.curvature.score_limit(one.gradient).mean() for one in (own, known)]
    assert torch.allclose(*limits, rtol=1e-3)


def concave(y, t):
    return -(y.square() + 1).sqrt().mean()


def linear(y, t):
    return (y * F.one_hot(t, y.shape[1])).mean()


@pytest.mark.parametrize("margin", [0, 5, 1000])
@pytest.mark.parametrize("classes", [3, 200])
@pytest.mark.parametrize(("loss", "message"), [(concave, "not convex"), (linear, "no curvature")])
def test_what_bends_the_wrong_way_or_not_at_all_is_still_refused(loss, message, classes, margin):
    t, y = fitted(classes, margin)
    with pytest.raises(UnsupportedError, match=message):
        differentiate(loss, "own", y, t, curved=True)


def test_a_round_on_a_fitted_net_ends_without_a_refusal():
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    t = (x[:, 0] > 0).long()
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.zero_()[:2, 0] = torch.tensor([40.0, -40.0])
        model[0].bias.zero_()
        model[2].weight.copy_(torch.tensor([[-9.0, 9.0, 0.0], [9.0, -9.0, 0.0]]))
    x[:, 0] = x[:, 0].sign()
    grower = Grower(model, loss=lambda y, target: by_probabilities(y, target))
    # the third unit does nothing
    assert [(event.kind, event.units) for event in grower.grow([(x, t)])] == [("prune", 1)]
