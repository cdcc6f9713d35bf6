"""Cost of one round: columns, rows and samples are bounded where samples have many locations. No time is measured."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import senn
from senn.candidates import recorded_samples
from senn.candidates.new_layers import IdentityLayer
from senn.errors import UnsupportedError
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
