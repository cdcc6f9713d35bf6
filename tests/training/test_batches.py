"""Batches of an epoch are the same whether its rows are put into order at once or batch by batch."""

from __future__ import annotations

import pytest
import torch

from senn.training import batches
from senn.training.batches import Rows


@pytest.mark.parametrize("weighted", [False, True])
def test_batches_of_a_large_table_are_those_of_a_small_one(monkeypatch, weighted):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(23, 3, generator=generator), torch.arange(23)
    rows = Rows(x=x, y=y, weight=torch.rand(23, generator=generator) if weighted else None)
    order = torch.randperm(23, generator=generator)
    at_once = rows.in_order(order, 5)
    monkeypatch.setattr(batches, "_COPIED_AT_ONCE", 0)
    later = rows.in_order(order, 5)
    assert type(later) is not type(at_once)
    assert len(later) == len(at_once) == 5
    for left in (0, 2):
        for one, other in zip(later[left:], at_once[left:], strict=True):
            assert len(one) == len(other) == 2 + weighted
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
