"""Growers, events and receipts in pickles and copies: complete, but for the way back, which leads to the original."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from growth_cases import FEW, Take
from torch import nn
from torch.nn import functional as F

import senn
from senn.errors import SurgeryError
from senn.surgery import Prune, transaction

X = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] * X[:, 1] > 0).long()

COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda one: pickle.loads(pickle.dumps(one)),
    "deepcopy": copy.deepcopy,
}


def grown() -> tuple[nn.Module, senn.Grower]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()
    grower = senn.Grower(
        model, optimizer, policy=Take("widen"), candidate_config=FEW, moves=("width",)
    )
    assert grower.grow([(X, Y)])
    return model, grower


def sizes(model: nn.Module) -> list[torch.Size]:
    return [parameter.shape for parameter in model.parameters()]


@pytest.mark.parametrize("way", COPIES)
def test_a_copied_grower_goes_on_alone_and_undoes_nothing(way: str) -> None:
    model, grower = grown()
    was = sizes(model)
    grower.observe(X, Y)  # with an open round
    twin = COPIES[way](grower)
    held = {p for group in twin.optimizer.param_groups for p in group["params"]}
    assert held == {*twin.model.parameters()}
    assert held.isdisjoint(model.parameters())
    with pytest.raises(SurgeryError, match="by a copy of its event: call undo"):
        twin.events[-1].undo()
    assert sizes(model) == sizes(twin.model) == was
    first, second = grower.grow(), twin.grow()
    assert [one.as_dict() for one in first] == [one.as_dict() for one in second]
    pairs = zip(model.parameters(), twin.model.parameters(), strict=True)
    assert all(torch.equal(mine, its) for mine, its in pairs)
    twin.events[-1].undo()  # of a round of its own
    assert sizes(twin.model) == was
    assert sizes(model) != was
    grower.events[-1].undo()
    assert sizes(model) == was


@pytest.mark.parametrize("way", [*COPIES, "copy"])
def test_copied_events_and_receipts_say_that_they_are_copies(way: str) -> None:
    model, grower = grown()
    make = {**COPIES, "copy": copy.copy}[way]
    (event,) = grower.events
    assert make(event).as_dict() == event.as_dict()
    assert make([event])[0].expected_decrease == event.expected_decrease
    event.undo()
    was = sizes(model)
    receipt = transaction(model, [Prune("0", (1,))], grower.graph, optimizer=grower.optimizer)
    twin = make(receipt)
    assert [move.units for move in twin.moves] == [(1,)]
    with pytest.raises(SurgeryError, match="'0' can't be undone by a copy of its receipt"):
        twin.undo()
    receipt.undo()
    assert sizes(model) == was
