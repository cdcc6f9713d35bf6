"""Scores of all drawn candidates, and the factors behind them, are readable; reading decides nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import senn
from senn.scoring.formulas import residual_cross, width_gain, width_gain_bound
from senn.scoring.unit_scores import PlaceScores

X = torch.randn(160, 5, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] * X[:, 1] > 0).long()


def scored(model: nn.Module, x: Tensor = X, y: Tensor = Y) -> tuple[dict[str, PlaceScores], list]:
    config = senn.CandidateConfig(units=12)
    grower = senn.Grower(model, loss=F.cross_entropy, moves=("width",), candidate_config=config)
    best = grower.score_candidates([(x, y)])
    return grower.score_units(), best


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 4, 3, padding=1),
        nn.Tanh(), nn.Flatten(), nn.Linear(64, 2),
    )  # fmt: skip


@pytest.mark.parametrize("kind", [mlp, convolutions])
def test_every_drawn_unit_has_the_figures_that_the_best_one_is_offered_with(kind) -> None:
    images = torch.randn(160, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    places, best = scored(kind()) if kind is mlp else scored(kind(), images)
    assert len(places) == 2
    for candidate in best:
        place = places[candidate.place]
        assert len(place) == 12
        if candidate.criterion == "held_out_gain":
            unit = int((place.held_out_gain - place.held_out_stderr).argmax())
        else:
            unit = int(place.gain_lower_bound.argmax())
        for name in ("gain", "gain_lower_bound", "held_out_gain", "held_out_stderr"):
            assert float(getattr(place, name)[unit]) == pytest.approx(getattr(candidate, name))
        assert f"best of {len(place)} candidates" in place._repr_html_()


@pytest.mark.parametrize("kind", [mlp, convolutions])
def test_the_factors_give_the_gains_by_the_papers_formula(kind) -> None:
    images = torch.randn(160, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    places, _ = scored(kind()) if kind is mlp else scored(kind(), images)
    for place in places.values():
        ((_, one),) = place.readers.items()
        existing = int(one.columns.min())
        old = slice(0, existing)
        A, G = one.A, one.G
        for unit, columns in enumerate(one.columns):
            cross = residual_cross(G[:, columns], G[:, old], A[old, old], A[old][:, columns])
            own = A[columns][:, columns]
            # the library damps units by 1e-3 of their own moments, the formula by 1e-4
            blocks = own + 9e-4 * own.diagonal().diag()
            gain = width_gain(
                cross, blocks, A[old][:, columns], A[old, old], one.S, locations=one.locations
            )
            bound = width_gain_bound(cross, blocks, one.S, locations=one.locations)
            assert float(place.gain[unit]) == pytest.approx(float(gain), rel=5e-3, abs=1e-7)
            assert float(place.gain_lower_bound[unit]) == pytest.approx(
                float(bound), rel=5e-3, abs=1e-7
            )
            norm = one.locations * float(cross.norm())
            assert float(place.gradient_norm[unit]) == pytest.approx(norm, rel=1e-3)


def test_the_gradient_norm_is_that_of_the_outgoing_weights() -> None:
    """Of a net whose existing outgoing weights have no gradient left, so that the residual is the gradient itself."""
    model = mlp()
    grower = senn.Grower(
        model,
        loss=F.cross_entropy,
        moves=("width",),
        candidate_config=senn.CandidateConfig(units=6),
    )
    grower.observe(X, Y)
    place = grower.score_units()["2"]
    one = place.readers["4"]
    wide = nn.Linear(9, 2)
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, :3] = model[4].weight
        wide.bias.copy_(model[4].bias)
        hidden = torch.cat([model[2].weight, place.incoming["2.weight"]])
        biases = torch.cat([model[2].bias, place.incoming["2.bias"]])
    features = torch.tanh(F.linear(model[:2](X), hidden, biases)).detach()
    F.cross_entropy(wide(features), Y).backward()
    torch.testing.assert_close(
        one.G[:, one.columns[:, 0]].float(), wide.weight.grad[:, 3:], rtol=1e-4, atol=1e-6
    )


def test_data_whose_covariance_is_known_gives_whole_factors_too() -> None:
    class Direct(nn.Module):
        """Its last map reads the data themselves, whose covariance is kept after the first round."""

        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out = nn.Linear(5, 3), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.cat([x, self.hidden(x).tanh()], 1))

    torch.manual_seed(0)
    grower = senn.Grower(Direct(), loss=F.cross_entropy, moves=("width", "depth"))
    grower.score_candidates([(X, Y)])
    first = grower.score_units()["hidden"].readers["out"]
    assert first.A.shape == (first.G.shape[1],) * 2
    torch.testing.assert_close(first.A, first.A.mT)
