"""Losses that mix samples are found out; means over samples of any kind pass."""

import functools
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

import senn
from senn.errors import SennError, UnsupportedError
from senn.kfac.loss_metric import LossMetric

N = 24


def _normalized(y):
    return F.normalize(y, dim=1)


def neighbors(y, t):
    """Pairs of rows, most of them inactive."""
    return F.relu(0.3 - ((y[0::2] - y[1::2]) ** 2).sum(1)).mean()


def thirds(y, t):
    return F.triplet_margin_loss(*y.chunk(3), margin=0.1)


def info_nce(y, t):
    first, second = _normalized(y).chunk(2)
    return F.cross_entropy(first @ second.T / 0.1, torch.arange(len(first)))


def batch_hard(y, t):
    distance, same = torch.cdist(y, y), t[:, None] == t[None]
    far = torch.where(same, distance, 0.0).amax(1)
    near = torch.where(same, torch.inf, distance).amin(1)
    return F.relu(far - near + 0.2).mean()


def barlow(y, t):
    z = (y - y.mean(0)) / y.std(0)
    return ((z.T @ z / len(z) - torch.eye(y.shape[1])) ** 2).sum()


def cox(y, t):
    """The others at risk are those of a later time."""
    risk = y[:, 0]
    order = t.argsort(descending=True)
    return -(risk[order] - risk[order].logcumsumexp(0)).mean()


def batch_entropy(y, t):
    p = y.softmax(1).mean(0)
    return F.cross_entropy(y, t) + (p * p.log()).sum()


def ranked(y, t):
    return F.cross_entropy(y, t, reduction="none").topk(len(y) // 2).values.mean()


MIXED = {
    "neighbors": neighbors,
    "thirds": thirds,
    "InfoNCE": info_nce,
    "batch-hard triplets": batch_hard,
    "Barlow twins": barlow,
    "Cox": cox,
    "entropy of the batch": batch_entropy,
    "hard examples": ranked,
    "root of a mean square": lambda y, t: ((y[:, 0] - t) ** 2).mean().sqrt(),
    "mean of the batch": lambda y, t: ((y - y.mean(0)) ** 2).mean(),
    "a learned scale": lambda y, t: ((y - t[:, None]) ** 2).mean() / y.detach().abs().mean(),
}


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("count", [6, N])
def test_a_loss_that_mixes_samples_is_found_out_with_every_seed(name, count):
    metric = LossMetric(MIXED[name], "euclidean")
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        y, t = torch.randn(count, 4, generator=generator), torch.arange(count) % 3
        with pytest.raises(UnsupportedError, match=r"mixes samples.*coupled=True"):
            metric.gradient(y, t)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("name", ["neighbors", "entropy of the batch"])
def test_the_size_of_a_loss_hides_nothing(name, scale):
    metric = LossMetric(lambda y, t: scale * MIXED[name](y, t), "euclidean")
    with pytest.raises(UnsupportedError, match="mixes samples"):
        metric.gradient(
            torch.randn(N, 4, generator=torch.Generator().manual_seed(0)), torch.arange(N) % 3
        )


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda y, t: F.cross_entropy(y, t, reduction="sum"), "not a mean over the samples"),
        (lambda y, t: (y.mean(1) * torch.arange(len(y))).mean(), "not a mean|order"),
        (lambda y, t: F.cross_entropy(F.dropout(y), t), "draws random numbers"),
    ],
)
def test_other_losses_that_are_no_means_are_refused(loss, message):
    with pytest.raises(UnsupportedError, match=message):
        LossMetric(loss, "euclidean").gradient(torch.randn(N, 4), torch.arange(N) % 3)


class Straight(torch.autograd.Function):
    """A squared error whose gradient can't be differentiated."""

    @staticmethod
    def forward(ctx, y, t):
        ctx.save_for_backward(y, t)
        return ((y - t) ** 2).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        y, t = ctx.saved_tensors
        return upstream * 2 * (y - t) / y.numel(), None


CLASSES = torch.arange(N) % 3
IGNORED = torch.where(CLASSES == 1, -100, CLASSES)
OUTPUTS = torch.randn(N, 3, generator=torch.Generator().manual_seed(1))
# Losses without a second derivative, or whose normalizer depends on targets: (loss, outputs, targets).
MEANS = {
    "hinge": (nn.MultiMarginLoss(), OUTPUTS, CLASSES),
    "CTC": (
        lambda y, t: F.ctc_loss(y.log_softmax(2).transpose(0, 1), *t),
        torch.randn(N, 10, 5, generator=torch.Generator().manual_seed(2)),
        (torch.arange(3 * N).reshape(N, 3) % 4 + 1, torch.full((N,), 10), torch.arange(N) % 3 + 1),
    ),
    "once differentiable": (Straight.apply, OUTPUTS, OUTPUTS.flip(0)),
    "ignored": (lambda y, t: F.cross_entropy(y, t), OUTPUTS, IGNORED),
    "weighted": (
        lambda y, t: F.cross_entropy(y, t, weight=torch.tensor([0.1, 1.0, 7.0])),
        OUTPUTS,
        CLASSES,
    ),
    "masked": (
        lambda y, t: ((y[:, 0] - t["y"]) ** 2 * t["mask"]).sum() / t["mask"].sum(),
        OUTPUTS,
        {"y": OUTPUTS[:, 1], "mask": (CLASSES > 0).float()},
    ),
    "signs that cancel": (lambda y, t: (y[:, 0] * t).mean(), OUTPUTS, OUTPUTS[:, 1]),
    "absolute": (F.l1_loss, OUTPUTS, OUTPUTS.flip(0)),
}


