"""Maps with very many outputs: S is its diagonal, and every figure is that of the diagonal matrix."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import senn
from senn.errors import DivergenceError
from senn.kfac.factors import DENSE_OUTPUTS, gradient_covariance, kronecker_factors
from senn.kfac.folds import NUMBERS, Fold
from senn.kfac.per_sample import PerSampleFactors
from senn.kfac.whitening import square_root, unwhiten_outputs, whiten_outputs, whiten_weights
from senn.scoring.gains import LayerGains
from senn.scoring.insertions import orthonormal_basis

D = torch.float64
COLUMNS, EXISTING, M = 9, 4, 6


def _folds(seed):
    """A fold with a diagonal S as a vector, and the same one with it as a matrix."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(200, COLUMNS, dtype=D, generator=g)
    dz, s = (torch.randn(200, M, dtype=D, generator=g) for _ in range(2))
    factors = kronecker_factors(a, dz, s)
    samples = PerSampleFactors(a=a, pseudo_grad=s, output_grad=dz)
    diagonal = factors.grad_cov.diagonal().clone()
    return [
        Fold(factors=replace(factors, grad_cov=S), samples=samples)
        for S in (diagonal, torch.diag(diagonal))
    ]


def test_a_diagonal_gives_every_figure_of_the_diagonal_matrix():
    fit, held_out = _folds(0), _folds(1)
    vector, matrix = (LayerGains(*folds, EXISTING) for folds in zip(fit, held_out, strict=True))
    columns = torch.tensor([[0, 1], [2, 4]])
    weight = torch.randn(M, EXISTING, dtype=D)
    assert vector.eta == pytest.approx(matrix.eta)
    torch.testing.assert_close(vector.step, matrix.step)
    torch.testing.assert_close(vector.next_weights(weight), matrix.next_weights(weight))
    for figure in ("gain", "gain_lower_bound", "held_out_gain", "cross_fold_gain"):
        torch.testing.assert_close(
            getattr(vector, figure)(columns), getattr(matrix, figure)(columns)
        )
    for one in (vector, matrix):
        one.eliminate(columns[0])
    left = columns[1:]
    torch.testing.assert_close(vector.held_out_gain(left), matrix.held_out_gain(left))


def test_roots_of_diagonals_are_those_of_matrices():
    S, right = torch.rand(5, dtype=D) + 0.1, torch.randn(5, 3, dtype=D)
    for function in (whiten_outputs, unwhiten_outputs, whiten_weights):
        torch.testing.assert_close(
            function(square_root(S), right), function(square_root(torch.diag(S)), right)
        )
    with pytest.raises(DivergenceError, match="NaN"):
        square_root(S * torch.nan)


@pytest.mark.parametrize("rank", [3, 2])
def test_a_basis_of_very_many_outputs_is_orthonormal_and_spans_the_same(rank):
    matrix = torch.randn(DENSE_OUTPUTS + 1, rank, dtype=D) @ torch.randn(rank, 3, dtype=D)
    basis = orthonormal_basis(matrix)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(3, dtype=D), atol=1e-8, rtol=0)
    torch.testing.assert_close(basis @ (basis.mT @ matrix), matrix)


def test_the_covariance_of_many_outputs_is_never_formed():
    s = torch.randn(3, DENSE_OUTPUTS + 1)
    torch.testing.assert_close(gradient_covariance(s), s.square().sum(0))
    assert gradient_covariance(s[:, :5]).shape == (5, 5)
    assert Fold.max_kept(128, 50_257) == NUMBERS // (128 * 50_257)
    assert Fold.max_kept(1, DENSE_OUTPUTS) > 1000


def test_a_vocabulary_of_thousands_grows():
    torch.manual_seed(0)
    words = DENSE_OUTPUTS + 10
    model = nn.Sequential(nn.Embedding(words, 4), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, words))
    tokens = torch.randint(50, (96, 3))

    def loss(outputs, targets):
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    few = senn.CandidateConfig(units=16)
    grower = senn.Grower(
        model, loss=loss, samples=10**6, moves=("width",), seed=0, candidate_config=few
    )
    events = grower.grow([(tokens, (7 * tokens + 3) % 50)])
    assert [event.place for event in events] == ["1"]
    # K-FAC's step is a thousand times too long: most of these outputs are rare, and the others have few samples
    assert 1 < events[0].expected_decrease < events[0].loss_before
    assert 0 < events[0].step_length < 0.01
