"""GoRA's rule, a rival of the benchmarks, is what its paper says."""

from __future__ import annotations

import torch
from rivals import gora


def test_the_second_factor_makes_minus_the_gradients_projection_on_the_first_ones_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    down, gradient = (
        torch.randn(3, 7, generator=generator),
        torch.randn(4, 7, generator=generator),
    )
    product = gora.second_factor(down, gradient, 0.5) @ down
    torch.testing.assert_close(product @ down.T, -0.5 * gradient @ down.T)


def test_important_maps_get_more_rank_within_the_budget() -> None:
    weights = {"a": torch.ones(4, 6), "b": torch.ones(4, 6), "c": torch.ones(8, 2)}
    gradients = {"a": torch.full((4, 6), 3.0), "b": torch.ones(4, 6), "c": torch.ones(8, 2)}
    found = gora.ranks(weights, gradients, 4)
    assert found["a"] > found["b"] >= 2
    assert sum(found[name] * sum(weights[name].shape) for name in found) <= 4 * 30
