"""What a grower accepts as its optimizer, and what it says at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

import senn

X = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] * X[:, 1] > 0).long()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))


def grower(model: nn.Module, optimizer: Any, **options: Any) -> senn.Grower:
    return senn.Grower(
        model, optimizer, F.cross_entropy, **{"samples": 20_000, "moves": ["width"], **options}
    )


def train(model: nn.Module, *optimizers: optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        model.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        for optimizer in optimizers:
            optimizer.step()


class Blocks(optim.SGD):
    """An optimizer whose state is larger than its parameter by one."""

    def step(self, closure: Any = None) -> Any:
        for p in self.param_groups[0]["params"]:
            self.state[p].setdefault("blocks", torch.zeros(p.numel() + 1))
            assert self.state[p]["blocks"].numel() == p.numel() + 1
        return super().step(closure)


class Late(Blocks):
    """Its step wants the loss, so that only its own state can show what it holds."""

    def step(self, loss: Tensor, others: Tensor) -> Any:  # type: ignore[override]
        return super().step()


def test_state_that_cannot_follow_is_refused_by_the_constructor() -> None:
    model = net()
    optimizer = Blocks(model.parameters(), lr=0.1)
    with pytest.raises(senn.UnsupportedError, match="'blocks' in the state of Blocks has shape"):
        grower(model, optimizer)
    assert not optimizer.state
    one = grower(model, optimizer, on_uncarried_state="restart")
    train(model, optimizer)
    assert one.grow([(X, Y)])
    train(model, optimizer)
    with pytest.raises(senn.SennError, match="on_uncarried_state must be"):
        grower(model, optimizer, on_uncarried_state="forget")


def test_state_that_only_training_shows_is_refused_after_the_first_step() -> None:
    model = net()
    optimizer = Late(model.parameters(), lr=0.1)
    one = grower(model, optimizer)
    one.observe(X, Y)
    model.zero_grad()
    loss = F.cross_entropy(model(X), Y)
    loss.backward()
    optimizer.step(loss, loss)
    with pytest.raises(senn.UnsupportedError, match="'blocks' in the state of Late"):
        one.observe(X, Y)


def test_what_no_optimizer_holds_is_not_for_sale_and_named() -> None:
    model = net()
    optimizer = optim.Adam(model[4].parameters(), 0.01)
    one = grower(model, optimizer, moves=["width", "depth"])
    one.observe(X, Y)
    assert [group.name for group in one.graph.groups] == []
    assert [point.module for point in one.graph.insertion_points] == ["4"]
    reasons = {refusal.place: refusal.reason for refusal in one.graph.refusals}
    assert (
        reasons["0"] == "no optimizer holds '0.weight', so what is new there would never be trained"
    )
    assert "no optimizer holds" in reasons["2"]
    # The second phase trains all, and all is for sale from then on.
    optimizer.add_param_group({"params": [*model[0].parameters(), *model[2].parameters()]})
    one.observe(X, Y)
    assert [group.name for group in one.graph.groups] == ["0", "2"]
    assert one.grow()


def test_where_nothing_that_is_held_can_grow_the_reason_is_the_optimizer() -> None:
    model = net()
    with pytest.raises(senn.SennError, match=r"no place to grow .*no optimizer holds '0.weight'"):
        grower(model, optim.Adam(model[4].parameters(), 0.01)).observe(X, Y)


def test_two_optimizers_train_all_that_grows() -> None:
    model = net()
    muon = optim.Muon([p for p in model.parameters() if p.dim() == 2], lr=0.01)
    adamw = optim.AdamW([p for p in model.parameters() if p.dim() < 2], lr=0.01)
    one = grower(model, [muon, adamw])
    train(model, muon, adamw)
    assert one.grow([(X, Y)])
    before = [p.detach().clone() for p in model.parameters()]
    train(model, muon, adamw)
    assert all((p != q).any() for p, q in zip(model.parameters(), before, strict=True))
    with pytest.raises(senn.SennError, match="doesn't hold the model's parameters"):
        grower(net(), [muon, adamw])
    with pytest.raises(senn.SennError, match="not a str"):
        grower(model, [muon, "adamw"])


class Basis(optim.SGD):
    """An optimizer with an orthogonal basis of the rows."""

    def step(self, closure: Any = None) -> Any:
        for p in self.param_groups[0]["params"]:
            basis = self.state[p].setdefault("basis", torch.eye(len(p)))
            turn = torch.linalg.matrix_exp(0.1 * torch.ones(len(p), len(p)).triu(1))
            basis.copy_(torch.linalg.qr(turn @ basis)[0])
        return super().step(closure)


def test_removals_are_left_out_by_name_where_state_mixes_units() -> None:
    model = net()
    optimizer = Basis(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="removals are left out: 'basis' in the state of Basis"):
        one = grower(model, optimizer, moves=["width", "prune"])
    assert one.moves == ("width",)
    train(model, optimizer)
    assert one.grow([(X, Y)])
    train(model, optimizer)
    with pytest.raises(senn.SennError, match="nothing can be removed"):
        grower(model, optimizer, moves=["prune"])
    assert grower(
        model, optimizer, moves=["width", "prune"], on_uncarried_state="restart"
    ).moves == ("width", "prune")
