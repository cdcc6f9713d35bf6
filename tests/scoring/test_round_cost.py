"""Cost of one round: columns, rows and samples are bounded where samples have many locations. No time is measured."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import senn
from senn.candidates import recorded_samples
from senn.candidates.new_layers import IdentityLayer
from senn.errors import UnsupportedError
from senn.kfac.folds import Fold
from senn.kfac.per_sample import PerSampleFactors, PerSampleGrads
from senn.scoring import batch_statistics
from senn.scoring.formulas import expansion_score
from senn.scoring.loss_checks import CHECKED_AGAIN
from senn.scoring.scoring_session import ScoringSession

WORDS = 7


def token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=-100)


def texts(samples: int, length: int) -> tuple[Tensor, Tensor]:
    x = torch.randint(WORDS, (samples, length), generator=torch.Generator().manual_seed(0))
    return x, (x + x.roll(1, 1)) % WORDS


def token_net(hidden: int = 12, width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    maps = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, WORDS)
    return nn.Sequential(nn.Embedding(WORDS, width), *maps)


def session_of(model: nn.Module, batch: Any, loss: Any, **options: Any) -> ScoringSession:
    grower = senn.Grower(model, loss=loss, **options)
    grower.observe(*batch)
    assert grower._session is not None
    return grower._session


def bases(session: ScoringSession, point: str) -> int:
    assert session.candidate_set is not None
    return sum(isinstance(one, IdentityLayer) for one in session.candidate_set.layers[point])


def test_few_columns_before_wide_maps_of_tokens():
    model, batch = token_net(hidden=300), texts(12, 5)
    session = session_of(model, batch, token_loss)
    assert bases(session, "1") == 2
    assert bases(session, "3") == 0  # each would have 600 columns
    assert session.candidate_set is not None
    assert session.candidate_set.widen["1"].units == 300 // 4
    assert session._columns["3"].existing == 301
    assert session._fit.maps["3"].factors.cross_cov.shape[1] == 301 + 75 + 16


@pytest.mark.parametrize(("asked", "found"), [(None, 2), (1, 1), (0, 0)])
def test_bases_before_maps_of_one_row_a_sample_are_those_asked_for(asked, found):
    model = nn.Sequential(nn.Linear(300, 2), nn.Tanh(), nn.Linear(2, 3))
    x, y = torch.randn(20, 300), torch.randint(3, (20,))
    config = senn.CandidateConfig(units=8, identity_bases=asked)
    session = session_of(model, (x, y), F.cross_entropy, candidate_config=config)
    assert bases(session, "0") == found


@pytest.mark.parametrize(("length", "samples"), [(4, 40), (64, 16), (400, 8)])
def test_no_more_texts_are_run_than_candidates_are_drawn_from(length, samples, monkeypatch):
    taken = []
    init = recorded_samples.RecordedSamples.__init__

    def watched(self: Any, **options: Any) -> None:
        init(self, **options)
        taken.append((self._samples, sum(len(part.outputs) for part in self._parts)))

    monkeypatch.setattr(recorded_samples.RecordedSamples, "__init__", watched)
    session_of(token_net(), texts(40, length), token_loss)
    assert taken == [(samples, samples)]


def test_padding_changes_neither_how_many_texts_are_run_nor_what_is_drawn():
    x, y = texts(40, 64)
    padded = F.pad(x, (0, 64)), F.pad(y, (0, 64), value=-100)
    sets = [session_of(token_net(), batch, token_loss).candidate_set for batch in ((x, y), padded)]
    for name, move in sets[0].widen.items():
        for key, value in move.values.items():
            torch.testing.assert_close(value, sets[1].widen[name].values[key])


def test_a_block_is_run_on_few_long_texts():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)
            self.rows = 0

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(torch.tanh(self.up(x)))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(WORDS, 4), Block(), nn.Linear(4, WORDS))
    for length, kept in ((4, 20), (256, 8)):
        session = session_of(model, texts(40, length), token_loss)
        folds = session._fit.streams.values()
        assert [fold.factors.samples for fold in folds] == [kept]


def test_a_loss_that_has_passed_is_checked_on_few_samples_again():
    sizes, mixes = set[int](), False

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        sizes.add(len(outputs))
        errors = outputs - F.one_hot(targets, WORDS)
        return ((errors - errors.mean(0) if mixes else errors) ** 2).mean()

    grower = senn.Grower(token_net(), loss=loss)
    for was_checked in (False, True):
        sizes.clear()
        grower.observe(*texts(40, 4))
        grower.reset()
        assert (CHECKED_AGAIN in sizes) == was_checked
    mixes = True
    with pytest.raises(UnsupportedError, match="mixes samples"):
        grower.observe(*texts(40, 4))


def test_a_large_batch_passes_in_parts_of_few_samples(monkeypatch):
    model, (x, y) = token_net(), texts(40, 64)
    sizes = []
    model[1].register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    # a sample has 64 tokens, and each 4 + 2 * 12 + 12 + 2 * 7 numbers
    monkeypatch.setattr(batch_statistics, "MOST_NUMBERS", 7 * 64 * 54)
    session = session_of(model, (x, y), token_loss)
    # 7, 7 and 6 of each fold, in the model and in its copy; more pass at once only to check the loss
    assert (sizes.count(7), sizes.count(6)) == (8, 4)
    assert session._fit.maps["3"].factors.samples == session._held_out.maps["3"].factors.samples
    assert session._fit.maps["3"].n_kept == 20


def test_eta_of_sampled_rows_is_that_of_all_rows():
    """A third of the rows makes A, and random signs make S; dense float64 of all rows is the truth."""
    model, (x, y) = token_net(), texts(160, 100)
    grower = senn.Grower(model, loss=token_loss)
    grower.observe(x, y)
    session = grower._session
    assert session is not None
    factors = session._fit.maps["3"].factors + session._held_out.maps["3"].factors
    assert factors.rows == 16_000
    assert 4_096 <= factors.n_rows_read < 6_000
    pool = session.pool(1000, grower.budget)

    with torch.no_grad():
        model = model.double()
        a = torch.cat([model[2](model[1](model[0](x))), torch.ones(160, 100, 1)], 2).flatten(0, 1)
        p = model(x).flatten(0, 1).softmax(1)
    dz = (p - F.one_hot(y.flatten(), WORDS)) / 100
    S = (torch.diag(p.mean(0)) - p.mT @ p / len(p)) / 100
    G, A = dz.mT @ a / len(a), a.mT @ a / len(a)
    # a sample's loss is a mean over 100 tokens, so its Hessian is a hundredth of each token's
    truth = expansion_score(G, A, S, locations=100)
    assert pool.layer_gains["3"].eta == pytest.approx(float(truth), rel=0.05)


def test_samples_in_half_precision_say_the_same_within_a_hundredth():
    g = torch.Generator().manual_seed(0)
    a, s, dz = (torch.randn(6 * 50, size, generator=g) for size in (9, 40, 40))
    full = PerSampleFactors(a=a, pseudo_grad=s, output_grad=dz, locations=50)
    half = replace(full, pseudo_grad=s.bfloat16(), output_grad=dz.bfloat16())
    predict, columns = torch.randn(5, 4, generator=g), torch.tensor([[0], [3]])
    step = torch.randn(40, 2, generator=g)
    ours, theirs = half.residual(predict), full.residual(predict)
    assert isinstance(ours, PerSampleGrads)
    assert isinstance(theirs, PerSampleFactors)
    for kind in ("pseudo_grad", "output_grad"):
        one, other = (kept.directional(kind, step, columns) for kept in (ours, theirs))
        assert float((one - other).norm() / other.norm()) < 0.01


def test_few_whole_samples_of_wide_maps_are_kept_and_many_of_narrow_ones():
    assert Fold.max_kept(128, 512) == 64  # as many as without wide maps
    assert Fold.max_kept(1024, 3072) == 8  # 25 million gradients, 48 MiB
    assert Fold.max_kept(1, 8000) == 1024
