"""New units of a low-rank pair in closed form, against dense float64 algebra."""

from __future__ import annotations

import pytest

pytest.importorskip("peft")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from senn.kfac.factors import KroneckerFactors, kronecker_factors
from senn.peft.directions import (
    best_directions,
    directional_derivatives,
    residual_rows,
    unit_compensation,
)
from senn.scoring.formulas import natural_step, residual_cross, width_gain

D, M, ROWS, LOCATIONS = 5, 4, 60, 3


def factors(seed: int) -> KroneckerFactors:
    generator = torch.Generator().manual_seed(seed)
    x, dz, s = (
        torch.randn(ROWS, size, size, generator=generator, dtype=torch.float64).sum(2)
        for size in (D, M, M)
    )
    return kronecker_factors(x * torch.arange(1, D + 1), dz, s, locations=LOCATIONS)


def rows(seed: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, D, generator=generator, dtype=torch.float64)


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.sqrt()) @ vectors.T


def joint_gain(found: KroneckerFactors, existing: Tensor, new: Tensor) -> float:
    """Gain of all new units together, by the formula for columns of any map."""
    cov = existing @ found.A @ existing.T
    side = existing @ found.A @ new.T
    own = found.G @ existing.T
    left = residual_cross(found.G @ new.T, own, cov, side, damping=0.0)
    moments = (new @ found.A @ new.T, side, cov)
    return float(width_gain(left, *moments, found.S, locations=LOCATIONS, damping=0.0))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_gain_of_the_best_directions_is_the_sum_of_squared_singular_values(count: int) -> None:
    found = factors(0)
    directions = best_directions(found, torch.zeros(1, D), count, damping=0.0)
    whitened = torch.linalg.inv(root(found.S)) @ found.G @ torch.linalg.inv(root(found.A))
    truth = LOCATIONS * torch.linalg.svdvals(whitened).square()[:count]
    torch.testing.assert_close(directions.gains, truth)
    # g^T F^-1 g over all entries of the new columns, with the Fisher matrix written out
    new = directions.weight
    gradient = (found.G @ new.T).flatten()
    fisher = torch.kron(found.S, new @ found.A @ new.T)
    dense = LOCATIONS * float(gradient @ torch.linalg.solve(fisher, gradient))
    assert dense == pytest.approx(float(directions.gains.sum()), rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), existing=st.integers(1, 3), count=st.integers(1, 2))
def test_no_other_directions_gain_more_beside_the_ones_that_are_there(
    seed: int, existing: int, count: int
) -> None:
    found, old = factors(seed), rows(seed + 1, existing)
    directions = best_directions(found, old, count, damping=0.0)
    best = float(directions.gains.sum())
    assert joint_gain(found, old, directions.weight) == pytest.approx(best, rel=1e-6)
    assert joint_gain(found, old, rows(seed + 2, count)) <= best * (1 + 1e-9)
    near = directions.weight + 0.1 * rows(seed + 3, count)
    assert joint_gain(found, old, near) <= best * (1 + 1e-9)


def test_new_units_are_uncorrelated_with_each_other_and_with_those_that_are_there() -> None:
    found, old = factors(3), rows(4, 2)
    directions = best_directions(found, old, 5, damping=0.0)
    assert len(directions.gains) == 3  # of five inputs two are read already
    new = directions.weight
    torch.testing.assert_close(new @ found.A @ new.T, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(new @ found.A @ old.T, torch.zeros(3, 2, dtype=torch.float64))


def test_steps_are_the_natural_ones() -> None:
    found = factors(5)
    directions = best_directions(found, torch.zeros(1, D), 3, damping=0.0)
    new = directions.weight
    cov = new @ found.A @ new.T
    step = natural_step(found.G @ new.T, cov, found.S, damping=0.0)
    torch.testing.assert_close(directions.step, step)


def test_a_unit_less_what_the_others_predict_is_uncorrelated_with_them() -> None:
    found, old = factors(6), rows(7, 3)
    residual = residual_rows(found, old, damping=0.0)
    products = residual @ found.A @ old.T
    torch.testing.assert_close(products - products.diag().diag(), torch.zeros(3, 3).double())
    coefficients = unit_compensation(found, old, torch.tensor([1]), damping=0.0)
    torch.testing.assert_close(old[1] - coefficients[0] @ old[[0, 2]], residual[1])


def test_derivatives_along_steps_sum_a_samples_locations_before_they_are_squared() -> None:
    a, grad = rows(8, 6), rows(9, 6)[:, :M]
    step = torch.einsum("mk,kd->kmd", rows(10, M)[:, :2], rows(11, 2))
    by_sample = torch.einsum("nlm,kmd,nld->nk", grad.view(2, 3, M), step, a.view(2, 3, D))
    found = directional_derivatives(a, grad, rows(11, 2), rows(10, M)[:, :2], 3)
    torch.testing.assert_close(found, by_sample)
