"""What `Grower` counts: batches, sample weights, tokens, noise, and Theorem 3.1 on whole rounds."""

import itertools
import math

import pytest
import torch
from growth_cases import FEW, X, Y, net
from torch import nn
from torch.nn import functional as F

import senn
import senn.scoring.gains
from senn.policies import Candidate, Policy
from senn.scoring.formulas import max_additions


def test_observing_batches_is_considering_them():
    batches = list(zip(X.split(200), Y.split(200), strict=True))
    one, two = (senn.Grower(net(), candidate_config=FEW, samples=600) for _ in range(2))
    expected = one.score_candidates(batches)
    for batch in batches:
        two.observe(*batch)
    assert repr(two.score_candidates()) == repr(
        expected
    )  # figures may be NaN, which equals nothing
    assert two.eta == one.eta
    # all batches count, not the last one only
    three = senn.Grower(net(), candidate_config=FEW, samples=600)
    three.score_candidates(batches[-1:])
    assert three.eta != pytest.approx(one.eta, rel=1e-3)


def test_every_batch_is_seen_with_the_weights_of_its_time():
    """Statistics gathered while training: the model may change from batch to batch."""
    x, y = X.double(), (Y[:, None] / 5 - 1).double()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    grower = senn.Grower(model, loss=F.mse_loss, candidate_config=FEW, moves=("width",))
    losses = []
    for rows in (slice(0, 300), slice(300, 600)):
        losses.append(grower.observe(x[rows], y[rows]))
        assert losses[-1] == pytest.approx(F.mse_loss(model(x[rows]), y[rows]).item(), rel=1e-12)
        with torch.no_grad():
            model[2].weight.mul_(0.0)
    assert grower.score_candidates()[0].score_limit == pytest.approx(2 * sum(losses) / 2, rel=1e-9)


@pytest.mark.parametrize(
    "policy", [senn.PricePolicy(), senn.PaperPolicy()], ids=["price", "paper: eta as a whole"]
)
def test_samples_of_weight_zero_are_not_there_and_weights_are_repeats(policy):
    x, y = X[:200].double(), (Y[:200, None] / 5 - 1).double()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def eta(*batch: torch.Tensor) -> float:
        grower = senn.Grower(
            model, loss=F.mse_loss, policy=policy, candidate_config=FEW, moves=("width", "prune")
        )
        grower.score_candidates([batch])
        return grower.eta

    weights = torch.arange(200).remainder(3).double()
    repeats = weights.long()
    assert eta(x, y, weights) == pytest.approx(
        eta(x.repeat_interleave(repeats, 0), y.repeat_interleave(repeats, 0))
    )
    assert eta(x, y, 5 * weights) == pytest.approx(eta(x, y, weights))
    assert eta(x, y, weights) != pytest.approx(eta(x, y), rel=1e-2)


def test_the_rows_kept_for_the_whole_eta_count_by_their_weight(monkeypatch):
    """With one distinct sample F has rank one, so that eta is lambda along any direction, whichever rows are kept."""
    monkeypatch.setattr("senn.kfac.folds.ROWS", 8)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    weights = (torch.arange(200) % 10 == 0).double()
    x = torch.where(weights[:, None] > 0, X[:1], X[:200]).double()
    for seed in range(5):
        grower = senn.Grower(
            model,
            loss=F.mse_loss,
            policy=senn.PaperPolicy(),
            candidate_config=FEW,
            moves=("width",),
            seed=seed,
        )
        limit = grower.score_candidates([(x, torch.ones(200, 1, dtype=x.dtype), weights)])[
            0
        ].score_limit
        assert grower.eta == pytest.approx(limit, rel=1e-6)


def test_weights_reach_the_held_out_gains():
    """Samples of weight zero with absurd targets change no figure's size."""
    x, y = X.double(), (Y[:, None] / 5 - 1).double()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    weights = (torch.arange(600) % 2).double()

    def best(*batch: torch.Tensor) -> float:
        grower = senn.Grower(
            model,
            loss=F.mse_loss,
            candidate_config=senn.CandidateConfig(units=64),
            moves=("width",),
        )
        return grower.score_candidates([batch])[0].held_out_gain

    wild = torch.where(weights[:, None] > 0, y, 1e4)
    assert best(x, wild, weights) == pytest.approx(best(x, y, weights), rel=1e-6)


@pytest.mark.parametrize("rows", [(9, 130), (7, 300)], ids=str)
def test_tokens_are_rows_of_whole_samples(rows):
    """More rows per sample than divide evenly into what is kept."""
    tokens, samples = rows
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3), nn.Flatten(), nn.Linear(3 * tokens, 2)
    )
    x, y = torch.randn(samples, tokens, 5), torch.randint(0, 2, (samples,))
    found = senn.Grower(model, candidate_config=FEW).score_candidates([(x, y)] * 3)
    assert all(math.isfinite(c.held_out_gain) and math.isfinite(c.held_out_stderr) for c in found)
    assert {c.place for c in found if c.kind == "widen"} == {"0", "2"}


def noise(seed: int, n: int = 160) -> tuple[torch.Tensor, torch.Tensor, nn.Sequential]:
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, 6, generator=g), torch.randn(n, 1, generator=g)
    torch.manual_seed(seed)
    return x, y, nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 1))


def test_the_held_out_gain_of_noise_is_negative_in_the_mean():
    """While the gain on the samples that it was fitted to is always positive."""
    gains, heldout = [], []
    for seed in range(40):
        x, y, model = noise(seed)
        grower = senn.Grower(
            model,
            loss=F.mse_loss,
            moves=("width",),
            candidate_config=senn.CandidateConfig(units=1),
            seed=seed,
        )
        (found,) = grower.score_candidates([(x, y)])
        gains.append(found.gain)
        heldout.append(found.held_out_gain)
    assert min(gains) > 0
    assert sum(heldout) / len(heldout) < 0


def test_the_price_buys_almost_nothing_on_noise():
    bought = []
    for seed in range(12):
        x, y, model = noise(seed)
        grower = senn.Grower(
            model,
            loss=F.mse_loss,
            policy=senn.PricePolicy(),
            candidate_config=FEW,
            seed=seed,
            moves=("width",),
        )
        bought.append(sum(event.units for event in grower.grow([(x, y)])))
    assert sum(bought) <= 6


@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_theorem_3_1_bounds_the_additions_of_a_round(tau: float):
    policy = senn.PaperPolicy(tau=tau, alpha=1e-3)
    for seed in range(3):
        grower = senn.Grower(
            net(seed=seed),
            policy=policy,
            moves=("width", "depth"),
            candidate_config=FEW,
            metric="euclidean",
        )
        pools: list[int] = []
        for event in grower.grow([(X, Y)]):
            pools.append(event.units)
            assert event.eta_after > event.eta_before
        assert sum(pools) < max_additions(tau, 1e-3)


def test_the_paper_policy_counts_what_it_has_accepted():
    """Ratios are taken to the score that includes the round's own additions."""
    grower = senn.Grower(
        net(),
        policy=senn.PaperPolicy(tau=0.05),
        moves=("width",),
        candidate_config=FEW,
        metric="euclidean",
    )
    seen: list[float] = []
    choose = grower.policy.choose

    class Watching(Policy):
        uses_joint_score = True

        def choose(self, candidates, accepted) -> Candidate | None:
            seen.append(candidates[0].eta)
            return choose(candidates, accepted)

        def price(self, parameters: int, samples: int) -> float:
            return 0.0

    grower.policy = Watching()
    assert grower.grow([(X, Y)])
    assert len(seen) > 2
    assert all(later > earlier for earlier, later in itertools.pairwise(seen))