@pytest.mark.parametrize("name", MEANS)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_means_pass_on_first_derivatives_alone(name, scale):
    loss, y, t = MEANS[name]
    metric = LossMetric(lambda y, t: scale * loss(y, t), "euclidean")
    leaf = y.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(scale * loss(leaf, t), leaf)
    torch.testing.assert_close(metric.gradient(y, t), N * gradient.flatten(1))


@pytest.mark.parametrize("name", ["hinge", "CTC", "once differentiable"])
def test_the_fisher_of_a_loss_without_second_derivative_is_refused_with_a_way_out(name):
    loss, y, t = MEANS[name]
    with pytest.raises(UnsupportedError, match="metric='euclidean'"):
        LossMetric(loss).score_limit(y, t)


def test_pairs_are_found_out_before_the_grower_shuffles_them():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 4))
    grower = senn.Grower(model, loss=thirds, moves=("width",), metric="euclidean")
    with pytest.raises(UnsupportedError, match=r"thirds mixes samples.*coupled=True"):
        grower.grow([(torch.randn(300, 5), torch.zeros(300))])


def two_heads(outputs, targets):
    return F.cross_entropy(outputs[:, :2], targets["label"]) + F.mse_loss(
        outputs[:, 2], targets["size"]
    )


@pytest.mark.parametrize(
    ("loss", "take"),
    [
        (two_heads, lambda t: t),
        (lambda y, t: two_heads(y, {"label": t[0], "size": t[1]}), lambda t: (*t.values(),)),
    ],
    ids=["dict", "tuple"],
)
def test_targets_may_be_nested(loss, take):
    """As the same targets packed into one tensor."""

    def packed(outputs, targets):
        return two_heads(outputs, {"label": targets[:, 0].long(), "size": targets[:, 1]})

    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(3))
    targets = {"label": (x[:, 0] * x[:, 1] > 0).long(), "size": x[:, 2] * x[:, 3]}
    gains = []
    for function, given in [(loss, take(targets)), (packed, torch.stack([*targets.values()], 1))]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 3))
        grower = senn.Grower(model, loss=function, moves=("width",))
        gains.append(
            grower.score_candidates([(x[:100], _first(given)), (x, given)])[0].held_out_gain
        )
    assert gains[0] == pytest.approx(gains[1], rel=1e-5)


def _first(targets):
    return senn.pytree.index_batch(targets, slice(0, 100), 200)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            {"x": OUTPUTS, "y": CLASSES},
            r"a batch is a mapping \(dict\).*\(\{'x': batch\['x'\]\}, targets\)",
        ),
        (torch.zeros(4, 3), "a batch must be inputs, targets and perhaps weights"),
        (object(), "a batch is of type object, and inputs, targets and perhaps weights"),
        ((OUTPUTS, (CLASSES, CLASSES[:-1])), "an entry for each sample in every tensor"),
        ((OUTPUTS, CLASSES[:-1]), "inputs for 24 samples and targets for 23"),
        ((OUTPUTS, "labels"), "these are a Tensor and a str"),
        ((OUTPUTS, {"a": CLASSES}), "cross_entropy takes a tensor as targets, not a dict"),
    ],
)
def test_batches_that_are_not_understood_say_what_would_be(batch, message):
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 3))
    with pytest.raises(SennError, match=message):
        senn.Grower(model, loss=functools.partial(F.cross_entropy)).grow([batch])


@dataclass
class Rows:
    features: torch.Tensor
    labels: torch.Tensor


@pytest.mark.parametrize(
    ("make", "prepare"),
    [
        (lambda x, y: {"x": x, "y": y}, lambda one: (one["x"], one["y"])),
        (Rows, lambda rows: (rows.features, rows.labels)),
    ],
    ids=["mapping", "record"],
)
def test_batches_of_other_kinds_are_taken_apart(make, prepare):
    def scored(batch, **options):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 3))
        return str(senn.Grower(model, moves=("width",), **options).score_candidates([batch]))

    batch = make(OUTPUTS, CLASSES)
    assert scored(batch, prepare=prepare) == scored((OUTPUTS, CLASSES))
    with pytest.raises(SennError, match=r"make a tuple.*by prepare=\.\.\."):
        scored(batch)


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        self.first, self.middle = nn.Linear(3, 2), nn.Linear(2, 2)
        self.last, self.use_reentrant = nn.Linear(2, 3), use_reentrant

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        hidden = checkpoint(self.middle, hidden, use_reentrant=self.use_reentrant)
        return self.last(hidden)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_reentrant_checkpoint_is_refused_by_the_option_that_works():
    growers = [
        senn.Grower(Checkpointed(reentrant), moves=("width",)) for reentrant in (True, False)
    ]
    with pytest.raises(UnsupportedError, match="use_reentrant=False"):
        growers[0].observe(OUTPUTS, CLASSES)
    growers[1].observe(OUTPUTS, CLASSES)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield OUTPUTS, CLASSES


def test_prices_that_count_the_samples_seen_say_so():
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 3))
    grower = senn.Grower(model, moves=("width",))
    with pytest.warns(UserWarning, match=r"\(Stream\) has no length, so prices count.*samples="):
        grower.grow(torch.utils.data.DataLoader(Stream(), batch_size=None))
    assert "24 samples (prices count these, as samples= wasn't given)" in str(grower.last_round)
    grower.samples = 1000
    grower.grow([(OUTPUTS, CLASSES)])
    assert "24 of 1,000 samples" in str(grower.last_round)


def test_a_loader_of_a_data_set_is_asked_for_its_length():
    data = torch.utils.data.TensorDataset(OUTPUTS, CLASSES)
    grower = senn.Grower(nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 3)))
    grower.score_candidates(torch.utils.data.DataLoader(data, batch_size=8))
    assert grower.samples == N
